// The scans without any exchange: a block takes a row of the batch and makes all its steps alone, the weights
// from L2 at every step. Slow and safe. It follows every resident launch and does nothing unless that gave
// up, so that nobody has to ask the GPU how it went: a launch that is being captured into a graph could not.
#include "cuda/cell.h"
#include "cuda/rescues.h"
#include "cuda/scan_kernels.h"

namespace melodia::cuda {
namespace {

template <class S, bool Lstm>
MELODIA_DEVICE void run_forward(const ScanLaunch<ScanCell>& a, const ScanCell& cell, int64_t b,
                                unsigned char* shared) {
    constexpr int G = Lstm ? 4 : 3;
    const int64_t H = cell.H;
    auto* operand = reinterpret_cast<float*>(shared);  // h as the product reads it [H]
    float* sums = operand + H;                         // W_hh h + b_hh [GH]
    const auto* weight_hh = static_cast<const S*>(cell.weight_hh);
    const auto* gates_x = static_cast<const S*>(cell.gates_x);
    auto* output = static_cast<S*>(cell.output);
    auto* gates = static_cast<S*>(cell.gates);
    const int64_t me = thread();
    for (int64_t k = me; k < H; k += kThreads) {
        cell.h_n[b * H + k] = cell.h[b * H + k];
        if (Lstm) cell.c_n[b * H + k] = cell.c[b * H + k];
        operand[k] = to_float(from_float<S>(cell.h[b * H + k]));
    }
    for (int64_t t = 0; t < cell.T; ++t) {
        const int64_t at = t * a.B + b;
        const bool live = lives(cell.lengths, b, t);
        MELODIA_SYNC("rows: state ready");
        for (int64_t row = warp(); live && row < G * H; row += kWarps) {
            float sum = 0.0f;
            for (int64_t k = lane(); k < H; k += 32) sum += to_float(weight_hh[row * H + k]) * operand[k];
            sum = warp_sum(sum);
            if (lane() == 0) sums[row] = sum + cell.bias_hh[row];
        }
        MELODIA_SYNC("rows: sums ready");
        for (int64_t unit = me; unit < H; unit += kThreads) {
            float kept[4] = {}, h = 0.0f, c = 0.0f;
            if (live) {
                float s[4], x[4];
                for (int gate = 0; gate < G; ++gate) {
                    s[gate] = sums[gate * H + unit];
                    x[gate] = to_float(gates_x[(at * G + gate) * H + unit]);
                }
                if constexpr (Lstm) {
                    const auto made = melodia::lstm_forward(s[0] + x[0], s[1] + x[1], s[2] + x[2],
                                                            s[3] + x[3], cell.c_n[b * H + unit]);
                    kept[0] = made.i, kept[1] = made.f, kept[2] = made.g, kept[3] = made.o;
                    h = made.h, c = made.c;
                    cell.c_n[b * H + unit] = c;
                } else {
                    const auto made =
                        melodia::gru_forward(s[0] + x[0], s[1] + x[1], x[2], s[2], cell.h_n[b * H + unit]);
                    kept[0] = made.r, kept[1] = made.z, kept[2] = made.n, kept[3] = s[2];
                    h = made.h;
                }
                cell.h_n[b * H + unit] = h;
                operand[unit] = to_float(from_float<S>(h));
            }
            output[at * H + unit] = from_float<S>(h);
            if (Lstm && cell.cells != nullptr) cell.cells[at * H + unit] = c;
            for (int gate = 0; gates != nullptr && gate < 4; ++gate)
                gates[(at * 4 + gate) * H + unit] = from_float<S>(kept[gate]);
        }
    }
}

template <class S, bool Lstm>
MELODIA_DEVICE void run_backward(const ScanLaunch<ScanCellBackward>& a, const ScanCellBackward& cell,
                                 int64_t b, unsigned char* shared) {
    constexpr int G = Lstm ? 4 : 3;
    const int64_t H = cell.H, K = G * H;
    auto* operand =
        reinterpret_cast<float*>(shared);  // the gradients of the sums as the product reads them [GH]
    float* dh = operand + K;               // [H]
    const auto* weight_hh_t = static_cast<const S*>(cell.weight_hh_t);
    const auto* grad_output = static_cast<const S*>(cell.grad_output);
    const auto* gates = static_cast<const S*>(cell.gates);
    const auto* output = static_cast<const S*>(cell.output);
    auto* grad_gates_x = static_cast<S*>(cell.grad_gates_x);
    auto* grad_gates_h = static_cast<S*>(cell.grad_gates_h);
    const int64_t me = thread();
    for (int64_t k = me; k < H; k += kThreads) {
        dh[k] = cell.grad_h_n != nullptr ? cell.grad_h_n[b * H + k] : 0.0f;
        if (Lstm) cell.grad_c[b * H + k] = cell.grad_c_n != nullptr ? cell.grad_c_n[b * H + k] : 0.0f;
    }
    for (int64_t t = cell.T - 1; t >= 0; --t) {
        const int64_t at = t * a.B + b;
        const bool live = lives(cell.lengths, b, t);
        MELODIA_SYNC("rows: gradients ready");
        for (int64_t unit = me; unit < H; unit += kThreads) {
            float grads[4] = {};
            if (live) {
                float k[4];
                for (int gate = 0; gate < 4; ++gate) k[gate] = to_float(gates[(at * 4 + gate) * H + unit]);
                const float total =
                    dh[unit] + (grad_output != nullptr ? to_float(grad_output[at * H + unit]) : 0.0f);
                if constexpr (Lstm) {
                    const float before = t > 0 ? cell.cells[(at - a.B) * H + unit] : cell.c[b * H + unit];
                    const auto made =
                        melodia::lstm_backward(k[0], k[1], k[2], k[3], cell.cells[at * H + unit], before,
                                               total, cell.grad_c[b * H + unit]);
                    grads[0] = made.i, grads[1] = made.f, grads[2] = made.g, grads[3] = made.o;
                    dh[unit] = 0.0f;
                    cell.grad_c[b * H + unit] = made.c;
                } else {
                    const float before =
                        t > 0 ? to_float(output[(at - a.B) * H + unit]) : cell.h[b * H + unit];
                    const auto made = melodia::gru_backward(k[0], k[1], k[2], k[3], before, total);
                    grads[0] = made.r, grads[1] = made.z, grads[2] = made.n_h, grads[3] = made.n_x;
                    dh[unit] = made.h;
                }
            }
            for (int gate = 0; gate < G; ++gate) {
                const S made = from_float<S>(grads[gate]);
                grad_gates_h[(at * G + gate) * H + unit] = made;
                if (!Lstm)
                    grad_gates_x[(at * G + gate) * H + unit] = gate < 2 ? made : from_float<S>(grads[3]);
                operand[gate * H + unit] = to_float(made);
            }
        }
        MELODIA_SYNC("rows: gates ready");
        for (int64_t unit = warp(); live && unit < H; unit += kWarps) {
            float sum = 0.0f;
            for (int64_t k = lane(); k < K; k += 32) sum += to_float(weight_hh_t[unit * K + k]) * operand[k];
            sum = warp_sum(sum);
            if (lane() == 0) dh[unit] += sum;
        }
    }
    MELODIA_SYNC("rows: state's gradients ready");
    for (int64_t k = me; k < H; k += kThreads) cell.grad_h[b * H + k] = dh[k];
}

template <class S, class Cell>
MELODIA_DEVICE void row(const ScanLaunch<Cell>& a, unsigned char* shared) {
    if (a.gave_up != nullptr) {
        if (load_relaxed(a.gave_up) == 0) return;
        count_rescue();
    }
    const int64_t rows = a.batch_end - a.batch_begin, part = block() / rows,
                  b = a.batch_begin + block() % rows;
    const Cell& cell = a.parts[part].cell;
    if constexpr (same_type<Cell, ScanCell>::value) {
        cell.lstm ? run_forward<S, true>(a, cell, b, shared) : run_forward<S, false>(a, cell, b, shared);
    } else {
        cell.lstm ? run_backward<S, true>(a, cell, b, shared) : run_backward<S, false>(a, cell, b, shared);
    }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1) scan_forward_rows(const ScanLaunch<ScanCell> a) {
    MELODIA_SHARED(shared);
    row<S>(a, shared);
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1) scan_backward_rows(const ScanLaunch<ScanCellBackward> a) {
    MELODIA_SHARED(shared);
    row<S>(a, shared);
}

}  // namespace

int64_t scan_rescues() { return rescues_counted(); }

template <>
Kernels<float>::Forward Kernels<float>::forward_rows() {
    return scan_forward_rows<float>;
}
template <>
Kernels<Tf32>::Forward Kernels<Tf32>::forward_rows() {
    return scan_forward_rows<float>;
}
template <>
Kernels<Bf16>::Forward Kernels<Bf16>::forward_rows() {
    return scan_forward_rows<Bf16>;
}
template <>
Kernels<Half>::Forward Kernels<Half>::forward_rows() {
    return scan_forward_rows<Half>;
}
template <>
Kernels<float>::Backward Kernels<float>::backward_rows() {
    return scan_backward_rows<float>;
}
template <>
Kernels<Tf32>::Backward Kernels<Tf32>::backward_rows() {
    return scan_backward_rows<float>;
}
template <>
Kernels<Bf16>::Backward Kernels<Bf16>::backward_rows() {
    return scan_backward_rows<Bf16>;
}
template <>
Kernels<Half>::Backward Kernels<Half>::backward_rows() {
    return scan_backward_rows<Half>;
}

}  // namespace melodia::cuda
