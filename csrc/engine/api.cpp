// The engine for Python (ctypes): plain C functions, so that one library serves every Python.
//
// Functions that can fail return 0 or null and leave a sentence in melodia_engine_error(). ctypes releases
// the GIL during a call. Pointers are made by this file and given back to it; the caller frees lanes before
// their engine.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "engine/api.h"
#include "engine/engine.h"
#include "sampling.h"

namespace melodia::engine {
thread_local std::string last_error;
}

using melodia::engine::Engine;
using melodia::engine::guarded;
using melodia::engine::Lanes;
using melodia::engine::last_error;

MELODIA_API const char* melodia_engine_error() { return last_error.c_str(); }

MELODIA_API const char* melodia_engine_instruction_set() { return melodia::engine::kernels().name; }

MELODIA_API int melodia_engine_cores() { return melodia::engine::allowed_cores(); }

MELODIA_API void* melodia_engine_new(const int64_t* ints, int64_t int_count, const float* floats,
                                     int64_t float_count, int threads) {
    return guarded([&]() -> void* { return new Engine(ints, int_count, floats, float_count, threads); });
}

MELODIA_API void melodia_engine_free(void* engine) { delete static_cast<Engine*>(engine); }

struct EngineFacts {
    int64_t V, S, context, state_size, step_bytes, memory, threads, stalls;
};

MELODIA_API void melodia_engine_facts(const void* pointer, EngineFacts* facts) {
    const auto& engine = *static_cast<const Engine*>(pointer);
    *facts = {engine.plan.V,          static_cast<int64_t>(engine.plan.side_sizes.size()),
              engine.plan.context,    engine.plan.state_size,
              engine.plan.step_bytes, engine.plan.arena.size(),
              engine.team.threads(),  engine.team.stalls()};
}

MELODIA_API void* melodia_lanes_new(void* engine, int64_t count) {
    return guarded([&]() -> void* { return new Lanes(*static_cast<Engine*>(engine), count); });
}

MELODIA_API void melodia_lanes_free(void* lanes) { delete static_cast<Lanes*>(lanes); }

// tokens [T, B], sides [T, B, S], logits null, [T, B, V] if all, else [B, V].
MELODIA_API int melodia_lanes_advance(void* lanes, int64_t T, const int32_t* tokens, const int32_t* sides,
                                      float* logits, int all) {
    return guarded([&] {
        static_cast<Lanes*>(lanes)->advance(T, tokens, sides, logits, all != 0);
        return 1;
    });
}

MELODIA_API int melodia_lanes_read(const void* lanes, int64_t lane, float* state) {
    return guarded([&] {
        const auto& l = *static_cast<const Lanes*>(lanes);
        if (lane < 0 || lane >= l.count()) throw std::invalid_argument("there is no such session");
        l.read(lane, state);
        return 1;
    });
}

MELODIA_API int melodia_lanes_write(void* lanes, int64_t lane, const float* state) {
    return guarded([&] {
        auto& l = *static_cast<Lanes*>(lanes);
        if (lane < 0 || lane >= l.count()) throw std::invalid_argument("there is no such session");
        l.write(lane, state);
        return 1;
    });
}

struct SamplingNumbers {
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k;
    int64_t greedy;
};

struct ChoiceNumbers {
    int64_t token;
    double nll, entropy;
};

// logits [V], legal [V] bytes or null, recent: ids, in any order and number.
MELODIA_API int melodia_choose(const float* logits, int64_t V, const uint8_t* legal, const int32_t* recent,
                               int64_t recent_count, const SamplingNumbers* numbers, uint64_t random_seed,
                               uint32_t session, uint64_t position, int details, ChoiceNumbers* out) {
    return guarded([&] {
        thread_local std::unique_ptr<melodia::Chooser> chooser;
        thread_local std::vector<uint64_t> bits;
        thread_local std::vector<int32_t> distinct;
        if (V < 1 || V > (1 << 20)) throw std::invalid_argument("the vocabulary is too large");
        if (!chooser) chooser = std::make_unique<melodia::Chooser>(0);
        if (legal != nullptr) {
            bits.assign(static_cast<size_t>(V + 63) / 64, 0);
            for (int64_t v = 0; v < V; ++v) bits[v / 64] |= uint64_t{legal[v] != 0} << (v % 64);
        }
        distinct.assign(recent, recent + recent_count);
        std::sort(distinct.begin(), distinct.end());
        distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
        melodia::Sampling sampling;
        sampling.temperature = static_cast<float>(numbers->temperature);
        sampling.top_k = static_cast<int32_t>(std::min<int64_t>(numbers->top_k, 1 << 30));
        sampling.top_p = numbers->top_p;
        sampling.min_p = numbers->min_p;
        sampling.repetition_penalty = static_cast<float>(numbers->repetition_penalty);
        sampling.greedy = numbers->greedy != 0;
        const melodia::Choice choice = chooser->choose(
            logits, static_cast<int32_t>(V), legal == nullptr ? nullptr : bits.data(), distinct.data(),
            static_cast<int32_t>(distinct.size()), sampling, random_seed, session, position, details != 0);
        *out = {choice.token, choice.nll, choice.entropy};
        return 1;
    });
}
