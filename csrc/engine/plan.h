// A network, packed for decoding, and the form in which a caller describes it.
//
// A description is a row of whole numbers that say what there is, and a row of floats with the tensors in
// that order (plan.cpp). It comes from outside: everything is checked, a wrong one is refused with a
// PlanError, and nothing is read beyond its ends. Letters: V vocabulary, S side inputs, D embedding, H
// hidden, G gates (4 of an LSTM, 3 of a GRU), E units of a block encoder in each direction. Hp is H padded to
// whole tiles, Ep is E padded.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "engine/kernels.h"

namespace melodia::engine {

struct PlanError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

constexpr int64_t padded(int64_t n, int64_t unit = kTile) { return (n + unit - 1) / unit * unit; }

// Memory that is zero at first, begins at a cache line, and asks for huge pages where there is much of it.
class Arena {
  public:
    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(bytes(count * static_cast<int64_t>(sizeof(T))));
    }
    int64_t size() const { return size_; }

  private:
    struct Free {
        void operator()(void* memory) const;
    };
    void* bytes(int64_t count);
    std::vector<std::unique_ptr<void, Free>> blocks_;
    int64_t size_ = 0;
};

// A packed matrix; see kernels.h.
struct Panels {
    Weights weights = Weights::fp32;
    int64_t K = 0, NV = 0, count = 0;
    int64_t stride = 0;  // bytes of a panel
    const char* data = nullptr;
    const float* scale = nullptr;     // [count][NV * 16]
    const int32_t* offset = nullptr;  // [count][NV * 16]

    int64_t rows() const { return NV * kTile; }
};

struct Cell {
    bool lstm = true;
    int64_t gates = 4;
    int64_t H = 0, Hp = 0;
    Panels input;      // count 0: the bottom of a plan with tables
    Panels recurrent;  // K = Hp
    Panels context;    // of a conditioned bottom
    // [Hp / 16][G][16]. bias: everything that is added before the cell; bias_n: b_hn of a GRU, [Hp /
    // 16][3][16].
    const float* bias = nullptr;
    const float* bias_n = nullptr;
    std::vector<const float*> tables;  // the token's, then the side inputs': rows of [Hp / 16][G][16]

    int64_t width() const { return gates * kTile; }  // floats of a tile
};

struct Norm {
    const float* weight = nullptr;  // [Hp]; null: no norm
    const float* bias = nullptr;
    float eps = 0.0f;
};

enum class Combine : int64_t { single, concat, sum, gated };

struct Level {
    Combine combine = Combine::single;
    std::vector<Cell> cells;
    Panels projection;  // concat, gated: [H, 2 Hp]
    const float* projection_bias = nullptr;
    bool residual = false;
    Norm norm;  // of what the next level or the head reads
};

// Reads finished blocks in both directions; what it makes of the last one conditions the bottom level.
struct Encoder {
    struct Level {
        std::vector<Cell> cells;  // forward, which carries on from block to block; backward
        Norm norm;                // [2E] of what the next level or the summary reads
    };
    int64_t E = 0, Ep = 0;
    int64_t block_max = 0;  // tokens at which a block ends
    bool residual = false;
    std::vector<uint8_t> opens;    // [V] whether a token begins a block; empty: none does
    std::vector<Level> levels;     // empty: there is no encoder
    const float* start = nullptr;  // [2E] the summary before the first block

    bool reads() const { return !levels.empty(); }
};

struct Plan {
    // Both rows are read during the call only.
    Plan(const int64_t* ints, int64_t int_count, const float* floats, int64_t float_count);

    // Throws std::invalid_argument unless these numbers [state_size] are finite, and those that count or name
    // something whole and within their limits (engine.h has their order).
    void check_state(const float* state) const;
    // Throws std::invalid_argument for a token [rows] or a side input [rows, S] that lies outside its limits.
    void check_steps(int64_t rows, const int32_t* tokens, const int32_t* sides) const;

    Weights weights = Weights::fp32;
    int64_t V = 0, H = 0, Hp = 0, D = 0, Dp = 0;
    int64_t context = 0, context_padded = 0;  // 2E, or 0
    bool folded = true;                       // the bottom's input products stand in tables
    std::vector<int64_t> side_sizes;          // [S]
    std::vector<const float*> embeddings;     // not folded: [V or size][Dp]
    std::vector<Level> levels;
    Panels head_projection;
    Panels head;
    const float* head_bias = nullptr;  // padded to whole panels
    Encoder encoder;
    int64_t state_size = 0;  // floats of one session's state
    int64_t step_bytes = 0;  // of weights that one token reads

    Arena arena;
};

}  // namespace melodia::engine
