// The engine: a packed network, the threads that run it, and sessions.
//
// Letters as in plan.h, and B sessions, T steps. Rows of a call are step after step, session after session: t
// B + b.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/plan.h"
#include "engine/team.h"

namespace melodia::engine {

class Engine {
  public:
    Engine(const int64_t* ints, int64_t int_count, const float* floats, int64_t float_count, int threads)
        : plan(ints, int_count, floats, float_count), team(threads) {}

    const Plan plan;
    Team team;
};

// Floats that begin at a cache line; grows, never shrinks.
template <class T>
class Buffer {
  public:
    T* get(int64_t count) {
        if (count > size_) {
            data_.assign(static_cast<size_t>(count) + 64 / sizeof(T), T{});
            size_ = count;
        }
        const auto address = reinterpret_cast<uintptr_t>(data_.data());
        return data_.data() + (64 - address % 64) % 64 / sizeof(T);
    }

  private:
    std::vector<T> data_;
    int64_t size_ = 0;
};

// B sessions that advance together; each caller drives its own. Not for several threads at once.
class Lanes {
  public:
    Lanes(Engine& engine, int64_t count);

    int64_t count() const { return B_; }

    // T steps: tokens [T, B], sides [T, B, S]. logits: null, or [T, B, V] if all, else [B, V] of the last
    // step. Throws std::invalid_argument for a token or a side input outside its limits; the state stays
    // then.
    void advance(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all);

    // The state of one session, float [state_size]: for each level and cell h [H], then c [H] of an LSTM.
    // With an encoder, behind it: for each of its levels the forward h [E], then c [E] of an LSTM; the
    // summary [2E] of the last finished block; the number of finished blocks; the tokens of the unfinished
    // one [block_max], their side inputs [block_max, S], and how many they are. Zeros are the beginning of a
    // piece.
    void read(int64_t lane, float* state) const;
    // Throws std::invalid_argument where a number is not finite or not within its limits; the state stays
    // then.
    void write(int64_t lane, const float* state);

  private:
    struct Layer {      // of a level
        int64_t cells;  // 1 or 2
        float* h;       // [B][cells][Hp]
        float* c;       // [B][Hp]; of the LSTM
    };
    struct Codes {  // activations as the weights want them (kernels.h)
        const char* data = nullptr;
        int64_t stride = 0;            // bytes of a row
        const float* scale = nullptr;  // of each row, int8 only

        Codes from(int64_t row) const {
            return {data + row * stride, stride, scale == nullptr ? nullptr : scale + row};
        }
    };
    struct CodeBuffer {
        Buffer<char> data;
        Buffer<float> scale;
    };
    // What a cell reads, in rows t B + b.
    struct Source {
        const int32_t* tokens = nullptr;  // [T, B], of a cell with tables
        const int32_t* sides = nullptr;   // [T, B, S]
        const float* x = nullptr;         // [T, B][stride], of the others
        int64_t stride = 0;
        const float* share = nullptr;  // added for each b: [B][share_stride]
        int64_t share_stride = 0;
    };
    struct Scan;
    struct Block {  // of an encoder, the last one of a session
        std::vector<int32_t> tokens, sides;
        std::vector<float> summary;
        int64_t read = 0;  // blocks that were finished
    };
    struct Reading;

    void chunk(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all);
    template <class Work>
    void run(int64_t tiles, int64_t bytes, Work&& work);
    Codes encode(CodeBuffer& buffer, const float* x, int64_t stride, int64_t K, int64_t rows) const;
    const float* normalise(const Norm& norm, int64_t units, const float* x, int64_t stride, int64_t rows,
                           Buffer<float>& out) const;
    void product(const Panels& panels, int64_t panel, const Codes& codes, int64_t M, float* const* out) const;
    const float* embed(int64_t rows, const int32_t* tokens, const int32_t* sides, Buffer<float>& out) const;
    void input_gates(const Scan& a, int64_t tile) const;
    void recur(const Scan& a, int64_t tile, int64_t t, int64_t n) const;
    void scan(const std::vector<Cell>& cells, const Source* sources, int64_t T, int64_t B,
              const int64_t* live, float* steps, float* const* c);
    void level(size_t index, int64_t T, const int32_t* tokens, const int32_t* sides, const float* x,
               const float* below, float* y);
    void project(const Panels& panels, const float* bias, const float* x, int64_t stride, int64_t rows,
                 float* out, int64_t out_stride, int64_t columns);

    // blocks.cpp
    bool opens(const Block& block, int32_t token) const;
    int64_t listen(int64_t T, const int32_t* tokens, const int32_t* sides);
    Reading gather(std::vector<int64_t>& lanes) const;
    void read_level(size_t index, const Reading& blocks, const float* x, float* y);
    void read_blocks(std::vector<int64_t>& lanes);
    void read_block_state(int64_t lane, float* state) const;
    void write_block_state(int64_t lane, const float* state);
    void share(int64_t lane, const float* summary);

    Engine& engine_;
    const Plan& plan_;
    const int64_t B_;
    Arena arena_;
    std::vector<Layer> layers_;
    float* context_ = nullptr;    // [B][cells of the bottom][4 Hp]: the summary's share of its gates
    bool alone_ = true;           // the team works for someone else
    std::vector<Layer> encoder_;  // forward: h [B][Ep], c [B][Ep]
    std::vector<Block> blocks_;   // [B], of an encoder
    std::vector<int64_t> finished_;

    Buffer<float> gates_[2], outputs_[2], normed_, steps_, joined_, embedded_;
    CodeBuffer codes_x_[2], codes_h_[2];
};

}  // namespace melodia::engine
