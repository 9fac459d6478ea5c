// lstm_scan, gru_scan and pair_scan forward: one launch for all steps, or for some of them.
//
// A block keeps the weights of its hidden units in shared memory and their state in registers. A step: read h
// of all units, multiply, make the gates and the state of the own units, hand h on (exchange.h).
#include "cuda/cell.h"
#include "cuda/scan_kernels.h"

namespace melodia::cuda {
namespace {

template <class S, bool Lstm>
MELODIA_DEVICE void run(const ScanLaunch<ScanCell>& a, const Part<ScanCell>& p, int block,
                        unsigned char* shared) {
    constexpr int G = Lstm ? 4 : 3;
    const ScanCell& cell = p.cell;
    const Scratch<S> scratch(p.tiling, shared);
    const int H = static_cast<int>(cell.H);
    const Place place = place_of(a, p, block, H);
    const auto* weight_hh = static_cast<const S*>(cell.weight_hh);
    const auto* gates_x = static_cast<const S*>(cell.gates_x);
    auto* output = static_cast<S*>(cell.output);
    auto* gates = static_cast<S*>(cell.gates);

    const auto weight_row = [&](int row) -> const S* {
        const int unit = row / 16 * (16 / G) + row % 16 / G, gate = row % 16 % G;
        return row % 16 < 16 / G * G && unit < place.units
                   ? weight_hh + (int64_t{gate} * H + place.unit + unit) * H
                   : nullptr;
    };
    const auto bring_weights = [&](S* to, int k0, int width) {
        stage(to, scratch.layout.weights_stride, p.tiling.rows(), k0, width, H, weight_row);
    };
    if (p.tiling.resident && p.from < p.to) {  // without steps nobody would wait for them
        bring_weights(scratch.weights(0), 0, p.tiling.depth);
        commit_copies();
    }
    for (int at = static_cast<int>(thread()); at < place.units * G; at += kThreads)
        scratch.bias()[scratch.row_of(at / G, at % G, G)] = cell.bias_hh[at % G * H + place.unit + at / G];
    if (thread() == 0) *scratch.flag() = 1;
    clear_spare_vectors(scratch, place.rows);

    // The state of this thread's units: item i is unit `units[i]` of row `rows[i]`.
    int units[kItems], rows[kItems];
    float h[kItems] = {}, c[kItems] = {};
    const float* h_before = p.from == 0 ? cell.h : cell.h_n;
    const float* c_before = p.from == 0 ? cell.c : cell.c_n;
    MELODIA_UNROLL
    for (int i = 0; i < kItems; ++i) {
        const int at = static_cast<int>(thread()) + i * kThreads;
        units[i] = at % place.units;
        rows[i] = at / place.units < place.rows ? at / place.units : -1;
        if (rows[i] < 0) continue;
        const int64_t state = (place.row + rows[i]) * H + place.unit + units[i];
        h[i] = h_before[state];
        if (Lstm) c[i] = c_before[state];
    }
    // What was brought here is complete at the first barrier inside multiply.

    for (int64_t t = p.from; t < p.to; ++t) {
        const auto epoch = static_cast<uint32_t>(t - p.from);  // of h(t - 1), if this launch made it
        float x[kItems][G] = {};
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i) {  // on its way while the others finish
            if (rows[i] < 0) continue;
            const S* from = gates_x + (t * a.B + place.row + rows[i]) * G * H + place.unit + units[i];
            MELODIA_UNROLL
            for (int gate = 0; gate < G; ++gate) x[i][gate] = to_float(from[int64_t{gate} * H]);
        }
        if (epoch > 0) await(place.channel, epoch, p.tiling.unit_blocks, scratch.flag());
        const auto bring_vectors = [&](S* to, int k0, int width) {
            const int stride = scratch.layout.vectors_stride;
            if (t == 0) {
                stage_values(to, stride, place.rows, k0, width, H, [&](int row, int k) {
                    return from_float<S>(cell.h[(place.row + row) * H + k]);
                });
            } else if (epoch > 0 && place.channel.words != nullptr) {
                stage_words(to, stride, place.rows, k0, width, H, place.channel, epoch, scratch.flag());
            } else {
                const S* before = output + ((t - 1) * a.B + place.row) * H;
                stage(to, stride, place.rows, k0, width, H,
                      [&](int row) { return before + int64_t{row} * H; });
            }
        };
        if (!multiply(scratch, bring_vectors, bring_weights)) return;
        int place_of_sum[kItems];
        float sum[kItems][G] = {};
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i)
            place_of_sum[i] = rows[i] < 0 ? -1 : scratch.sum_at(scratch.row_of(units[i], 0, G), rows[i]);
        add_sums<G>(scratch, place_of_sum, sum);
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i) {
            if (rows[i] < 0) continue;
            const int64_t b = place.row + rows[i], at = t * a.B + b, unit = place.unit + units[i];
            const bool live = lives(cell.lengths, b, t);
            float s[G];
            MELODIA_UNROLL
            for (int gate = 0; gate < G; ++gate)
                s[gate] = sum[i][gate] + scratch.bias()[scratch.row_of(units[i], gate, G)];
            float kept[4] = {};
            if constexpr (Lstm) {
                const auto made = melodia::lstm_forward(s[0] + x[i][0], s[1] + x[i][1], s[2] + x[i][2],
                                                        s[3] + x[i][3], c[i]);
                if (live) {
                    h[i] = made.h;
                    c[i] = made.c;
                    kept[0] = made.i, kept[1] = made.f, kept[2] = made.g, kept[3] = made.o;
                }
                if (cell.cells != nullptr) cell.cells[at * H + unit] = live ? made.c : 0.0f;
            } else {
                const auto made = melodia::gru_forward(s[0] + x[i][0], s[1] + x[i][1], x[i][2], s[2], h[i]);
                if (live) {
                    h[i] = made.h;
                    kept[0] = made.r, kept[1] = made.z, kept[2] = made.n, kept[3] = s[2];
                }
            }
            const S made = from_float<S>(live ? h[i] : 0.0f);
            store_data(output + at * H + unit, made);
            if (place.channel.words != nullptr && t + 1 < p.to)
                post(place.channel, epoch + 1, int64_t{rows[i]} * H + unit, made);
            if (gates == nullptr) continue;
            MELODIA_UNROLL
            for (int gate = 0; gate < 4; ++gate)
                gates[(at * 4 + gate) * H + unit] = from_float<S>(kept[gate]);
        }
        if (t + 1 < p.to) announce(place.channel);
    }
    MELODIA_UNROLL
    for (int i = 0; i < kItems; ++i) {
        if (rows[i] < 0) continue;
        const int64_t state = (place.row + rows[i]) * H + place.unit + units[i];
        cell.h_n[state] = h[i];
        if (Lstm) cell.c_n[state] = c[i];
    }
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1) scan_forward_kernel(const ScanLaunch<ScanCell> a) {
    MELODIA_SHARED(shared);
    int at;
    const Part<ScanCell>& p = a.parts[part_of(a, &at)];
    if (p.cell.lstm)
        run<S, true>(a, p, at, shared);
    else
        run<S, false>(a, p, at, shared);
}

}  // namespace

template <>
Kernels<float>::Forward Kernels<float>::forward() {
    return scan_forward_kernel<float>;
}
template <>
Kernels<Tf32>::Forward Kernels<Tf32>::forward() {
    return scan_forward_kernel<Tf32>;
}
template <>
Kernels<Bf16>::Forward Kernels<Bf16>::forward() {
    return scan_forward_kernel<Bf16>;
}
template <>
Kernels<Half>::Forward Kernels<Half>::forward() {
    return scan_forward_kernel<Half>;
}

}  // namespace melodia::cuda
