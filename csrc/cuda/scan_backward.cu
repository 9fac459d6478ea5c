// The backward passes of the scans: the gradients of the gates' sums, step by step from the end, and of the
// state.
//
// A block owns hidden units: their gates, their share of dh, and the columns of W_hh that lead to them. Phase
// t reads the gradients of all gates at t + 1 (K = GH numbers per row), multiplies, which completes dh of its
// units at t, makes the gradients of their gates at t and hands them on. Phase -1 only multiplies: the
// initial state's gradient.
#include "cuda/cell.h"
#include "cuda/scan_kernels.h"

namespace melodia::cuda {
namespace {

template <class S, bool Lstm>
MELODIA_DEVICE void run(const ScanLaunch<ScanCellBackward>& a, const Part<ScanCellBackward>& p, int block,
                        unsigned char* shared) {
    constexpr int G = Lstm ? 4 : 3;
    const ScanCellBackward& cell = p.cell;
    const Scratch<S> scratch(p.tiling, shared);
    const int H = static_cast<int>(cell.H), K = G * H;
    const Place place = place_of(a, p, block, K);
    const auto* weight_hh_t = static_cast<const S*>(cell.weight_hh_t);
    const auto* grad_output = static_cast<const S*>(cell.grad_output);
    const auto* gates = static_cast<const S*>(cell.gates);
    const auto* output = static_cast<const S*>(cell.output);
    auto* grad_gates_x = static_cast<S*>(cell.grad_gates_x);
    auto* grad_gates_h = static_cast<S*>(cell.grad_gates_h);

    const auto weight_row = [&](int row) -> const S* {
        return row < place.units ? weight_hh_t + int64_t{place.unit + row} * K : nullptr;
    };
    const auto bring_weights = [&](S* to, int k0, int width) {
        stage(to, scratch.layout.weights_stride, p.tiling.rows(), k0, width, K, weight_row);
    };
    if (p.tiling.resident && p.from > p.to) {  // without steps nobody would wait for them
        bring_weights(scratch.weights(0), 0, p.tiling.depth);
        commit_copies();
    }
    if (thread() == 0) *scratch.flag() = 1;
    clear_spare_vectors(scratch, place.rows);

    int units[kItems], rows[kItems];
    float dh[kItems] = {}, dc[kItems] = {};
    const bool begins = p.from == cell.T - 1;
    const float* dh_before = begins ? cell.grad_h_n : cell.grad_h;
    const float* dc_before = begins ? cell.grad_c_n : cell.grad_c;
    MELODIA_UNROLL
    for (int i = 0; i < kItems; ++i) {
        const int at = static_cast<int>(thread()) + i * kThreads;
        units[i] = at % place.units;
        rows[i] = at / place.units < place.rows ? at / place.units : -1;
        if (rows[i] < 0) continue;
        const int64_t state = (place.row + rows[i]) * H + place.unit + units[i];
        if (dh_before != nullptr) dh[i] = dh_before[state];
        if (Lstm && dc_before != nullptr) dc[i] = dc_before[state];
    }

    for (int64_t t = p.from; t >= p.to; --t) {
        const auto epoch =
            static_cast<uint32_t>(p.from - t);  // of the gradients at t + 1, if this launch made them
        float kept[kItems][4] = {}, later[kItems] = {}, before[kItems] = {}, from_output[kItems] = {};
        bool live[kItems] = {};
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i) {  // on its way while the others finish
            if (rows[i] < 0 || t < 0) continue;
            const int64_t b = place.row + rows[i], at = t * a.B + b, unit = place.unit + units[i];
            live[i] = lives(cell.lengths, b, t);
            if (!live[i]) continue;
            MELODIA_UNROLL
            for (int gate = 0; gate < 4; ++gate) kept[i][gate] = to_float(gates[(at * 4 + gate) * H + unit]);
            if (Lstm) {
                later[i] = cell.cells[at * H + unit];
                before[i] = t > 0 ? cell.cells[(at - a.B) * H + unit] : cell.c[b * H + unit];
            } else {
                before[i] = t > 0 ? to_float(output[(at - a.B) * H + unit]) : cell.h[b * H + unit];
            }
            if (grad_output != nullptr) from_output[i] = to_float(grad_output[at * H + unit]);
        }
        if (t + 1 < cell.T) {
            if (epoch > 0) await(place.channel, epoch, p.tiling.unit_blocks, scratch.flag());
            const auto bring_vectors = [&](S* to, int k0, int width) {
                const int stride = scratch.layout.vectors_stride;
                if (epoch > 0 && place.channel.words != nullptr) {
                    stage_words(to, stride, place.rows, k0, width, K, place.channel, epoch, scratch.flag());
                } else {
                    const S* from = grad_gates_h + ((t + 1) * a.B + place.row) * K;
                    stage(to, stride, place.rows, k0, width, K,
                          [&](int row) { return from + int64_t{row} * K; });
                }
            };
            if (!multiply(scratch, bring_vectors, bring_weights)) return;
            int place_of_sum[kItems];
            float sum[kItems][1] = {};
            MELODIA_UNROLL
            for (int i = 0; i < kItems; ++i)
                place_of_sum[i] = rows[i] < 0 ? -1 : scratch.sum_at(units[i], rows[i]);
            add_sums<1>(scratch, place_of_sum, sum);
            MELODIA_UNROLL
            for (int i = 0; i < kItems; ++i) dh[i] += sum[i][0];
        }
        if (t < 0) break;
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i) {
            if (rows[i] < 0) continue;
            const int64_t b = place.row + rows[i], at = t * a.B + b, unit = place.unit + units[i];
            float grads[4] = {};  // of the sums; of an LSTM's four gates, of a GRU's r, z, n_h and n_x
            if (live[i]) {
                const float* k = kept[i];
                if constexpr (Lstm) {
                    const auto made = melodia::lstm_backward(k[0], k[1], k[2], k[3], later[i], before[i],
                                                             dh[i] + from_output[i], dc[i]);
                    grads[0] = made.i, grads[1] = made.f, grads[2] = made.g, grads[3] = made.o;
                    dh[i] = 0.0f;
                    dc[i] = made.c;
                } else {
                    const auto made =
                        melodia::gru_backward(k[0], k[1], k[2], k[3], before[i], dh[i] + from_output[i]);
                    grads[0] = made.r, grads[1] = made.z, grads[2] = made.n_h, grads[3] = made.n_x;
                    dh[i] = made.h;
                }
            }
            MELODIA_UNROLL
            for (int gate = 0; gate < G; ++gate) {
                const S made = from_float<S>(grads[gate]);
                store_data(grad_gates_h + (at * G + gate) * H + unit, made);
                if (!Lstm)
                    grad_gates_x[(at * G + gate) * H + unit] = gate < 2 ? made : from_float<S>(grads[3]);
                if (place.channel.words != nullptr && t > p.to)
                    post(place.channel, epoch + 1, int64_t{rows[i]} * K + gate * H + unit, made);
            }
        }
        if (t > p.to) announce(place.channel);
    }
    MELODIA_UNROLL
    for (int i = 0; i < kItems; ++i) {
        if (rows[i] < 0) continue;
        const int64_t state = (place.row + rows[i]) * H + place.unit + units[i];
        cell.grad_h[state] = dh[i];
        if (Lstm) cell.grad_c[state] = dc[i];
    }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1) scan_backward_kernel(const ScanLaunch<ScanCellBackward> a) {
    MELODIA_SHARED(shared);
    int at;
    const Part<ScanCellBackward>& p = a.parts[part_of(a, &at)];
    if (p.cell.lstm)
        run<S, true>(a, p, at, shared);
    else
        run<S, false>(a, p, at, shared);
}

}  // namespace

template <>
Kernels<float>::Backward Kernels<float>::backward() {
    return scan_backward_kernel<float>;
}
template <>
Kernels<Tf32>::Backward Kernels<Tf32>::backward() {
    return scan_backward_kernel<Tf32>;
}
template <>
Kernels<Bf16>::Backward Kernels<Bf16>::backward() {
    return scan_backward_kernel<Bf16>;
}
template <>
Kernels<Half>::Backward Kernels<Half>::backward() {
    return scan_backward_kernel<Half>;
}

}  // namespace melodia::cuda
