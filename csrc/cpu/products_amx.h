// Products of bf16 on the matrix unit of x86-64 (AMX), for products.h: a tile of 16 rows and 32 k times a
// tile of 32 k and 16 columns, summed in float. The packed panels are those of the dot product (`Pairs`),
// deeper by zeros.
//
// The instructions are written out: the intrinsics of GCC 12 do not tell the compiler that they read memory.
#pragma once

#include "cpu/kernels.h"

namespace {

constexpr int64_t tile_rows = 16, tile_depth = 32, tile_bytes = 64;  // of a row of any tile

template <int Tile>
MELODIA_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
template <int Tile>
MELODIA_INLINE void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
MELODIA_INLINE void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}
template <int Sum, int A, int B>
MELODIA_INLINE void tile_dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(A), "i"(B));
}

// Calls f(first, count) for blocks of 32 rows and what is left in blocks of at most 16.
template <class F>
MELODIA_INLINE void for_tile_rows(int64_t rows, F f) {
    int64_t first = 0;
    for (; first + 2 * tile_rows <= rows; first += 2 * tile_rows) f(first, 2 * tile_rows);
    for (; first < rows; first += tile_rows) f(first, smaller(tile_rows, rows - first));
}

// The last k of some rows where a tile is not filled, behind them zeros.
struct TileEdge {
    alignas(64) bf16 rows[2 * tile_rows][tile_depth];
    MELODIA_INLINE void fill(const bf16* from, int64_t K, int64_t count) {
        const int64_t begin = K / tile_depth * tile_depth;
        clear(rows[0], 2 * tile_rows * tile_depth);
        for (int64_t m = 0; m < count; ++m) copy(from + m * K + begin, rows[m], K - begin);
    }
};

// out[MT 16][NT 16] = rows [MT 16, K] x panel; `stride`: bytes between two steps of the panel, `out_stride`:
// between rows of the sums.
template <int MT, int NT>
MELODIA_INLINE void multiply_tiles(int64_t K, const bf16* rows, const TileEdge& edge, const bf16* panel,
                                   int64_t stride, float* out, int64_t out_stride) {
    static_assert(MT * NT <= 4);
    tile_zero<0>();
    if constexpr (MT * NT > 1) tile_zero<1>();
    if constexpr (MT * NT > 2) tile_zero<2>();
    if constexpr (MT * NT > 3) tile_zero<3>();
    const auto advance = [&](const bf16* a, int64_t a_stride) {
        tile_load<4>(a, a_stride);
        if constexpr (MT == 2) tile_load<5>(a + tile_rows * a_stride / 2, a_stride);
        tile_load<6>(panel, stride);
        tile_dot<0, 4, 6>();
        if constexpr (MT == 2) tile_dot<NT, 5, 6>();
        if constexpr (NT > 1) {
            tile_load<7>(panel + tile_depth, stride);
            tile_dot<1, 4, 7>();
            if constexpr (MT == 2) tile_dot<NT + 1, 5, 7>();
        }
        if constexpr (NT > 2) {
            tile_load<6>(panel + 2 * tile_depth, stride);
            tile_dot<2, 4, 6>();
        }
        if constexpr (NT > 3) {
            tile_load<7>(panel + 3 * tile_depth, stride);
            tile_dot<3, 4, 7>();
        }
        panel += tile_rows * stride / 2;
    };
    const int64_t whole = K / tile_depth;
    for (int64_t k = 0; k < whole; ++k) advance(rows + k * tile_depth, K * 2);
    if (K % tile_depth) advance(edge.rows[0], tile_bytes);
    tile_store<0>(out, out_stride);
    if constexpr (MT == 2) tile_store<NT>(out + tile_rows * out_stride / 4, out_stride);
    if constexpr (NT > 1) tile_store<1>(out + 16, out_stride);
    if constexpr (MT == 2 && NT > 1) tile_store<NT + 1>(out + tile_rows * out_stride / 4 + 16, out_stride);
    if constexpr (NT > 2) tile_store<2>(out + 32, out_stride);
    if constexpr (NT > 3) tile_store<3>(out + 48, out_stride);
}

// The matrix unit for the time of a scan. Tiles 0-3 are sums, 4 and 5 rows, 6 and 7 weights.
class MatrixUnit {
  public:
    ~MatrixUnit() { asm volatile("tilerelease"); }

    // sums[m][0 .. NT 16) = rows[m] x panel for `count` rows that lie side by side.
    template <int NT>
    MELODIA_INLINE void multiply(int64_t K, const bf16* rows, int64_t count, const bf16* panel, float* sums) {
        constexpr int64_t stride = NT * tile_bytes, width = NT * 16;
        TileEdge edge;
        for_tile_rows(count, [&](int64_t first, int64_t n) {
            const bf16* from = rows + first * K;
            float* to = sums + first * width;
            if (K % tile_depth) edge.fill(from, K, n);
            prepare(smaller(n, tile_rows));
            if (n == 2 * tile_rows) {
                multiply_tiles<2, 2>(K, from, edge, panel, stride, to, stride);
                multiply_tiles<2, NT - 2>(K, from, edge, panel + 2 * tile_depth, stride, to + 32, stride);
            } else {
                multiply_tiles<1, NT>(K, from, edge, panel, stride, to, stride);
            }
        });
    }

  private:
    int64_t rows_ = 0;  // of the tiles but those of weights

    MELODIA_INLINE void prepare(int64_t rows) {
        if (rows == rows_) return;
        rows_ = rows;
        struct alignas(64) {
            uint8_t palette, start_row, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } config = {};
        config.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            config.bytes[tile] = tile_bytes;
            config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : tile_rows);
        }
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
};

}  // namespace
