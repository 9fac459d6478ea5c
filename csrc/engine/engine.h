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

    // The state of one session: for each level and cell h [H], then c [H] of an LSTM. float [state_size].
    void read(int64_t lane, float* state) const;
    // Throws std::invalid_argument where a number is not finite.
    void write(int64_t lane, const float* state);
    // What conditions the bottom level from now on: summary [context].
    void condition(int64_t lane, const float* summary);

  private:
    struct Layer {      // of a level
        int64_t cells;  // 1 or 2
        float* h;       // [B][cells][Hp]
        float* c;       // [B][Hp]; of the LSTM
    };
    struct Codes {  // activations as bytes, int8 only
        uint8_t* data = nullptr;
        float* scale = nullptr;
    };

    void chunk(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all);
    template <class Work>
    void run(int64_t tiles, int64_t bytes, Work&& work);
    Codes quantise(Buffer<uint8_t>& codes, Buffer<float>& scales, const float* x, int64_t stride, int64_t K,
                   int64_t rows) const;
    const float* normalise(const Norm& norm, const float* x, int64_t rows, Buffer<float>& out) const;
    void product(const Panels& panels, int64_t panel, const float* x, int64_t stride, const Codes& codes,
                 int64_t row, int64_t M, float* const* out) const;
    void level(size_t index, int64_t T, const int32_t* tokens, const int32_t* sides, const float* x,
               const float* below, float* y);
    void project(const Panels& panels, const float* bias, const float* x, int64_t stride, int64_t rows,
                 float* out, int64_t out_stride, int64_t columns);

    Engine& engine_;
    const Plan& plan_;
    const int64_t B_;
    Arena arena_;
    std::vector<Layer> layers_;
    float* context_ = nullptr;  // [B][cells of the bottom][4 Hp]: the summary's share of its gates
    bool alone_ = true;         // the team works for someone else

    Buffer<float> gates_[2], outputs_[2], normed_, steps_, joined_, scales_x_, scales_h_;
    Buffer<uint8_t> codes_x_, codes_h_;
};

}  // namespace melodia::engine
