// Tensors for the operators on CUDA, through torch's stable ABI: checks that name the argument, and where to
// run.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "arguments.h"
#include "cuda/scan.h"

#if defined(MELODIA_EMULATOR)
#include "cuda/emulator.h"
#else
#include <dlfcn.h>
#endif

// Where the operators are registered.
#if defined(MELODIA_EMULATOR)
#define MELODIA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(melodia_emulator, CPU, m)
#else
#define MELODIA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(melodia, CUDA, m)
#endif

namespace melodia::cuda {

// How the operators run, and the path that the last one took; melodia_cuda_configure sets them.
extern ScanOptions options;
extern Path chosen;

// Where the first tensor of a call is, and its current stream; the device is the current one as long as this
// lives.
class Where {
  public:
#if defined(MELODIA_EMULATOR)
    explicit Where(const Tensor&) {}
    Where(const Where&) = delete;
    ~Where() { emulator::machine.memory.forget(); }
    bool has(const Tensor& x) const { return x.is_cpu(); }
    void* stream() const { return nullptr; }
#else
    explicit Where(const Tensor& x) : index_(x.get_device_index()), guard_(index_) {}
    bool has(const Tensor& x) const { return x.is_cuda() && x.get_device_index() == index_; }
    // In libtorch_cuda.so, which a torch without CUDA does not have: so it is looked up, not linked.
    void* stream() const {
        using Get = int32_t (*)(int32_t, void**);
        static const Get get = [] {
            void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
            return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                           : nullptr;
        }();
        void* stream = nullptr;
        MELODIA_CHECK(get != nullptr && get(index_, &stream) == 0,
                      "torch does not tell its current CUDA stream");
        return stream;
    }

  private:
    int32_t index_;
    torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// The tensor as a contiguous array of that shape and type; an error that names the argument otherwise.
inline Tensor checked(const Where& where, const Tensor& x, const char* name, const Sizes& sizes,
                      ScalarType type) {
    MELODIA_CHECK(sizes_of(x) == sizes, "`", name, "` must have the shape ", text(sizes), " (received ",
                  text(sizes_of(x)), ")");
    MELODIA_CHECK(x.scalar_type() == type, "`", name, "` must be ", text(type),
                  " on this backend, beside the other arguments; convert it");
    MELODIA_CHECK(where.has(x), "`", name, "` must be on the same CUDA device as the other arguments");
    return torch::stable::contiguous(x);
}

inline Maybe checked(const Where& where, const Maybe& x, const char* name, const Sizes& sizes,
                     ScalarType type) {
    if (!x.has_value()) return std::nullopt;
    return checked(where, *x, name, sizes, type);
}

inline bool is_number(ScalarType type) {
    return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

// States and biases: float32 inside, whatever they come in.
inline Tensor checked_floats(const Where& where, const Tensor& x, const char* name, const Sizes& sizes) {
    return checked(where, is_number(x.scalar_type()) ? converted(x, ScalarType::Float) : x, name, sizes,
                   ScalarType::Float);
}

inline Maybe checked_floats(const Where& where, const Maybe& x, const char* name, const Sizes& sizes) {
    if (!x.has_value()) return std::nullopt;
    return checked_floats(where, *x, name, sizes);
}

inline Tensor made(const Tensor& like, const Sizes& sizes, ScalarType type) {
    return torch::stable::new_empty(like, sizes, type);
}

// A tensor's data for a kernel, and the emulator is told.
template <class P>
P lent(const Tensor& x, P data) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.memory.lend(data, static_cast<size_t>(x.numel()) * x.element_size());
#else
    (void)x;
#endif
    return data;
}
inline const void* data(const Tensor& x) { return lent(x, x.const_data_ptr()); }
inline void* mutable_data(const Tensor& x) { return lent(x, x.mutable_data_ptr()); }
inline const void* data(const Maybe& x) { return x.has_value() ? data(*x) : nullptr; }
inline const float* floats(const Tensor& x) { return static_cast<const float*>(data(x)); }
inline const float* floats(const Maybe& x) { return static_cast<const float*>(data(x)); }
inline float* mutable_floats(const Tensor& x) { return static_cast<float*>(mutable_data(x)); }
inline const int64_t* integers(const Maybe& x) { return static_cast<const int64_t*>(data(x)); }

inline Type type_of(const Tensor& x, const char* name) {
    const ScalarType type = x.scalar_type();
    MELODIA_CHECK(is_number(type), "`", name,
                  "` must be float32, bfloat16 or float16 on this backend; convert it");
    return type == ScalarType::Float      ? Type::float32
           : type == ScalarType::BFloat16 ? Type::bfloat16
                                          : Type::float16;
}

}  // namespace melodia::cuda
