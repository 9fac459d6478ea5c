// Between torch's tensors and the plain arrays of the kernels: checks, allocation, threads.
//
// Only torch's stable ABI (2.10) is used here.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "cpu/kernels.h"

namespace melodia::cpu {

inline bool has_sizes(const Tensor& x, const Sizes& sizes) {
    bool same = x.dim() == static_cast<int64_t>(sizes.size());
    for (size_t k = 0; same && k < sizes.size(); ++k) same = x.size(static_cast<int64_t>(k)) == sizes[k];
    return same;
}

template <class E>
constexpr ScalarType type_of = ScalarType::Float;
template <>
constexpr ScalarType type_of<bf16> = ScalarType::BFloat16;

// The tensor as a contiguous array of that shape and type; an error that names the argument otherwise.
inline Tensor checked(const Tensor& x, const char* name, const Sizes& sizes,
                      ScalarType type = ScalarType::Float) {
    MELODIA_CHECK(has_sizes(x, sizes), "`", name, "` must have the shape ", text(sizes), " (received ",
                  text(sizes_of(x)), ")");
    MELODIA_CHECK(x.scalar_type() == type, "`", name, "` must be ", text(type),
                  " on this backend, beside the other arguments; convert it");
    MELODIA_CHECK(x.is_cpu(), "`", name, "` must be on the CPU, as the other arguments are");
    return x.is_contiguous() ? x : torch::stable::contiguous(x);  // the call costs a microsecond
}

inline Maybe checked(const Maybe& x, const char* name, const Sizes& sizes,
                     ScalarType type = ScalarType::Float) {
    if (!x.has_value()) return std::nullopt;
    return checked(*x, name, sizes, type);
}

// `checked` as float32, which bfloat16 is converted to.
inline Tensor checked_floats(const Tensor& x, const char* name, const Sizes& sizes) {
    const bool half = x.scalar_type() == ScalarType::BFloat16;
    return checked(half ? converted(x, ScalarType::Float) : x, name, sizes);
}

// An uninitialised tensor. Large ones ask for huge pages: touching 4 KB pages for the first time costs a
// fifth of the time of a long scan.
inline Tensor empty_like(const Tensor& x, const Sizes& sizes, ScalarType type = ScalarType::Float) {
    Tensor made = torch::stable::new_empty(x, sizes, type);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 4096, large = 4 << 20;
    const auto begin = reinterpret_cast<uintptr_t>(made.data_ptr());
    const uintptr_t end = begin + static_cast<uintptr_t>(made.numel() * made.element_size());
    const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
    if (end - begin >= large)
        madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint only
#endif
    return made;
}

inline const float* floats(const Tensor& x) { return x.const_data_ptr<float>(); }
inline const float* floats(const Maybe& x) { return x.has_value() ? floats(*x) : nullptr; }
inline float* mutable_floats(const Tensor& x) { return x.mutable_data_ptr<float>(); }

template <class E>
inline const E* elements(const Tensor& x) {
    return static_cast<const E*>(x.const_data_ptr());
}
template <class E>
inline const E* elements(const Maybe& x) {
    return x.has_value() ? elements<E>(*x) : nullptr;
}
template <class E>
inline E* mutable_elements(const Tensor& x) {
    return static_cast<E*>(x.mutable_data_ptr());
}
inline const int64_t* integers(const Maybe& x) {
    return x.has_value() ? x->const_data_ptr<int64_t>() : nullptr;
}

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Calls f(begin, end) over 0..count, on as many threads as torch may use and as there are `grain`s of work.
template <class F>
void in_parallel(int64_t count, int64_t grain, const F& f) {
    const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
    const int64_t parts = std::min(threads, count / std::max<int64_t>(1, grain));
    if (parts <= 1) {
        if (count > 0) f(int64_t{0}, count);
        return;
    }
    torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) f(count * part / parts, count * (part + 1) / parts);
    });
}

}  // namespace melodia::cpu
