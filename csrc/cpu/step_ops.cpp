// lstm_step and gru_step on the CPU: from tensors to the kernel table.
#include <tuple>

#include "cpu/tensors.h"

namespace melodia::cpu {
namespace {

// Multiplications below which a second thread costs more than it brings.
constexpr int64_t grain = 1 << 17;

using StepKernel = void (*)(const Step&, int64_t, int64_t);

void run(StepKernel kernel, const Step& step, int64_t gates) {
    const int64_t panel = kernels().unit_panel;
    const int64_t work = std::max<int64_t>(1, step.B * gates * step.H * panel);
    in_parallel(round_up(step.H, panel) / panel, (grain + work - 1) / work,
                [&](int64_t begin, int64_t end) { kernel(step, begin, end); });
}

}  // namespace

std::tuple<Tensor, Tensor> lstm_step(Tensor gates_x, Tensor h, Tensor c, Tensor weight_hh, Tensor bias_hh) {
    MELODIA_CHECK(h.dim() == 2, "`h` must have the shape [B, H] (received ", text(shape_of(h)), ")");
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
    run(kernels().lstm_step, step, 4);
    return {h_out, c_out};
}

Tensor gru_step(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh) {
    MELODIA_CHECK(h.dim() == 2, "`h` must have the shape [B, H] (received ", text(shape_of(h)), ")");
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
    run(kernels().gru_step, step, 3);
    return h_out;
}

STABLE_TORCH_LIBRARY_IMPL(melodia, CPU, m) {
    m.impl("lstm_step", TORCH_BOX(&lstm_step));
    m.impl("gru_step", TORCH_BOX(&gru_step));
}

}  // namespace melodia::cpu
