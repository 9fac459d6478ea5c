// The decode kernels of one instruction set, over the Vector of the header included before this one.
// Everything stands in an unnamed namespace, as in cpu/kernels_impl.h and for the same reason.
//
// Each sum runs over k in ascending order in one chain, whatever M and the threads: a batch equals its
// sessions one by one, bit for bit. The whole-number sums of int8 are the same on every instruction set.
#pragma once

#include "cells.h"
#include "engine/kernels.h"
#include "engine/narrow.h"

namespace {

using melodia::engine::kMaxGroups;
using melodia::engine::kMaxRows;
using melodia::engine::kTile;
using melodia::engine::Product;
using melodia::engine::Weights;

constexpr int kParts = static_cast<int>(kTile / Vector::width);  // vectors in a lane group

template <int M, int NV>
MELODIA_INLINE void finish(const Product& p, Vector (&sums)[M][NV * kParts]) {
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
        for (int n = 0; n < NV * kParts; ++n) {
            float* out = p.out[m] + n * Vector::width;
            (p.add ? Vector::load(out) + sums[m][n] : sums[m][n]).store(out);
        }
    }
}

template <int M, int NV>
void product_fp32(const Product& p) {
    Vector sums[M][NV * kParts];
    const float* panel = static_cast<const float*>(p.panel);
    const float* x[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        x[m] = static_cast<const float*>(p.x[m]);
#pragma GCC unroll 16
        for (int n = 0; n < NV * kParts; ++n) sums[m][n] = Vector::zero();
    }
    for (int64_t k = 0; k < p.K; ++k, panel += NV * kTile) {
#pragma GCC unroll 16
        for (int n = 0; n < NV * kParts; ++n) {
            const Vector w = Vector::load(panel + n * Vector::width);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[m][n] = fma(Vector::broadcast(x[m] + k), w, sums[m][n]);
        }
    }
    finish<M, NV>(p, sums);
}

template <int M, int NV>
void product_bf16(const Product& p) {
    Vector sums[M][NV * kParts];
    const uint16_t* panel = static_cast<const uint16_t*>(p.panel);
    const uint16_t* x[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        x[m] = static_cast<const uint16_t*>(p.x[m]);
#pragma GCC unroll 16
        for (int n = 0; n < NV * kParts; ++n) sums[m][n] = Vector::zero();
    }
    for (int64_t k = 0; k < p.K; k += 2, panel += 2 * NV * kTile) {
        Pair pair[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) pair[m] = Pair::broadcast(x[m] + k);
#pragma GCC unroll 16
        for (int n = 0; n < NV * kParts; ++n) {
            const Pair w = Pair::load(panel + 2 * n * Vector::width);
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[m][n] = dot(sums[m][n], pair[m], w);
        }
    }
    finish<M, NV>(p, sums);
}

template <int NV>
MELODIA_INLINE void finish_int8(const Product& p, int m, const int32_t* whole) {
    for (int64_t n = 0; n < NV * kTile; ++n) {
        const float sum = static_cast<float>(whole[n] - p.offset[n]) * (p.scale[n] * p.x_scale[m]);
        p.out[m][n] = p.add ? p.out[m][n] + sum : sum;
    }
}

#if defined(__AVX2__) || defined(MELODIA_NEON)
template <int M, int NV>
void product_int8(const Product& p) {
    constexpr int parts = NV * static_cast<int>(kTile / Sums::width);
    Sums sums[M][parts];
    const int8_t* panel = static_cast<const int8_t*>(p.panel);
    const uint8_t* x[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
        x[m] = static_cast<const uint8_t*>(p.x[m]);
#pragma GCC unroll 16
        for (int n = 0; n < parts; ++n) sums[m][n] = Sums::begin(p.offset + n * Sums::width);
    }
    for (int64_t k = 0; k < p.K; k += 4, panel += 4 * NV * kTile) {
        uint32_t quad[M];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) __builtin_memcpy(&quad[m], x[m] + k, 4);
#pragma GCC unroll 16
        for (int n = 0; n < parts; ++n) {
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) sums[m][n].add(quad[m], panel + 4 * n * Sums::width);
        }
    }
    int32_t whole[NV * kTile];
    for (int m = 0; m < M; ++m) {
        for (int n = 0; n < parts; ++n) sums[m][n].store(whole + n * Sums::width);
        finish_int8<NV>(p, m, whole);
    }
}
#else
template <int M, int NV>
void product_int8(const Product& p) {
    for (int m = 0; m < M; ++m) {
        const int8_t* panel = static_cast<const int8_t*>(p.panel);
        int32_t whole[NV * kTile] = {};
        for (int64_t k = 0; k < p.K; k += 4, panel += 4 * NV * kTile) {
            for (int64_t n = 0; n < NV * kTile; ++n) {
                const int8_t* w = panel + 4 * n;
                const uint8_t* x = static_cast<const uint8_t*>(p.x[m]) + k;
                whole[n] += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
        }
        finish_int8<NV>(p, m, whole);
    }
}
#endif

template <int M, int NV>
MELODIA_INLINE void product_of(Weights weights, const Product& p) {
    if (weights == Weights::fp32)
        product_fp32<M, NV>(p);
    else if (weights == Weights::bf16)
        product_bf16<M, NV>(p);
    else
        product_int8<M, NV>(p);
}

template <int M>
MELODIA_INLINE void product_of(Weights weights, const Product& p) {
    switch (p.NV) {
        case 1:
            return product_of<M, 1>(weights, p);
        case 2:
            return product_of<M, 2>(weights, p);
        case 3:
            return product_of<M, 3>(weights, p);
        default:
            return product_of<M, 4>(weights, p);
    }
}

#if defined(__AVX512F__)
// As many sessions at once as there are registers for their sums.
void product(Weights weights, const Product& p) {
    Product some = p;
    for (int64_t m = 0; m < p.M; m += some.M) {
        some.M = p.M - m < 4 ? p.M - m : 4;
        some.x = p.x + m;
        some.x_scale = p.x_scale + m;
        some.out = p.out + m;
        switch (some.M) {
            case 1:
                product_of<1>(weights, some);
                break;
            case 2:
                product_of<2>(weights, some);
                break;
            case 3:
                product_of<3>(weights, some);
                break;
            default:
                product_of<4>(weights, some);
        }
    }
}
#else
// Where registers are few, the sums of one session over a panel fill them. Several sessions instead go over a
// part of the panel that stays in the first cache, a lane group at a time, so that every weight, once it is
// in a register, serves as many of them as it can.
template <class W>
constexpr int kRows = sizeof(W) == 2 ? Vector::batch_rows - 1 : Vector::batch_rows;  // a pair takes two
constexpr int64_t kDepth = 64;  // k of a part: 16 KB of fp32

// sums[r][0 .. 16) += sum over k of x[r][k] * w[k * width ..]; w: fp32, or bf16 in pairs. next: what the
// caches are to bring meanwhile, a line each time, since strides of a panel's width are no stream that they
// follow.
template <int R, class W>
MELODIA_INLINE void part(const W* w, int64_t width, int64_t K, const W* next, const float* const* x,
                         float* const* sums) {
    Vector acc[R][kParts];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < kParts; ++n) acc[r][n] = Vector::load(sums[r] + n * Vector::width);
    }
    if constexpr (sizeof(W) == 2) {
        for (int64_t k = 0; k < K; k += 2, w += 2 * width, next += 2 * kTile) {
            __builtin_prefetch(next);
            Pair column[kParts];
#pragma GCC unroll 4
            for (int n = 0; n < kParts; ++n) column[n] = Pair::load(w + 2 * n * Vector::width);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Pair one{Vector::broadcast(x[r] + k), Vector::broadcast(x[r] + k + 1)};
#pragma GCC unroll 4
                for (int n = 0; n < kParts; ++n) acc[r][n] = dot(acc[r][n], one, column[n]);
            }
        }
    } else {
        for (int64_t k = 0; k < K; ++k, w += width, next += kTile) {
            __builtin_prefetch(next);
            Vector column[kParts];
#pragma GCC unroll 4
            for (int n = 0; n < kParts; ++n) column[n] = Vector::load(w + n * Vector::width);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vector one = Vector::broadcast(x[r] + k);
#pragma GCC unroll 4
                for (int n = 0; n < kParts; ++n) acc[r][n] = fma(one, column[n], acc[r][n]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < kParts; ++n) acc[r][n].store(sums[r] + n * Vector::width);
    }
}

template <class W, int R = kRows<W> >
MELODIA_INLINE void part_of(int64_t rows, const W* w, int64_t width, int64_t K, const W* next,
                            const float* const* x, float* const* sums) {
    if constexpr (R > 1) {
        if (rows < R) return part_of<W, R - 1>(rows, w, width, K, next, x, sums);
    }
    part<R>(w, width, K, next, x, sums);
}

template <class W>
void product_batch(const Product& p) {
    constexpr int64_t group =
        sizeof(W) == 2 ? 2 * kTile : kTile;  // numbers of a lane group that stand together
    const int64_t width = p.NV * kTile;
    alignas(64) float sums[kMaxRows][kMaxGroups * kTile] = {};
    for (int64_t k = 0, K; k < p.K; k += K) {
        K = p.K - k < kDepth ? p.K - k : kDepth;
        const W* w = static_cast<const W*>(p.panel) + k * width;
        const float* x[kMaxRows];
        alignas(64) float wide[kMaxRows][kDepth];
        for (int64_t m = 0; m < p.M; ++m) {
            if constexpr (sizeof(W) == 2) {
                const uint16_t* from = static_cast<const uint16_t*>(p.x[m]) + k;
                for (int64_t j = 0; j < K; ++j) {
                    const uint32_t bits = static_cast<uint32_t>(from[j]) << 16;
                    __builtin_memcpy(&wide[m][j], &bits, 4);
                }
                x[m] = wide[m];
            } else {
                x[m] = static_cast<const float*>(p.x[m]) + k;
            }
        }
        for (int64_t n = 0; n < p.NV; ++n) {
            for (int64_t m = 0; m < p.M; m += kRows<W>) {
                float* to[kRows<W>];
                const int64_t rows = p.M - m < kRows<W> ? p.M - m : kRows<W>;
                for (int64_t r = 0; r < rows; ++r) to[r] = sums[m + r] + n * kTile;
                part_of(rows, w + n * group, width, K, w + K * width + n * K * kTile, x + m, to);
            }
        }
    }
    for (int64_t m = 0; m < p.M; ++m)
        for (int64_t n = 0; n < width; ++n) p.out[m][n] = p.add ? p.out[m][n] + sums[m][n] : sums[m][n];
}

void product(Weights weights, const Product& p) {
    if (p.M > 1 && weights == Weights::fp32) return product_batch<float>(p);
    if (p.M > 1 && weights == Weights::bf16) return product_batch<uint16_t>(p);
    Product one = p;
    one.M = 1;
    for (int64_t m = 0; m < p.M; ++m) {
        one.x = p.x + m;
        one.x_scale = p.x_scale + m;
        one.out = p.out + m;
        product_of<1>(weights, one);
    }
}
#endif

void lstm(const float* gates, const float* c, float* c_out, float* h_out) {
    for (int64_t k = 0; k < kTile; k += Vector::width) {
        const auto unit = melodia::lstm_forward(Vector::load(gates + k), Vector::load(gates + kTile + k),
                                                Vector::load(gates + 2 * kTile + k),
                                                Vector::load(gates + 3 * kTile + k), Vector::load(c + k));
        unit.c.store(c_out + k);
        unit.h.store(h_out + k);
    }
}

void gru(const float* gates_x, const float* gates_h, const float* h, float* h_out) {
    for (int64_t k = 0; k < kTile; k += Vector::width) {
        const auto unit =
            melodia::gru_forward(Vector::load(gates_x + k) + Vector::load(gates_h + k),
                                 Vector::load(gates_x + kTile + k) + Vector::load(gates_h + kTile + k),
                                 Vector::load(gates_x + 2 * kTile + k), Vector::load(gates_h + 2 * kTile + k),
                                 Vector::load(h + k));
        unit.h.store(h_out + k);
    }
}

// K is a multiple of 16 here and in `halve`.
float quantise(const float* x, int64_t K, uint8_t* out) {
    float tops[kTile] = {};
    for (int64_t k = 0; k < K; k += kTile) {
        for (int64_t j = 0; j < kTile; ++j) {
            const float size = __builtin_fabsf(x[k + j]);
            tops[j] = size > tops[j] ? size : tops[j];
        }
    }
    float top = 0.0f;
    for (int64_t j = 0; j < kTile; ++j) top = tops[j] > top ? tops[j] : top;
    const float scale = top > 0.0f ? top / 127.0f : 1.0f, inverse = 1.0f / scale;
    for (int64_t k = 0; k < K; ++k) {
        // Adding 1.5 * 2^23 rounds to the nearest whole number, ties to even; it lands in the low bits.
        const float shifted = x[k] * inverse + 12582912.0f;
        int32_t bits;
        __builtin_memcpy(&bits, &shifted, 4);
        out[k] = static_cast<uint8_t>(bits - 0x4B400000 + 128);
    }
    return scale;
}

// To the nearest, ties to even, as plan.cpp rounds the weights.
void halve(const float* x, int64_t K, uint16_t* out) {
    for (int64_t k = 0; k < K; ++k) {
        uint32_t bits;
        __builtin_memcpy(&bits, x + k, 4);
        out[k] = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
}

void add(const float* row, int64_t n, float* out) {
    for (int64_t k = 0; k < n; ++k) out[k] += row[k];
}

constexpr melodia::engine::Kernels table() {
    return {Vector::name, product, lstm, gru, quantise, halve, add};
}

}  // namespace
