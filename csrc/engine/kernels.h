// The table of decode kernels that every instruction set fills in (kernels_impl.h).
//
// Included by objects that are compiled for one instruction set: no header of the C++ standard library.
//
// A weight matrix [rows, K] is packed into panels of NV * 16 rows, k outermost, so that a product needs no
// sum across lanes: fp32 [K][NV * 16], bf16 [K / 2][NV * 16][2], int8 [K / 4][NV * 16][4]. K is padded with
// zeros to a multiple of 4. The panel of a recurrent layer is a tile of 16 units with all their gates (NV = 4
// for LSTM, 3 for GRU), so that the cell is applied where its sums are made; the panel of the head is 64
// tokens (NV = 4).
#pragma once

#include <stdint.h>

namespace melodia::engine {

enum class Weights : int32_t { fp32, bf16, int8 };

constexpr int64_t kTile = 16;      // units in a tile, floats in a lane group
constexpr int64_t kMaxRows = 12;   // sessions that one pass over a panel serves
constexpr int64_t kMaxGroups = 4;  // NV at most

// out[m][0 .. NV * 16) (+)= sum over k of x[m][k] * panel[k][0 .. NV * 16)
struct Product {
    int64_t K;              // padded
    int64_t M;              // sessions, at most kMaxRows
    int64_t NV;             // 1 to kMaxGroups
    const void* panel;      // as packed
    const float* scale;     // [NV * 16] of each row, int8 only
    const int32_t* offset;  // [NV * 16] 128 * sum of the row, int8 only
    // [M] of [K]: fp32 floats; bf16 uint16_t, the upper halves of x rounded; int8 uint8_t, round(x / x_scale)
    // + 128.
    const void* const* x;
    const float* x_scale;  // [M], int8 only
    float* const* out;     // [M] of [NV * 16]
    bool add;
};

struct Kernels {
    const char* name;
    void (*product)(Weights weights, const Product& product);
    // Sixteen units: gates [4][16] are the whole sums.
    void (*lstm)(const float* gates, const float* c, float* c_out, float* h_out);
    // gates_x [3][16] with all biases but b_hn, gates_h [3][16] with b_hn.
    void (*gru)(const float* gates_x, const float* gates_h, const float* h, float* h_out);
    // x [K] as int8 wants it -> out [K], returns the scale.
    float (*quantise)(const float* x, int64_t K, uint8_t* out);
    // x [K] as bf16 wants it -> out [K].
    void (*halve)(const float* x, int64_t K, uint16_t* out);
    // out[k] += row[k]
    void (*add)(const float* row, int64_t n, float* out);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
extern const Kernels kernels_neondot;
#endif

// dispatch.cpp: the best table this processor can run, or the one that MELODIA_CPU names.
const Kernels& kernels();
// The table of that name, or null where it is unknown or this processor cannot run it.
const Kernels* find_kernels(const char* name);

}  // namespace melodia::engine
