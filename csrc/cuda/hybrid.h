// hybrid_step on CUDA, for whoever calls it: a whole stack by one token. Plain pointers, no torch; meanings
// as in csrc/ops.cpp. S is the type of gates and matrices; states and vectors come in any type of their own.
#pragma once

#include "cuda/scan.h"

namespace melodia::cuda {

constexpr int kMaxLevels = 16;

struct Numbers {  // of any type; data null: there are none
    const void* data;
    Type type;
};

struct StepCell {
    int32_t lstm;
    const void* gates_x;    // S [B, GH], of the first level
    const void* weight_ih;  // S [GH, H], of the others
    Numbers bias_ih;        // [GH]
    const void* weight_hh;  // S [GH, H]
    Numbers bias_hh;        // [GH]
    Numbers h, c;           // [B, H]; c of an LSTM
    void *h_n, *c_n;        // in the types of h and c
};

enum class Join : int32_t { none, concat, sum, gated };  // what joins the cells of a level

struct StepLevel {
    Join join;         // none: one cell, else an LSTM and a GRU
    StepCell cell[2];  //
    const void* mix;   // S [H, 2H], of concat and gated
    Numbers mix_bias;  // [H]
    Numbers norm_weight, norm_bias;
};

struct StepStack {
    int64_t B, H;
    int32_t count, residual;
    const StepLevel* levels;
    void* output;  // [B, H], what the head reads
    Type output_type;
};

// As scan_forward: null, or a sentence that says what went wrong; `workspace` has stack_workspace bytes.
int64_t stack_workspace(const StepStack& stack);
const char* stack_step(Type type, const StepStack& stack, const ScanOptions& options, void* workspace,
                       void* stream, Path* chosen);
int64_t stack_rescues();  // as scan_rescues

}  // namespace melodia::cuda
