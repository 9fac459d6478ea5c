// The table of kernels that every instruction set fills in (kernels_impl.h), and the plain structs they work
// on.
//
// This header is included by objects that are compiled for one instruction set: it may include no header of
// the C++ standard library, whose inline functions the linker would be free to share with everybody.
//
// B batch, T time, H hidden, G gates (4 for LSTM, 3 for GRU). All arrays are contiguous; a row is one
// sequence.
#pragma once

#include <stdint.h>

#include "cpu/bf16.h"

namespace melodia::cpu {

// E is float or bf16: what goes into products and what is kept for every step. Sums, the pointwise part and
// the state from step to step are float for both.
template <class E>
struct LstmScan {
    using Element = E;
    int64_t T, B, H;
    const E* gates_x;        // [T, B, 4H]
    const float* h;          // [B, H]
    const E* h_operand;      // h as the product reads it
    const float* c;          // [B, H]
    const void* packed;      // weight_hh, from `pack_forward`
    const float* bias_hh;    // [4H]
    const int64_t* lengths;  // [B] or null: all T
    E* output;               // [T, B, H]
    float* h_n;              // [B, H]
    float* c_n;              // [B, H]
    E* gates;                // [T, B, 4H] activated i f g o for the backward pass, or null
    float* cells;            // [T, B, H] for the backward pass, or null
};

template <class E>
struct LstmScanBackward {
    int64_t T, B, H;
    const E* grad_output;    // [T, B, H] or null: zero
    const E* gates;          // [T, B, 4H]
    const float* cells;      // [T, B, H]
    const float* c;          // [B, H]
    const void* packed;      // weight_hh, from `pack_backward`
    const int64_t* lengths;  // [B] or null
    E* grad_gates;           // [T, B, 4H]
    float* grad_h;           // [B, padded H]; holds grad_h_n before, the gradient of h after
    float* grad_c;           // [B, H]; holds grad_c_n before, the gradient of c after
};

template <class E>
struct GruScan {
    using Element = E;
    int64_t T, B, H;
    const E* gates_x;    // [T, B, 3H]
    const float* h;      // [B, H]
    const E* h_operand;  // h as the product reads it
    const void* packed;
    const float* bias_hh;    // [3H]
    const int64_t* lengths;  // [B] or null
    E* output;               // [T, B, H]
    float* h_n;              // [B, H]
    E* gates;                // [T, B, 4H] r z n and n_h = W_hn h + b_hn, or null
};

template <class E>
struct GruScanBackward {
    int64_t T, B, H;
    const E* grad_output;  // [T, B, H] or null: zero
    const E* gates;        // [T, B, 4H]
    const E* output;       // [T, B, H]
    const E* h_operand;    // [B, H]
    const void* packed;
    const int64_t* lengths;  // [B] or null
    E* grad_gates_x;         // [T, B, 3H]
    E* grad_gates_h;         // [T, B, 3H]; differs from grad_gates_x in n, behind the reset gate
    float* grad_h;           // [B, padded H]; holds grad_h_n before, the gradient of h after
};

// Sums of rows of a table, and their gradient.
template <class E>
struct Lookup {
    int64_t N, K, G;
    const int64_t* index;  // [N, K], every one a row of the table
    const E* table;        // [rows, G]
    E* out;                // [N, G]
    const E* grad_out;     // [N, G]
    float* grad_table;     // [rows, G], zeros before
};

struct Step {
    int64_t B, H;
    const float* gates_x;    // [B, GH]
    const float* h;          // [B, H]
    const float* c;          // [B, H], LSTM only
    const float* weight_hh;  // [GH, H] as torch has it
    const float* bias_hh;    // [GH]
    float* h_out;            // [B, H]
    float* c_out;            // [B, H], LSTM only
};

// out = x weight^T + bias, from weights as torch has them.
struct Linear {
    int64_t B, K, N;
    const float* x;       // [B, K]
    const float* weight;  // [N, K]
    const float* bias;    // [N]
    float* out;           // [B, N]
};
constexpr int64_t linear_group = 4;  // rows of a weight that are read together

// A packed matrix is a row of panels that do not depend on each other; ranges below count panels, rows or
// units.
template <class E>
struct ScanKernels {
    // 1: packed weights are float. Otherwise they are bf16, two successive k side by side, and behind the
    // last k zeros up to a multiple of this.
    int64_t depth_step;

    // weight [GH, H] -> panels [H / unit_panel][tiles][H][G / tiles][unit_panel], padded with zeros; tiles:
    // the register tiles that share the gates.
    void (*pack_forward)(const E* weight, int64_t G, int64_t H, void* packed, int64_t begin, int64_t end);
    // weight [GH, H] -> panels [H / backward_panel][GH][backward_panel], padded with zeros.
    void (*pack_backward)(const E* weight, int64_t G, int64_t H, void* packed, int64_t begin, int64_t end);

    // Scans over the rows begin..end; `live` is scratch for end - begin numbers.
    void (*lstm_scan)(const LstmScan<E>&, int64_t begin, int64_t end, int64_t* live);
    void (*lstm_scan_backward)(const LstmScanBackward<E>&, int64_t begin, int64_t end, int64_t* live);
    void (*gru_scan)(const GruScan<E>&, int64_t begin, int64_t end, int64_t* live);
    void (*gru_scan_backward)(const GruScanBackward<E>&, int64_t begin, int64_t end, int64_t* live);

    // The gates of the rows begin..end, as a scan keeps them: from sums [N, 4H], or gates_x and gates_h [N,
    // 3H].
    void (*lstm_gates)(int64_t H, const E* sums, const float* bias_hh, E* gates, int64_t begin, int64_t end);
    void (*gru_gates)(int64_t H, const E* gates_x, const E* gates_h, E* gates, int64_t begin, int64_t end);

    // The rows begin..end of the sums; all rows' gradients for the columns begin..end of the table.
    void (*lookup)(const Lookup<E>&, int64_t begin, int64_t end);
    void (*lookup_backward)(const Lookup<E>&, int64_t begin, int64_t end);
};

struct Kernels {
    const char* name;
    int64_t unit_panel;  // hidden units in a panel of the forward packing
    int64_t
        backward_panel;  // hidden units in a panel of the backward packing; grad_h is padded to a multiple
    ScanKernels<float> scans_float;
    ScanKernels<bf16> scans_bf16;

    // One step for the unit panels begin..end of all rows.
    void (*lstm_step)(const Step&, int64_t begin, int64_t end);
    void (*gru_step)(const Step&, int64_t begin, int64_t end);
    // The groups begin..end of the output's columns.
    void (*linear)(const Linear&, int64_t begin, int64_t end);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
extern const Kernels kernels_amx;
#endif

// dispatch.cpp: the best table this processor can run, or the one that MELODIA_CPU names.
const Kernels& kernels();

}  // namespace melodia::cpu
