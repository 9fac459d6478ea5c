// hybrid_step on the CPU: a whole stack advanced by one token in one call.
#include <cmath>
#include <tuple>

#include "cpu/steps.h"
#include "lists.h"

namespace melodia::cpu {
namespace {

constexpr float norm_epsilon = 1e-5f;

Tensor next(Taker& from, const Sizes& sizes) { return checked(from.next(), from.name(), sizes); }

struct Stack {
    int64_t B, H;
    Taker gates_x, state, weights;
    Tensors after;

    // x [B, K] weight^T [N, K] + bias [N].
    Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
        const int64_t N = weight.size(0), K = weight.size(1);
        Tensor out = empty_like(x, {B, N});
        const Linear a{B, K, N, floats(x), floats(weight), floats(bias), mutable_floats(out)};
        const int64_t groups = round_up(N, linear_group) / linear_group;
        share_out(groups, B * K * linear_group,
                  [&](int64_t begin, int64_t end) { kernels().linear(a, begin, end); });
        return out;
    }

    // One cell of a level; below: what it reads, null at the bottom.
    Tensor cell(int64_t G, const Tensor* below) {
        Tensor gates;
        if (below == nullptr) {
            gates = next(gates_x, {B, G * H});
        } else {
            const Tensor weight_ih = next(weights, {G * H, H}), bias_ih = next(weights, {G * H});
            gates = linear(*below, weight_ih, bias_ih);
        }
        const Tensor weight_hh = next(weights, {G * H, H}), bias_hh = next(weights, {G * H});
        const Tensor h = next(state, {B, H});
        Maybe c, c_out;
        Tensor h_out = empty_like(h, {B, H});
        after.push_back(h_out);
        if (G == 4) {
            c = next(state, {B, H});
            c_out = empty_like(h, {B, H});
            after.push_back(*c_out);
        }
        const Step step{B,
                        H,
                        floats(gates),
                        floats(h),
                        floats(c),
                        floats(weight_hh),
                        floats(bias_hh),
                        mutable_floats(h_out),
                        c_out.has_value() ? mutable_floats(*c_out) : nullptr};
        run_step(step, G);
        return h_out;
    }

    // The outputs of both halves of a pair as one.
    Tensor join(int64_t level, const Tensor& h_lstm, const Tensor& h_gru) {
        const float *a = floats(h_lstm), *b = floats(h_gru);
        if (level == Level::sum) {
            Tensor out = empty_like(h_lstm, {B, H});
            for (int64_t k = 0; k < B * H; ++k) mutable_floats(out)[k] = a[k] + b[k];
            return out;
        }
        const Tensor weight = next(weights, {H, 2 * H}), bias = next(weights, {H});
        Tensor both = empty_like(h_lstm, {B, 2 * H});
        float* to = mutable_floats(both);
        for (int64_t row = 0; row < B; ++row) {
            std::copy_n(a + row * H, H, to + 2 * row * H);
            std::copy_n(b + row * H, H, to + (2 * row + 1) * H);
        }
        Tensor mixed = linear(both, weight, bias);
        if (level == Level::gated) {
            float* m = mutable_floats(mixed);
            for (int64_t k = 0; k < B * H; ++k) m[k] = b[k] + (a[k] - b[k]) / (1.0f + std::exp(-m[k]));
        }
        return mixed;
    }

    // LayerNorm of every row.
    Tensor norm(const Tensor& x) {
        const Tensor gain = next(weights, {H}), bias = next(weights, {H});
        Tensor out = empty_like(x, {B, H});
        for (int64_t row = 0; row < B; ++row) {
            const float* from = floats(x) + row * H;
            float* to = mutable_floats(out) + row * H;
            double mean = 0.0, square = 0.0;
            for (int64_t k = 0; k < H; ++k) mean += from[k];
            mean /= static_cast<double>(H);
            for (int64_t k = 0; k < H; ++k) square += (from[k] - mean) * (from[k] - mean);
            const double scale = 1.0 / std::sqrt(square / static_cast<double>(H) + norm_epsilon);
            for (int64_t k = 0; k < H; ++k)
                to[k] = static_cast<float>((from[k] - mean) * scale) * floats(gain)[k] + floats(bias)[k];
        }
        return out;
    }
};

Tensor copy_of(const Tensor& x) {
    Tensor out = empty_like(x, sizes_of(x));
    std::copy_n(floats(x), x.numel(), mutable_floats(out));
    return out;
}

}  // namespace

std::tuple<Tensor, Tensors> hybrid_step(Tensors gates_x, Tensors state, Tensors weights,
                                        std::vector<int64_t> levels, bool layer_norm, bool residual) {
    MELODIA_CHECK(!levels.empty() && !state.empty(), "a stack has one level at least (received none)");
    MELODIA_CHECK(state[0].dim() == 2, "`state` must be tensors of the shape [B, H] (received ",
                  text(sizes_of(state[0])), ")");
    Stack stack{state[0].size(0),      state[0].size(1),          Taker(gates_x, "gates_x"),
                Taker(state, "state"), Taker(weights, "weights"), {}};
    Maybe x, below;  // a level's output, and what the next one reads
    for (const int64_t level : levels) {
        check_level(level);
        const Tensor* from = below.has_value() ? &*below : nullptr;
        Tensor y;
        if (level == Level::lstm || level == Level::gru) {
            y = stack.cell(level == Level::lstm ? 4 : 3, from);
        } else {
            const Tensor h_lstm = stack.cell(4, from), h_gru = stack.cell(3, from);
            y = stack.join(level, h_lstm, h_gru);
        }
        if (residual && x.has_value()) {
            Tensor added = empty_like(y, sizes_of(y));
            for (int64_t k = 0; k < y.numel(); ++k) mutable_floats(added)[k] = floats(y)[k] + floats(*x)[k];
            y = added;
        }
        x = y;
        below = layer_norm ? stack.norm(y) : y;
    }
    stack.gates_x.finish();
    stack.state.finish();
    stack.weights.finish();
    return {copy_of(*below), stack.after};
}

STABLE_TORCH_LIBRARY_IMPL(melodia, CPU, m) { m.impl("hybrid_step", TORCH_BOX(&hybrid_step)); }

}  // namespace melodia::cpu
