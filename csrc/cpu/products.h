// Products of rows with packed weights, over the Vector of an instruction set; for kernels_impl.h.
//
// A product reads its rows in the element type E. Packed weights are floats, or, where the instruction set
// multiplies bf16 itself, pairs of bf16: two successive k side by side in every lane.
#pragma once

#include "cpu/kernels.h"

namespace {

using melodia::cpu::bf16;

constexpr int64_t W = Vector::width;
constexpr int64_t backward_panel = W * Vector::backward_vectors;
constexpr int max_rows = 8;            // of any register tile
constexpr int64_t rows_together = 48;  // that go over a panel's block while it is in a cache

#define MELODIA_INLINE inline __attribute__((always_inline))

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class E>
inline void copy(const E* from, E* to, int64_t n) {
    for (int64_t k = 0; k < n; ++k) to[k] = from[k];
}

template <class E>
inline void clear(E* to, int64_t n) {
    for (int64_t k = 0; k < n; ++k) to[k] = E{};
}

// A vector at p of which n lanes are inside; Whole: all of them.
template <bool Whole, class E>
MELODIA_INLINE Vector load(const E* p, int64_t n) {
    return Whole ? Vector::load(p) : Vector::load(p, n);
}

template <bool Whole, class E>
MELODIA_INLINE void store(Vector x, E* p, int64_t n) {
    if (Whole)
        x.store(p);
    else
        x.store(p, n);
}

// How a product reads E: `step` successive k at once.
template <class E>
struct Operand {
    using Packed = float;
    static constexpr int64_t step = 1;
    static MELODIA_INLINE Vector row(const E* p) { return Vector::broadcast(p); }
    static MELODIA_INLINE Vector last(const E* p) { return Vector::broadcast(p); }
    static MELODIA_INLINE Vector panel(const float* p) { return Vector::load(p); }
    static inline float pack(float x) { return x; }
    static inline float pack(bf16 x) {
        const uint32_t bits = uint32_t{x.bits} << 16;
        float value;
        __builtin_memcpy(&value, &bits, sizeof value);
        return value;
    }
};

#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
    using Packed = bf16;
    static constexpr int64_t step = 2;
    static MELODIA_INLINE Pairs row(const bf16* p) { return Pairs::broadcast(p); }
    static MELODIA_INLINE Pairs last(const bf16* p) { return Pairs::broadcast_one(p); }
    static MELODIA_INLINE Pairs panel(const bf16* p) { return Pairs::load(p); }
    static inline bf16 pack(bf16 x) { return x; }
};
#endif

// Whether products of E are made on a matrix unit. Its rows must lie side by side: where some of them are
// idle, it multiplies those as well.
template <class E>
constexpr bool by_tiles = false;
template <class E>
struct Unit {};  // what such a unit needs for the time of a scan
#if defined(__AMX_BF16__)
}  // namespace
#include "cpu/products_amx.h"
namespace {
template <>
constexpr bool by_tiles<bf16> = true;
template <>
struct Unit<bf16> : MatrixUnit {};
#endif

// The depth of packed weights is a multiple of this.
template <class E>
constexpr int64_t depth_step = by_tiles<E> ? 32 : Operand<E>::step;
template <class E>
constexpr int64_t padded_depth(int64_t K) {
    return (K + depth_step<E> - 1) / depth_step<E> * depth_step<E>;
}

// out[m][0 .. NV W) (+)= sum over k of rows[m][k] * panel[k][0 .. NV W), with `stride` units between panel
// rows.
template <int MR, int NV, class E>
MELODIA_INLINE void tile(int64_t K, const E* const* rows, const typename Operand<E>::Packed* panel,
                         int64_t stride, float* const* out, bool add) {
    using Op = Operand<E>;
    Vector sums[MR][NV];
    const E* a[MR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
        a[m] = rows[m];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) sums[m][n] = add ? Vector::load(out[m] + n * W) : Vector::zero();
    }
    const auto advance = [&](int64_t k, auto row) {
        decltype(Op::panel(panel)) b[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) b[n] = Op::panel(panel + n * W * Op::step);
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) {
            const auto x = row(a[m] + k);
#pragma GCC unroll 4
            for (int n = 0; n < NV; ++n) sums[m][n] = fma(x, b[n], sums[m][n]);
        }
        panel += stride * Op::step;
    };
    int64_t k = 0;
    for (; k + Op::step <= K; k += Op::step) advance(k, [](const E* p) { return Op::row(p); });
    if (k < K) advance(k, [](const E* p) { return Op::last(p); });
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int n = 0; n < NV; ++n) sums[m][n].store(out[m] + n * W);
    }
}

// `tile` with the number of rows known at run time, 1 <= rows <= MR.
template <int MR, int NV, class E>
inline void tile_of(int64_t row_count, int64_t K, const E* const* rows,
                    const typename Operand<E>::Packed* panel, int64_t stride, float* const* out, bool add) {
    if constexpr (MR > 1) {
        if (row_count < MR) return tile_of<MR - 1, NV, E>(row_count, K, rows, panel, stride, out, add);
    }
    tile<MR, NV, E>(K, rows, panel, stride, out, add);
}

// Cuts `rows` into as few tiles of at most MR rows as possible, all about as high, and calls f(first, count)
// for each.
template <int MR, class F>
MELODIA_INLINE void for_row_tiles(int64_t rows, F f) {
    const int64_t tiles = (rows + MR - 1) / MR;
    for (int64_t t = 0, first = 0; t < tiles; ++t) {
        const int64_t count = rows / tiles + (t < rows % tiles ? 1 : 0);
        f(first, count);
        first += count;
    }
}

// Where column j of row k stands in a packed panel whose rows have `width` columns.
template <class E>
MELODIA_INLINE int64_t place(int64_t k, int64_t j, int64_t width) {
    constexpr int64_t step = Operand<E>::step;
    return (k / step * width + j) * step + k % step;
}

// How many gates of a cell one register tile has; a panel holds tile after tile.
constexpr int gates_in_tile(int64_t G) { return static_cast<int>(G == 4 ? 4 / Vector::lstm_split : G); }

template <class E>
void pack_forward(const E* weight, int64_t G, int64_t H, void* packed, int64_t begin, int64_t end) {
    using Op = Operand<E>;
    constexpr int64_t block = 16;  // of k, so that the lines being written stay in the first-level cache
    const int64_t depth = padded_depth<E>(H), gates = gates_in_tile(G), width = gates * W;
    for (int64_t u = begin; u < end; ++u) {
        auto* panel = static_cast<typename Op::Packed*>(packed) + u * depth * G * W;
        const int64_t units = smaller(W, H - u * W);
        for (int64_t k0 = 0; k0 < depth; k0 += block) {
            const int64_t k1 = smaller(depth, k0 + block);
            for (int64_t g = 0; g < G; ++g) {
                auto* part = panel + g / gates * depth * width;
                for (int64_t j = 0; j < W; ++j) {
                    const E* row = weight + (g * H + u * W + j) * H;
                    for (int64_t k = k0; k < k1; ++k)
                        part[place<E>(k, g % gates * W + j, width)] =
                            Op::pack(j < units && k < H ? row[k] : E{});
                }
            }
        }
    }
}

template <class E>
void pack_backward(const E* weight, int64_t G, int64_t H, void* packed, int64_t begin, int64_t end) {
    using Op = Operand<E>;
    const int64_t depth = padded_depth<E>(G * H);
    for (int64_t p = begin; p < end; ++p) {
        const int64_t units = smaller(backward_panel, H - p * backward_panel);
        auto* panel = static_cast<typename Op::Packed*>(packed) + p * depth * backward_panel;
        for (int64_t k = 0; k < depth; ++k) {
            const E* row = weight + k * H + p * backward_panel;
            for (int64_t j = 0; j < backward_panel; ++j)
                panel[place<E>(k, j, backward_panel)] = Op::pack(j < units && k < G * H ? row[j] : E{});
        }
    }
}

// sums[m][G][W] = weight_hh h of one panel for `count` rows, at most rows_together: row m is h[live[m]].
// A block of the panel stays in the first-level cache (where it fits) for all rows.
template <int G, int MR, class E>
MELODIA_INLINE void multiply_forward([[maybe_unused]] Unit<E>& unit, int64_t H, const E* h,
                                     const int64_t* live, int64_t count,
                                     const typename Operand<E>::Packed* panel, float (*sums)[G * W]) {
    if constexpr (by_tiles<E>) {
        unit.template multiply<G>(H, h + live[0] * H, count, panel, sums[0]);
    } else {
        const E* rows[rows_together];
        for (int64_t m = 0; m < count; ++m) rows[m] = h + live[m] * H;
        constexpr int gates = gates_in_tile(G);
        constexpr int64_t block = Vector::depth_block * Operand<E>::step;
        const int64_t depth = padded_depth<E>(H);
        for (int64_t k0 = 0; k0 < H; k0 += block) {
            for (int part = 0; part < G / gates; ++part) {
                const auto* from = panel + (part * depth + k0) * gates * W;
                for_row_tiles<MR>(count, [&](int64_t first, int64_t n) {
                    const E* at[max_rows];
                    float* out[max_rows];
                    for (int64_t m = 0; m < n; ++m) {
                        at[m] = rows[first + m] + k0;
                        out[m] = sums[first + m] + part * gates * W;
                    }
                    tile_of<MR, gates, E>(n, smaller(block, H - k0), at, from, gates * W, out, k0 > 0);
                });
            }
        }
    }
}

// grad_h[b] (+)= grad_gates[b] x weight_hh for the rows b in live[0 .. count) that are not idle(b).
template <class E, class Idle>
void multiply_backward([[maybe_unused]] Unit<E>& unit, [[maybe_unused]] Idle idle, const E* grad_gates,
                       int64_t K, const void* packed, int64_t H, float* grad_h, const int64_t* live,
                       int64_t count, bool add) {
    const int64_t panels = (H + backward_panel - 1) / backward_panel, padded = padded_depth<E>(K);
    constexpr int64_t block = Vector::depth_block * Operand<E>::step;
    for (int64_t p = 0; p < panels; ++p) {
        if constexpr (by_tiles<E>) {
            alignas(64) float sums[rows_together][backward_panel];
            for_row_tiles<rows_together>(count, [&](int64_t first, int64_t n) {
                unit.template multiply<Vector::backward_vectors>(
                    K, grad_gates + live[first] * K, n,
                    static_cast<const bf16*>(packed) + p * padded * backward_panel, sums[0]);
                for (int64_t m = 0; m < n; ++m) {
                    if (idle(live[first + m])) continue;
                    float* out = grad_h + (live[first + m] * panels + p) * backward_panel;
                    for (int64_t at = 0; at < backward_panel; at += W) {
                        const Vector sum = Vector::load(sums[m] + at);
                        (add ? Vector::load(out + at) + sum : sum).store(out + at);
                    }
                }
            });
        } else {
            for (int64_t k0 = 0; k0 < K; k0 += block) {
                const int64_t depth = smaller(block, K - k0);
                const auto* panel = static_cast<const typename Operand<E>::Packed*>(packed) +
                                    (p * padded + k0) * backward_panel;
                for_row_tiles<Vector::backward_rows>(count, [&](int64_t first, int64_t n) {
                    const E* rows[max_rows];
                    float* out[max_rows];
                    for (int64_t m = 0; m < n; ++m) {
                        rows[m] = grad_gates + live[first + m] * K + k0;
                        out[m] = grad_h + live[first + m] * panels * backward_panel + p * backward_panel;
                    }
                    tile_of<Vector::backward_rows, Vector::backward_vectors, E>(
                        n, depth, rows, panel, backward_panel, out, add || k0 > 0);
                });
            }
        }
    }
}

}  // namespace
