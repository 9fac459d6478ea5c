// The kernels of one instruction set, over the Vector of the header included before this one.
//
// Everything stands in an unnamed namespace and includes no C++ standard header: what is compiled here with
// the flags of an instruction set must never be the copy that the linker keeps for code that runs before the
// check.
//
// A scan goes over its rows (sequences) only; rows do not depend on each other, so threads that share them by
// rows need no barrier. A step is the product [rows, H] x [H, G H] in register tiles over packed weights,
// with the cell's pointwise part applied to each tile while it is still in the first-level cache. The order
// of every sum depends on neither the rows nor the threads: a batch equals its rows one by one, bit for bit.
#pragma once

#include "cells.h"
#include "cpu/kernels.h"
#include "cpu/products.h"

namespace {

using melodia::cpu::bf16;
using melodia::cpu::GruScan;
using melodia::cpu::GruScanBackward;
using melodia::cpu::Linear;
using melodia::cpu::linear_group;
using melodia::cpu::Lookup;
using melodia::cpu::LstmScan;
using melodia::cpu::LstmScanBackward;
using melodia::cpu::Step;

// ---- The pointwise part of one row and one vector of units

// sums: W_hh h, [4][W]; the other pointers stand at the first of the n units, their gates H apart.
// h_state: the state that is not rounded, where h_out is; null otherwise.
template <bool Whole, class E>
MELODIA_INLINE void lstm_point(const float* sums, const E* gates_x, const float* bias, int64_t H, int64_t n,
                               const float* c, float* c_out, E* h_out, float* h_state, E* gates,
                               float* cells) {
    Vector s[4];
    for (int g = 0; g < 4; ++g) {
        s[g] = Vector::load(sums + g * W) + (load<Whole>(gates_x + g * H, n) + load<Whole>(bias + g * H, n));
    }
    const auto unit = melodia::lstm_forward(s[0], s[1], s[2], s[3], load<Whole>(c, n));
    store<Whole>(unit.c, c_out, n);
    store<Whole>(unit.h, h_out, n);
    if (h_state) store<Whole>(unit.h, h_state, n);
    if (cells) store<Whole>(unit.c, cells, n);
    if (gates) {
        store<Whole>(unit.i, gates, n);
        store<Whole>(unit.f, gates + H, n);
        store<Whole>(unit.g, gates + 2 * H, n);
        store<Whole>(unit.o, gates + 3 * H, n);
    }
}

template <bool Whole, class E>
MELODIA_INLINE void gru_point(const float* sums, const E* gates_x, const float* bias, int64_t H, int64_t n,
                              const float* h, E* h_out, float* h_state, E* gates) {
    const Vector r = Vector::load(sums) + (load<Whole>(gates_x, n) + load<Whole>(bias, n));
    const Vector z = Vector::load(sums + W) + (load<Whole>(gates_x + H, n) + load<Whole>(bias + H, n));
    const Vector n_h = Vector::load(sums + 2 * W) + load<Whole>(bias + 2 * H, n);
    const auto unit = melodia::gru_forward(r, z, load<Whole>(gates_x + 2 * H, n), n_h, load<Whole>(h, n));
    store<Whole>(unit.h, h_out, n);
    if (h_state) store<Whole>(unit.h, h_state, n);
    if (gates) {
        store<Whole>(unit.r, gates, n);
        store<Whole>(unit.z, gates + H, n);
        store<Whole>(unit.n, gates + 2 * H, n);
        store<Whole>(n_h, gates + 3 * H, n);
    }
}

template <bool Whole, class E>
MELODIA_INLINE void lstm_point_backward(const LstmScanBackward<E>& a, int64_t t, int64_t b, int64_t k,
                                        int64_t n, const float* c_before, float* grad_h) {
    const int64_t H = a.H, at = (t * a.B + b) * H + k;
    const E* gates = a.gates + (t * a.B + b) * 4 * H + k;
    E* grad_gates = a.grad_gates + (t * a.B + b) * 4 * H + k;
    Vector dh = load<Whole>(grad_h + k, n);
    if (a.grad_output) dh = dh + load<Whole>(a.grad_output + at, n);
    const auto grad = melodia::lstm_backward(load<Whole>(gates, n), load<Whole>(gates + H, n),
                                             load<Whole>(gates + 2 * H, n), load<Whole>(gates + 3 * H, n),
                                             load<Whole>(a.cells + at, n), load<Whole>(c_before + k, n), dh,
                                             load<Whole>(a.grad_c + b * H + k, n));
    store<Whole>(grad.i, grad_gates, n);
    store<Whole>(grad.f, grad_gates + H, n);
    store<Whole>(grad.g, grad_gates + 2 * H, n);
    store<Whole>(grad.o, grad_gates + 3 * H, n);
    store<Whole>(grad.c, a.grad_c + b * H + k, n);
}

template <bool Whole, class E>
MELODIA_INLINE void gru_point_backward(const GruScanBackward<E>& a, int64_t t, int64_t b, int64_t k,
                                       int64_t n, const E* h_before, float* grad_h) {
    const int64_t H = a.H, row = t * a.B + b;
    const E* gates = a.gates + row * 4 * H + k;
    E* grad_x = a.grad_gates_x + row * 3 * H + k;
    E* grad_hh = a.grad_gates_h + row * 3 * H + k;
    Vector dh = load<Whole>(grad_h + k, n);
    if (a.grad_output) dh = dh + load<Whole>(a.grad_output + row * H + k, n);
    const auto grad =
        melodia::gru_backward(load<Whole>(gates, n), load<Whole>(gates + H, n), load<Whole>(gates + 2 * H, n),
                              load<Whole>(gates + 3 * H, n), load<Whole>(h_before + k, n), dh);
    store<Whole>(grad.r, grad_x, n);
    store<Whole>(grad.z, grad_x + H, n);
    store<Whole>(grad.n_x, grad_x + 2 * H, n);
    store<Whole>(grad.r, grad_hh, n);
    store<Whole>(grad.z, grad_hh + H, n);
    store<Whole>(grad.n_h, grad_hh + 2 * H, n);
    store<Whole>(grad.h, grad_h + k, n);
}

// ---- Scans

// Whether the output is a rounded state: the state itself is then carried from step to step in h_n.
template <class E>
constexpr bool rounds = false;
template <>
constexpr bool rounds<bf16> = true;

// How many steps of row b count.
inline int64_t steps_of(const int64_t* lengths, int64_t b, int64_t T) {
    if (!lengths) return T;
    return lengths[b] < 0 ? 0 : smaller(lengths[b], T);
}

// The state of every row after its last step, where it is not kept from step to step.
template <class Scan>
void last_states(const Scan& a, int64_t begin, int64_t end) {
    if constexpr (!rounds<typename Scan::Element>) {
        for (int64_t b = begin; b < end; ++b) {
            const int64_t steps = steps_of(a.lengths, b, a.T);
            copy(steps ? a.output + ((steps - 1) * a.B + b) * a.H : a.h + b * a.H, a.h_n + b * a.H, a.H);
        }
    }
}

// Whether step t does not advance row b.
inline bool idle(const int64_t* lengths, int64_t t, int64_t b) { return lengths && t >= lengths[b]; }

// Fills `live` with the rows that step t advances and calls f(b) for the others; returns how many `live` has.
// For a matrix unit they stay between the others.
template <class E, class F>
MELODIA_INLINE int64_t sort_rows(const int64_t* lengths, int64_t t, int64_t begin, int64_t end, int64_t* live,
                                 F f) {
    int64_t count = 0, last = 0;
    for (int64_t b = begin; b < end; ++b) {
        const bool rests = idle(lengths, t, b);
        if (rests) f(b);
        if (!rests || by_tiles<E>) live[count++] = b;
        if (!rests) last = count;
    }
    return last;
}

template <class E>
void lstm_scan(const LstmScan<E>& a, int64_t begin, int64_t end, int64_t* live) {
    using Packed = typename Operand<E>::Packed;
    const int64_t H = a.H, B = a.B, panels = (H + W - 1) / W, depth = padded_depth<E>(H);
    if (rounds<E>) copy(a.h + begin * H, a.h_n + begin * H, (end - begin) * H);
    alignas(64) float sums[rows_together][4 * W];
    Unit<E> unit;
    copy(a.c + begin * H, a.c_n + begin * H, (end - begin) * H);
    for (int64_t t = 0; t < a.T; ++t) {
        const E* previous = t ? a.output + (t - 1) * B * H : a.h_operand;
        E* output = a.output + t * B * H;
        const int64_t count = sort_rows<E>(a.lengths, t, begin, end, live, [&](int64_t b) {
            clear(output + b * H, H);
            if (a.gates) clear(a.gates + (t * B + b) * 4 * H, 4 * H);
            if (a.cells) clear(a.cells + (t * B + b) * H, H);
        });
        for (int64_t u = 0; u < panels; ++u) {
            const auto* panel = static_cast<const Packed*>(a.packed) + u * depth * 4 * W;
            const int64_t k = u * W, n = smaller(W, H - k);
            for_row_tiles<rows_together>(count, [&](int64_t first, int64_t row_count) {
                multiply_forward<4, Vector::lstm_rows, E>(unit, H, previous, live + first, row_count, panel,
                                                          sums);
                for (int64_t m = 0; m < row_count; ++m) {
                    const int64_t b = live[first + m], at = b * H + k;
                    if (by_tiles<E> && idle(a.lengths, t, b)) continue;
                    const E* gates_x = a.gates_x + (t * B + b) * 4 * H + k;
                    E* gates = a.gates ? a.gates + (t * B + b) * 4 * H + k : nullptr;
                    float* state = rounds<E> ? a.h_n + at : nullptr;
                    float* cells = a.cells ? a.cells + t * B * H + at : nullptr;
                    if (n == W)
                        lstm_point<true>(sums[m], gates_x, a.bias_hh + k, H, n, a.c_n + at, a.c_n + at,
                                         output + at, state, gates, cells);
                    else
                        lstm_point<false>(sums[m], gates_x, a.bias_hh + k, H, n, a.c_n + at, a.c_n + at,
                                          output + at, state, gates, cells);
                }
            });
        }
    }
    last_states(a, begin, end);
}

template <class E>
void gru_scan(const GruScan<E>& a, int64_t begin, int64_t end, int64_t* live) {
    using Packed = typename Operand<E>::Packed;
    const int64_t H = a.H, B = a.B, panels = (H + W - 1) / W, depth = padded_depth<E>(H);
    if (rounds<E>) copy(a.h + begin * H, a.h_n + begin * H, (end - begin) * H);
    alignas(64) float sums[rows_together][3 * W];
    Unit<E> unit;
    for (int64_t t = 0; t < a.T; ++t) {
        const E* previous = t ? a.output + (t - 1) * B * H : a.h_operand;
        E* output = a.output + t * B * H;
        const int64_t count = sort_rows<E>(a.lengths, t, begin, end, live, [&](int64_t b) {
            clear(output + b * H, H);
            if (a.gates) clear(a.gates + (t * B + b) * 4 * H, 4 * H);
        });
        for (int64_t u = 0; u < panels; ++u) {
            const auto* panel = static_cast<const Packed*>(a.packed) + u * depth * 3 * W;
            const int64_t k = u * W, n = smaller(W, H - k);
            for_row_tiles<rows_together>(count, [&](int64_t first, int64_t row_count) {
                multiply_forward<3, Vector::gru_rows, E>(unit, H, previous, live + first, row_count, panel,
                                                         sums);
                for (int64_t m = 0; m < row_count; ++m) {
                    const int64_t b = live[first + m], at = b * H + k;
                    if (by_tiles<E> && idle(a.lengths, t, b)) continue;
                    const E* gates_x = a.gates_x + (t * B + b) * 3 * H + k;
                    E* gates = a.gates ? a.gates + (t * B + b) * 4 * H + k : nullptr;
                    float* state = rounds<E> ? a.h_n + at : nullptr;
                    const float* before;
                    if constexpr (rounds<E>)
                        before = state;
                    else
                        before = previous + at;
                    if (n == W)
                        gru_point<true>(sums[m], gates_x, a.bias_hh + k, H, n, before, output + at, state,
                                        gates);
                    else
                        gru_point<false>(sums[m], gates_x, a.bias_hh + k, H, n, before, output + at, state,
                                         gates);
                }
            });
        }
    }
    last_states(a, begin, end);
}

template <class E>
void lstm_scan_backward(const LstmScanBackward<E>& a, int64_t begin, int64_t end, int64_t* live) {
    const int64_t H = a.H, B = a.B, padded = (H + backward_panel - 1) / backward_panel * backward_panel;
    Unit<E> unit;
    for (int64_t t = a.T - 1; t >= 0; --t) {
        const float* cells = t ? a.cells + (t - 1) * B * H : a.c;
        E* grad_gates = a.grad_gates + t * B * 4 * H;
        const int64_t count = sort_rows<E>(a.lengths, t, begin, end, live,
                                           [&](int64_t b) { clear(grad_gates + b * 4 * H, 4 * H); });
        const auto rests = [&](int64_t b) { return by_tiles<E> && idle(a.lengths, t, b); };
        for (int64_t m = 0; m < count; ++m) {
            const int64_t b = live[m];
            if (rests(b)) continue;
            int64_t k = 0;
            for (; k + W <= H; k += W)
                lstm_point_backward<true>(a, t, b, k, W, cells + b * H, a.grad_h + b * padded);
            if (k < H) lstm_point_backward<false>(a, t, b, k, H - k, cells + b * H, a.grad_h + b * padded);
        }
        multiply_backward(unit, rests, grad_gates, 4 * H, a.packed, H, a.grad_h, live, count, false);
    }
}

template <class E>
void gru_scan_backward(const GruScanBackward<E>& a, int64_t begin, int64_t end, int64_t* live) {
    const int64_t H = a.H, B = a.B, padded = (H + backward_panel - 1) / backward_panel * backward_panel;
    Unit<E> unit;
    for (int64_t t = a.T - 1; t >= 0; --t) {
        const E* previous = t ? a.output + (t - 1) * B * H : a.h_operand;
        E* grad_gates = a.grad_gates_h + t * B * 3 * H;
        const int64_t count = sort_rows<E>(a.lengths, t, begin, end, live, [&](int64_t b) {
            clear(grad_gates + b * 3 * H, 3 * H);
            clear(a.grad_gates_x + (t * B + b) * 3 * H, 3 * H);
        });
        const auto rests = [&](int64_t b) { return by_tiles<E> && idle(a.lengths, t, b); };
        for (int64_t m = 0; m < count; ++m) {
            const int64_t b = live[m];
            if (rests(b)) continue;
            int64_t k = 0;
            for (; k + W <= H; k += W)
                gru_point_backward<true>(a, t, b, k, W, previous + b * H, a.grad_h + b * padded);
            if (k < H) gru_point_backward<false>(a, t, b, k, H - k, previous + b * H, a.grad_h + b * padded);
        }
        multiply_backward(unit, rests, grad_gates, 3 * H, a.packed, H, a.grad_h, live, count, true);
    }
}

// ---- One step, from the weights as they are: packing would cost more than the product ------------------

// sums[m][g] = weight[g] . h[m] for MR rows of length H and G rows of the weight that lie `stride` apart.
template <int G, int MR>
MELODIA_INLINE void dot(int64_t H, int64_t stride, const float* weight, const float* h, float* sums) {
    Vector s[G][MR];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) s[g][m] = Vector::zero();
    }
    const auto advance = [&](int64_t k, auto load_at) {
        Vector x[MR];
#pragma GCC unroll 4
        for (int m = 0; m < MR; ++m) x[m] = load_at(h + m * H + k);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const Vector w = load_at(weight + g * stride + k);
#pragma GCC unroll 4
            for (int m = 0; m < MR; ++m) s[g][m] = fma(w, x[m], s[g][m]);
        }
    };
    int64_t k = 0;
    for (; k + W <= H; k += W) advance(k, [](const float* p) { return Vector::load(p); });
    if (k < H) advance(k, [&](const float* p) { return Vector::load(p, H - k); });
    for (int m = 0; m < MR; ++m) {
        for (int g = 0; g < G; ++g) sums[(m * G + g) * W] = s[g][m].sum();
    }
}

// Calls point(row, unit, units, sums[G][W]) for every row and every vector of units in the panels begin..end.
template <int G, class F>
MELODIA_INLINE void step(const Step& a, int64_t begin, int64_t end, F point) {
    constexpr int rows_at_once = 2;
    alignas(64) float sums[rows_at_once][G * W];
    for (int64_t u = begin; u < end; ++u) {
        const int64_t k = u * W, n = smaller(W, a.H - k);
        for (int64_t b = 0; b < a.B; b += rows_at_once) {
            const int64_t rows = smaller(rows_at_once, a.B - b);
            clear(sums[0], rows_at_once * G * W);
            for (int64_t j = 0; j < n; ++j) {
                const float* weight = a.weight_hh + (k + j) * a.H;
                if (rows == 2)
                    dot<G, 2>(a.H, a.H * a.H, weight, a.h + b * a.H, sums[0] + j);
                else
                    dot<G, 1>(a.H, a.H * a.H, weight, a.h + b * a.H, sums[0] + j);
            }
            for (int64_t m = 0; m < rows; ++m) point(b + m, k, n, sums[m]);
        }
    }
}

void lstm_step(const Step& a, int64_t begin, int64_t end) {
    step<4>(a, begin, end, [&](int64_t b, int64_t k, int64_t n, const float* sums) {
        const int64_t at = b * a.H + k;
        lstm_point<false, float>(sums, a.gates_x + b * 4 * a.H + k, a.bias_hh + k, a.H, n, a.c + at,
                                 a.c_out + at, a.h_out + at, nullptr, nullptr, nullptr);
    });
}

void gru_step(const Step& a, int64_t begin, int64_t end) {
    step<3>(a, begin, end, [&](int64_t b, int64_t k, int64_t n, const float* sums) {
        const int64_t at = b * a.H + k;
        gru_point<false, float>(sums, a.gates_x + b * 3 * a.H + k, a.bias_hh + k, a.H, n, a.h + at,
                                a.h_out + at, nullptr, nullptr);
    });
}

void linear(const Linear& a, int64_t begin, int64_t end) {
    alignas(64) float sums[2 * linear_group * W];
    for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * linear_group, last = smaller(first + linear_group, a.N);
        for (int64_t b = 0; b < a.B; b += 2) {
            const int64_t rows = smaller(2, a.B - b);
            const float* x = a.x + b * a.K;
            for (int64_t n = first; n < last;) {
                const float* weight = a.weight + n * a.K;
                const int64_t count = n + linear_group <= last ? linear_group : 1;
                if (count == linear_group && rows == 2)
                    dot<linear_group, 2>(a.K, a.K, weight, x, sums);
                else if (count == linear_group)
                    dot<linear_group, 1>(a.K, a.K, weight, x, sums);
                else if (rows == 2)
                    dot<1, 2>(a.K, a.K, weight, x, sums);
                else
                    dot<1, 1>(a.K, a.K, weight, x, sums);
                for (int64_t m = 0; m < rows; ++m) {
                    for (int64_t g = 0; g < count; ++g)
                        a.out[(b + m) * a.N + n + g] = sums[(m * count + g) * W] + a.bias[n + g];
                }
                n += count;
            }
        }
    }
}

// ---- Gates again, for a backward pass that did not keep them

// Calls f(at, n) for every vector of the columns begin..end.
template <class F>
MELODIA_INLINE void for_columns(int64_t begin, int64_t end, F f) {
    for (int64_t at = begin; at < end; at += W) f(at, smaller(W, end - at));
}

template <class E>
void lstm_gates(int64_t H, const E* sums, const float* bias, E* gates, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t g = 0; g < 4; ++g) {
            const int64_t from = (row * 4 + g) * H;
            for_columns(0, H, [&](int64_t at, int64_t n) {
                const Vector sum = load<false>(sums + from + at, n) + load<false>(bias + g * H + at, n);
                store<false>(g == 2 ? melodia::fast_tanh(sum) : melodia::fast_sigmoid(sum), gates + from + at,
                             n);
            });
        }
    }
}

template <class E>
void gru_gates(int64_t H, const E* gates_x, const E* gates_h, E* gates, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        for_columns(0, H, [&](int64_t at, int64_t n) {
            const E *x = gates_x + row * 3 * H + at, *h = gates_h + row * 3 * H + at;
            E* out = gates + row * 4 * H + at;
            const Vector r = melodia::fast_sigmoid(load<false>(x, n) + load<false>(h, n));
            const Vector z = melodia::fast_sigmoid(load<false>(x + H, n) + load<false>(h + H, n));
            const Vector n_h = load<false>(h + 2 * H, n);
            store<false>(r, out, n);
            store<false>(z, out + H, n);
            store<false>(melodia::fast_tanh(fma(r, n_h, load<false>(x + 2 * H, n))), out + 2 * H, n);
            store<false>(n_h, out + 3 * H, n);
        });
    }
}

// ---- Sums of rows of a table: the first layer's gates from tokens --------------------------------------

template <class E>
void lookup(const Lookup<E>& a, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t* index = a.index + row * a.K;
        for_columns(0, a.G, [&](int64_t at, int64_t n) {
            Vector sum = Vector::zero();
            for (int64_t k = 0; k < a.K; ++k) {
                const E* from = a.table + index[k] * a.G + at;
                sum = sum + (n == W ? load<true>(from, n) : load<false>(from, n));
            }
            if (n == W)
                store<true>(sum, a.out + row * a.G + at, n);
            else
                store<false>(sum, a.out + row * a.G + at, n);
        });
    }
}

// Columns do not depend on each other: threads share them, and every sum is taken in the order of the rows.
template <class E>
void lookup_backward(const Lookup<E>& a, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < a.N; ++row) {
        const int64_t* index = a.index + row * a.K;
        for_columns(begin, end, [&](int64_t at, int64_t n) {
            const E* from = a.grad_out + row * a.G + at;
            const Vector grad = n == W ? load<true>(from, n) : load<false>(from, n);
            for (int64_t k = 0; k < a.K; ++k) {
                float* to = a.grad_table + index[k] * a.G + at;
                if (n == W)
                    (Vector::load(to) + grad).store(to);
                else
                    (Vector::load(to, n) + grad).store(to, n);
            }
        });
    }
}

template <class E>
constexpr melodia::cpu::ScanKernels<E> scans() {
    return {depth_step<E>,         pack_forward<E>, pack_backward<E>,     lstm_scan<E>,
            lstm_scan_backward<E>, gru_scan<E>,     gru_scan_backward<E>, lstm_gates<E>,
            gru_gates<E>,          lookup<E>,       lookup_backward<E>};
}

constexpr melodia::cpu::Kernels table() {
    return {Vector::name, W, backward_panel, scans<float>(), scans<bf16>(), lstm_step, gru_step, linear};
}

}  // namespace
