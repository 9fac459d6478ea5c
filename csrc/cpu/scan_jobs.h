// Scans as jobs that any thread may run for a range of rows: checks, packing, allocation.
//
// E is the element type: float or bf16. gates_x and weight_hh have it, and so have the outputs and what is
// kept of the gates. States and biases may be float32 or bf16; inside they are float32.
#pragma once

#include "cpu/tensors.h"

namespace melodia::cpu {

template <class E>
const ScanKernels<E>& scan_kernels() {
    if constexpr (type_of<E> == ScalarType::Float)
        return kernels().scans_float;
    else
        return kernels().scans_bf16;
}

// Calls f with a float or a bf16, by the type of the tensor.
template <class F>
auto for_type_of(const Tensor& x, const char* name, F f) {
    const ScalarType type = x.scalar_type();
    MELODIA_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "`", name,
                  "` must be float32 or bfloat16 on this backend; convert it");
    return type == ScalarType::Float ? f(float{}) : f(bf16{});
}

// Runs the jobs over all rows, the rows shared among torch's threads. Rows do not depend on each other.
template <class... Job>
void run(int64_t B, const Tensor& like, const Job&... jobs) {
    Tensor live = torch::stable::new_empty(like, Sizes{B}, ScalarType::Long);
    int64_t* scratch = live.mutable_data_ptr<int64_t>();
    in_parallel(B, 1, [&](int64_t begin, int64_t end) { (jobs.run(begin, end, scratch + begin), ...); });
}

// Room for packed weights: panels x depth x width numbers.
template <class E>
Tensor packed_like(const Tensor& weight, int64_t panels, int64_t depth, int64_t width) {
    const int64_t step = scan_kernels<E>().depth_step;
    if (step == 1) return empty_like(weight, {panels, depth, width});
    return empty_like(weight, {panels, round_up(depth, step), width}, ScalarType::BFloat16);
}

template <class E>
Tensor pack_forward(const Tensor& weight_hh, int64_t G, int64_t H) {
    const int64_t panel = kernels().unit_panel, panels = round_up(H, panel) / panel;
    Tensor packed = packed_like<E>(weight_hh, panels, H, G * panel);
    in_parallel(panels, 1, [&](int64_t begin, int64_t end) {
        scan_kernels<E>().pack_forward(elements<E>(weight_hh), G, H, packed.mutable_data_ptr(), begin, end);
    });
    return packed;
}

template <class E>
Tensor pack_backward(const Tensor& weight_hh, int64_t G, int64_t H) {
    const int64_t panel = kernels().backward_panel, panels = round_up(H, panel) / panel;
    Tensor packed = packed_like<E>(weight_hh, panels, G * H, panel);
    in_parallel(panels, 1, [&](int64_t begin, int64_t end) {
        scan_kernels<E>().pack_backward(elements<E>(weight_hh), G, H, packed.mutable_data_ptr(), begin, end);
    });
    return packed;
}

// A gradient [B, H] as the kernels want it: rows padded with zeros to `width`; zero where there is none.
inline Tensor working_gradient(const Maybe& grad, const char* name, const Tensor& like, int64_t B, int64_t H,
                               int64_t width) {
    Tensor work = torch::stable::new_zeros(like, Sizes{B, width}, ScalarType::Float);
    if (grad.has_value()) {
        const Tensor from = checked_floats(*grad, name, {B, H});
        for (int64_t b = 0; b < B; ++b)
            std::copy_n(floats(from) + b * H, H, mutable_floats(work) + b * width);
    }
    return work;
}

inline Tensor without_padding(const Tensor& work, int64_t B, int64_t H) {
    const int64_t width = work.size(1);
    if (width == H) return work;
    Tensor out = empty_like(work, {B, H});
    for (int64_t b = 0; b < B; ++b) std::copy_n(floats(work) + b * width, H, mutable_floats(out) + b * H);
    return out;
}

inline Extent extent_of(const Tensor& time_major, const char* name, int64_t gates, const Tensor& weight_hh) {
    MELODIA_CHECK(time_major.dim() == 3, "`", name, "` must have the shape [T, B, ", gates, "H] (received ",
                  text(sizes_of(time_major)), ")");
    MELODIA_CHECK(weight_hh.dim() == 2, "`weight_hh` must have the shape [GH, H] (received ",
                  text(sizes_of(weight_hh)), ")");
    return {time_major.size(0), time_major.size(1), weight_hh.size(1)};
}

template <class E>
struct LstmJob {
    Tensor gates_x, h, operand, c, bias_hh, packed, output, h_n, c_n, gates, cells;
    Maybe lengths;
    LstmScan<E> scan;
    ScalarType h_type, c_type;

    LstmJob(const Tensor& gates_x_, const Tensor& h_, const Tensor& c_, const Tensor& weight_hh,
            const Tensor& bias_hh_, const Maybe& lengths_, int64_t keep)
        : h_type(h_.scalar_type()), c_type(c_.scalar_type()) {
        constexpr ScalarType type = type_of<E>;
        const auto [T, B, H] = extent_of(gates_x_, "gates_x", 4, weight_hh);
        gates_x = checked(gates_x_, "gates_x", {T, B, 4 * H}, type);
        h = checked_floats(h_, "h", {B, H});
        operand = converted(h, type);
        c = checked_floats(c_, "c", {B, H});
        packed = pack_forward<E>(checked(weight_hh, "weight_hh", {4 * H, H}, type), 4, H);
        bias_hh = checked_floats(bias_hh_, "bias_hh", {4 * H});
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        output = empty_like(gates_x, {T, B, H}, type);
        h_n = empty_like(gates_x, {B, H});
        c_n = empty_like(gates_x, {B, H});
        gates = empty_like(gates_x, keep == kGates ? Sizes{T, B, 4 * H} : Sizes{0}, type);
        cells = empty_like(gates_x, keep > kNothing ? Sizes{T, B, H} : Sizes{0});
        scan = {T,
                B,
                H,
                elements<E>(gates_x),
                floats(h),
                elements<E>(operand),
                floats(c),
                packed.const_data_ptr(),
                floats(bias_hh),
                integers(lengths),
                mutable_elements<E>(output),
                mutable_floats(h_n),
                mutable_floats(c_n),
                keep == kGates ? mutable_elements<E>(gates) : nullptr,
                keep > kNothing ? mutable_floats(cells) : nullptr};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const {
        scan_kernels<E>().lstm_scan(scan, begin, end, live);
    }
    Tensor last_h() const { return converted(h_n, h_type); }
    Tensor last_c() const { return converted(c_n, c_type); }
};

template <class E>
struct GruJob {
    Tensor gates_x, h, operand, bias_hh, packed, output, h_n, gates;
    Maybe lengths;
    GruScan<E> scan;
    ScalarType h_type;

    GruJob(const Tensor& gates_x_, const Tensor& h_, const Tensor& weight_hh, const Tensor& bias_hh_,
           const Maybe& lengths_, int64_t keep)
        : h_type(h_.scalar_type()) {
        constexpr ScalarType type = type_of<E>;
        const auto [T, B, H] = extent_of(gates_x_, "gates_x", 3, weight_hh);
        gates_x = checked(gates_x_, "gates_x", {T, B, 3 * H}, type);
        h = checked_floats(h_, "h", {B, H});
        operand = converted(h, type);
        packed = pack_forward<E>(checked(weight_hh, "weight_hh", {3 * H, H}, type), 3, H);
        bias_hh = checked_floats(bias_hh_, "bias_hh", {3 * H});
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        output = empty_like(gates_x, {T, B, H}, type);
        h_n = empty_like(gates_x, {B, H});
        gates = empty_like(gates_x, keep == kGates ? Sizes{T, B, 4 * H} : Sizes{0}, type);
        scan = {T,
                B,
                H,
                elements<E>(gates_x),
                floats(h),
                elements<E>(operand),
                packed.const_data_ptr(),
                floats(bias_hh),
                integers(lengths),
                mutable_elements<E>(output),
                mutable_floats(h_n),
                keep == kGates ? mutable_elements<E>(gates) : nullptr};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const {
        scan_kernels<E>().gru_scan(scan, begin, end, live);
    }
    Tensor last_h() const { return converted(h_n, h_type); }
};

template <class E>
struct LstmBackwardJob {
    Tensor gates, cells, c, packed, grad_gates, grad_h, grad_c;
    Maybe grad_output, lengths;
    LstmScanBackward<E> scan;

    LstmBackwardJob(const Maybe& grad_output_, const Maybe& grad_h_n, const Maybe& grad_c_n,
                    const Tensor& gates_, const Tensor& cells_, const Tensor& c_, const Tensor& weight_hh,
                    const Maybe& lengths_) {
        constexpr ScalarType type = type_of<E>;
        const auto [T, B, H] = extent_of(gates_, "gates", 4, weight_hh);
        gates = checked(gates_, "gates", {T, B, 4 * H}, type);
        cells = checked(cells_, "cells", {T, B, H});
        c = checked_floats(c_, "c", {B, H});
        packed = pack_backward<E>(checked(weight_hh, "weight_hh", {4 * H, H}, type), 4, H);
        grad_output = checked(grad_output_, "grad_output", {T, B, H}, type);
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        grad_gates = empty_like(gates, {T, B, 4 * H}, type);
        grad_h = working_gradient(grad_h_n, "grad_h_n", gates, B, H, round_up(H, kernels().backward_panel));
        grad_c = working_gradient(grad_c_n, "grad_c_n", gates, B, H, H);
        scan = {T,
                B,
                H,
                elements<E>(grad_output),
                elements<E>(gates),
                floats(cells),
                floats(c),
                packed.const_data_ptr(),
                integers(lengths),
                mutable_elements<E>(grad_gates),
                mutable_floats(grad_h),
                mutable_floats(grad_c)};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const {
        scan_kernels<E>().lstm_scan_backward(scan, begin, end, live);
    }
    Tensor h_gradient() const { return without_padding(grad_h, scan.B, scan.H); }
};

template <class E>
struct GruBackwardJob {
    Tensor gates, output, operand, packed, grad_gates_x, grad_gates_h, grad_h;
    Maybe grad_output, lengths;
    GruScanBackward<E> scan;

    GruBackwardJob(const Maybe& grad_output_, const Maybe& grad_h_n, const Tensor& gates_,
                   const Tensor& output_, const Tensor& h, const Tensor& weight_hh, const Maybe& lengths_) {
        constexpr ScalarType type = type_of<E>;
        const auto [T, B, H] = extent_of(gates_, "gates", 4, weight_hh);
        gates = checked(gates_, "gates", {T, B, 4 * H}, type);
        output = checked(output_, "output", {T, B, H}, type);
        operand = converted(checked_floats(h, "h", {B, H}), type);
        packed = pack_backward<E>(checked(weight_hh, "weight_hh", {3 * H, H}, type), 3, H);
        grad_output = checked(grad_output_, "grad_output", {T, B, H}, type);
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        grad_gates_x = empty_like(gates, {T, B, 3 * H}, type);
        grad_gates_h = empty_like(gates, {T, B, 3 * H}, type);
        grad_h = working_gradient(grad_h_n, "grad_h_n", gates, B, H, round_up(H, kernels().backward_panel));
        scan = {T,
                B,
                H,
                elements<E>(grad_output),
                elements<E>(gates),
                elements<E>(output),
                elements<E>(operand),
                packed.const_data_ptr(),
                integers(lengths),
                mutable_elements<E>(grad_gates_x),
                mutable_elements<E>(grad_gates_h),
                mutable_floats(grad_h)};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const {
        scan_kernels<E>().gru_scan_backward(scan, begin, end, live);
    }
    Tensor h_gradient() const { return without_padding(grad_h, scan.B, scan.H); }
};

}  // namespace melodia::cpu
