// lstm_step and gru_step on the CPU: from tensors to the kernel table.
#include <tuple>

#include "cpu/steps.h"

namespace melodia::cpu {

std::tuple<Tensor, Tensor> lstm_step(Tensor gates_x, Tensor h, Tensor c, Tensor weight_hh, Tensor bias_hh) {
    MELODIA_CHECK(h.dim() == 2, "`h` must have the shape [B, H] (received ", text(sizes_of(h)), ")");
    const int64_t B = h.size(0), H = h.size(1);
    gates_x = checked(gates_x, "gates_x", {B, 4 * H});
    h = checked(h, "h", {B, H});
    c = checked(c, "c", {B, H});
    weight_hh = checked(weight_hh, "weight_hh", {4 * H, H});
    bias_hh = checked(bias_hh, "bias_hh", {4 * H});
    Tensor h_out = empty_like(h, {B, H}), c_out = empty_like(h, {B, H});
    const Step step{B,
                    H,
                    floats(gates_x),
                    floats(h),
                    floats(c),
                    floats(weight_hh),
                    floats(bias_hh),
                    mutable_floats(h_out),
                    mutable_floats(c_out)};
    run_step(step, 4);
    return {h_out, c_out};
}

Tensor gru_step(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh) {
    MELODIA_CHECK(h.dim() == 2, "`h` must have the shape [B, H] (received ", text(sizes_of(h)), ")");
    const int64_t B = h.size(0), H = h.size(1);
    gates_x = checked(gates_x, "gates_x", {B, 3 * H});
    h = checked(h, "h", {B, H});
    weight_hh = checked(weight_hh, "weight_hh", {3 * H, H});
    bias_hh = checked(bias_hh, "bias_hh", {3 * H});
    Tensor h_out = empty_like(h, {B, H});
    const Step step{B,
                    H,
                    floats(gates_x),
                    floats(h),
                    nullptr,
                    floats(weight_hh),
                    floats(bias_hh),
                    mutable_floats(h_out),
                    nullptr};
    run_step(step, 3);
    return h_out;
}

STABLE_TORCH_LIBRARY_IMPL(melodia, CPU, m) {
    m.impl("lstm_step", TORCH_BOX(&lstm_step));
    m.impl("gru_step", TORCH_BOX(&gru_step));
}

}  // namespace melodia::cpu
