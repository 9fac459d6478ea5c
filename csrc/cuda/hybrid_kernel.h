// What the kernel of hybrid_step gets. Filled in by hybrid.cu.
//
// A stage makes numbers of all units; the next one reads all of them. Cells of a level, then what joins them
// where that is a product, and so on upwards; the last stage is the head's input. What a stage reads is a
// sum: both cells of a pair, and in residual stacks what stood below the level.
#pragma once

#include "cuda/exchange.h"
#include "cuda/hybrid.h"
#include "cuda/launch.h"

namespace melodia::cuda {

constexpr int kMaxStages = 2 * kMaxLevels + 1;
constexpr int kStackHead = 1024;  // bytes of shared memory before the tiles: the flag, then two floats a row

enum StepStage : int32_t { kStackCells, kStackMix, kStackOutput };
enum StackProduct : int32_t { kLstmProduct, kGruProduct, kMixProduct };

struct Stage {
    int32_t kind;
    int32_t cells;     // 1 or 2
    int32_t gated;     // a mix that is a gate between the two cells
    StepCell cell[2];  // of a level
    float* made[2];    // [B, H]: h of each cell, or what a mix makes
    const void* mix;
    Numbers mix_bias;
    const float *from, *beside, *below;  // [B, H] that come in; of a mix from and beside side by side, else
                                         // their sum, with null for none
    float* sum;                          // [B, H]: where the sum goes for the level above, or null
    Numbers norm_weight, norm_bias;      // of the LayerNorm on the way
};

struct StackLaunch {
    Stage stages[kMaxStages];
    Tiling tilings[3];
    int64_t B, H;
    int32_t from, to;  // stages of this launch
    int32_t blocks;    // of a group, which has rows of the batch to itself
    int32_t batch;     // rows of a group
    int32_t rescue;    // nothing is to do unless the launch before gave up
    uint32_t* counters;
    uint32_t* gave_up;
    uint64_t limit_ns;
    void* output;
    Type output_type;
};

constexpr int kStackCounterStride = 64;  // as in the scans: memory lines of their own

// For hybrid.cu: the kernel of a number type.
template <class S>
struct StackKernel {
    using Pointer = void (*)(StackLaunch);
    static Pointer get();
};

}  // namespace melodia::cuda
