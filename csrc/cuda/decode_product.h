// The products of a stage: rows of weights with the vectors of a group, on the warps of a block.
//
// Weights stand in chunks of 512 bytes, 16 for each lane, so that a warp reads them in one go from shared
// memory without bank conflicts or from L2 in whole lines:
//   fp32  16 rows x 8 columns: lane = half * 16 + row has columns 4 half .. + 3
//   bf16  16 x 16: the lane's four words of the left operand of multiply_16x8x16
//   int8  16 x 32: lane = half * 16 + row has columns 16 half .. + 15
// Warps share out tiles and, where tiles are few, the columns; shares are added in a fixed order. What is
// made of one vector depends neither on the others nor on how many they are.
#pragma once

#include "cuda/decode_plan.h"

namespace melodia::cuda::decode {

template <class W>
struct Form;  // bytes of a number, columns of a chunk
template <>
struct Form<float> {
    static constexpr int kBytes = 4, kColumns = 8;
};
template <>
struct Form<Bf16> {
    static constexpr int kBytes = 2, kColumns = 16;
};
template <>
struct Form<Int8> {
    static constexpr int kBytes = 1, kColumns = 32;
};

MELODIA_DEVICE Words load_weights(const unsigned char* p, bool global) {
#if defined(MELODIA_EMULATOR)
    (void)global;
    return *reinterpret_cast<const Words*>(p);
#else
    if (!global) return *reinterpret_cast<const Words*>(p);
    Words value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x[0]), "=r"(value.x[1]), "=r"(value.x[2]), "=r"(value.x[3])
                 : "l"(p));
    return value;
#endif
}

// sums[row][vector] of one tile over `chunks` chunks, rows `apart` sums apart; weights: the lane's first 16
// bytes; x: the first column of the first of n vectors, rows `stride` bytes apart. kVectors: of a call at
// most, for which weights are read once.
template <class W, bool kGlobal>
struct Tile;

template <bool kGlobal>
struct Tile<float, kGlobal> {
    static constexpr int kVectors = 8;
    template <int N>
    MELODIA_DEVICE static void run_for(const unsigned char* weights, int chunks, const unsigned char* x,
                                       int stride, int n, float* sums, int apart) {
        const int row = static_cast<int>(lane()) % 16, half = static_cast<int>(lane()) / 16;
        float acc[N] = {};
        x += half * 16;
        for (int k = 0; k < chunks; ++k, weights += kChunkBytes, x += 32) {
            const Words w = load_weights(weights, kGlobal);
            MELODIA_UNROLL
            for (int v = 0; v < N; ++v) {
                if (v >= n) break;
                const Words y = *reinterpret_cast<const Words*>(x + v * stride);
                MELODIA_UNROLL
                for (int j = 0; j < 4; ++j) acc[v] += float_of(w.x[j]) * float_of(y.x[j]);
            }
        }
        MELODIA_UNROLL
        for (int v = 0; v < N; ++v) {
            if (v >= n) break;
            acc[v] += shuffle_xor(acc[v], 16);
            if (half == 0) sums[row * apart + v] = acc[v];
        }
    }
    MELODIA_DEVICE static void run(const unsigned char* weights, int chunks, const unsigned char* x,
                                   int stride, int n, float* sums, int apart) {
        if (n == 1)
            run_for<1>(weights, chunks, x, stride, n, sums, apart);
        else
            run_for<kVectors>(weights, chunks, x, stride, n, sums, apart);
    }
};

template <bool kGlobal>
struct Tile<Bf16, kGlobal> {
    static constexpr int kVectors = kMostGroup;
    template <int N>  // products of eight vectors each, side by side
    MELODIA_DEVICE static void run_for(const unsigned char* weights, int chunks, const unsigned char* x,
                                       int stride, int n, float* sums, int apart) {
        const int g = static_cast<int>(lane()) / 4, q = static_cast<int>(lane()) % 4;
        float c[N][4] = {};
        x += g * stride + q * 4;
        for (int k = 0; k < chunks; ++k, weights += kChunkBytes, x += 32) {
            const Words w = load_weights(weights, kGlobal);
            MELODIA_UNROLL
            for (int v = 0; v < N; ++v) {
                uint32_t b[2] = {0, 0};
                if (8 * v + g < n) {
                    b[0] = *reinterpret_cast<const uint32_t*>(x + 8 * v * stride);
                    b[1] = *reinterpret_cast<const uint32_t*>(x + 8 * v * stride + 16);
                }
                multiply_16x8x16<Bf16>(c[v], w.x, b);
            }
        }
        MELODIA_UNROLL
        for (int v = 0; v < N; ++v) {
            MELODIA_UNROLL
            for (int j = 0; j < 4; ++j) sums[(g + j / 2 * 8) * apart + 8 * v + 2 * q + j % 2] = c[v][j];
        }
    }
    MELODIA_DEVICE static void run(const unsigned char* weights, int chunks, const unsigned char* x,
                                   int stride, int n, float* sums, int apart) {
        if (n <= 8)
            run_for<1>(weights, chunks, x, stride, n, sums, apart);
        else if (n <= 16)
            run_for<2>(weights, chunks, x, stride, n, sums, apart);
        else
            run_for<4>(weights, chunks, x, stride, n, sums, apart);
    }
};

template <bool kGlobal>
struct Tile<Int8, kGlobal> {
    static constexpr int kVectors = 8;
    MELODIA_DEVICE static void run(const unsigned char* weights, int chunks, const unsigned char* x,
                                   int stride, int n, float* sums, int apart) {
        const int row = static_cast<int>(lane()) % 16, half = static_cast<int>(lane()) / 16;
        int32_t acc[kVectors] = {};
        x += half * 16;
        for (int k = 0; k < chunks; ++k, weights += kChunkBytes, x += 32) {
            const Words w = load_weights(weights, kGlobal);
            MELODIA_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                if (v >= n) break;
                const Words y = *reinterpret_cast<const Words*>(x + v * stride);
                MELODIA_UNROLL
                for (int j = 0; j < 4; ++j) acc[v] = dot4(w.x[j], y.x[j], acc[v]);
            }
        }
        MELODIA_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            if (v >= n) break;
            acc[v] += shuffle_xor(acc[v], 16);
            if (half == 0) sums[row * apart + v] = static_cast<float>(acc[v]);
        }
    }
};

// Vectors in shared memory, in the form of the weights.
struct Vectors {
    const unsigned char* data;
    int stride;
    const float* scale;  // int8: of each
};

// Sums of the products of up to two matrices, as the tiles of the one and then of the other.
template <class W>
class Sums {
  public:
    MELODIA_DEVICE Sums(float* sums, int apart, const Matrix* first, const Matrix* second)
        : sums_(sums),
          apart_(apart),
          first_(first),
          second_(second),
          tiles_(first->tiles + (second == nullptr ? 0 : second->tiles)),
          shares_(first->shares) {}

    // By all warps; a barrier must follow.
    MELODIA_DEVICE void make(const unsigned char* shared, const Vectors& x0, const Vectors& x1, int n) const {
        for (ShortWalk item(shares_, tiles_, static_cast<int>(warp()), static_cast<int>(warps()));
             item.there(); item.next()) {
            int tile = item.k;
            const int share = item.row;
            float* to = sums_ + (share * tiles_ + tile) * 16 * apart_;
            const bool second = tile >= first_->tiles;
            const Matrix& m = second ? *second_ : *first_;
            if (second) tile -= first_->tiles;
            const int begin = share * m.each < m.chunks ? share * m.each : m.chunks;
            const int end = begin + m.each < m.chunks ? begin + m.each : m.chunks;
            const Vectors& v = second ? x1 : x0;
            const unsigned char* x = v.data + begin * Form<W>::kColumns * Form<W>::kBytes;
            const int64_t at = (int64_t{tile} * m.chunks + begin) * kChunkBytes + lane() * 16;
            const int64_t mine = int64_t{block()} * m.tiles * m.chunks * kChunkBytes;
            for (int done = 0; done < n; done += kVectors, x += kVectors * v.stride) {
                const int now = n - done < kVectors ? n - done : kVectors;
                if (m.resident >= 0)
                    Tile<W, false>::run(shared + m.resident + at, end - begin, x, v.stride, now, to + done,
                                        apart_);
                else
                    Tile<W, true>::run(m.data + mine + at, end - begin, x, v.stride, now, to + done, apart_);
            }
        }
    }

    // Row `row` of a matrix with vector v, made of x.
    MELODIA_DEVICE float get(int matrix, int row, int v, const Vectors& x) const {
        const int whole = matrix * first_->tiles * 16 + row;
        float sum = 0.0f;
        for (int share = 0; share < shares_; ++share)
            sum += sums_[(share * tiles_ * 16 + whole) * apart_ + v];
        if constexpr (same_type<W, Int8>::value) {
            const Matrix& m = matrix ? *second_ : *first_;
            sum *= m.scale[int64_t{block()} * m.tiles * 16 + row] * x.scale[v];
        }
        return sum;
    }

  private:
    static constexpr int kVectors = Tile<W, true>::kVectors;

    float* sums_;
    int apart_;
    const Matrix *first_, *second_;
    int tiles_, shares_;
};

}  // namespace melodia::cuda::decode
