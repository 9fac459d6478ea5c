// The decode engine on CUDA for Python (melodia/engine/cuda_native.py): plain C functions, because nvcc's
// objects are linked without Python. Followers and rules are those of the CPU's engine: both are built from
// one tree.
//
// Functions that can fail return 0 or null and leave a sentence in melodia_engine_error(). Pointers are made
// by this file and given back to it; the caller frees loops before their lanes, and lanes before their
// engine.
#include <cstring>
#include <exception>
#include <string>

#include "cuda/decode_loop.h"

#define MELODIA_API extern "C" __attribute__((visibility("default")))

using namespace melodia::cuda::decode;

namespace {

thread_local std::string last_error;

// Runs a body on the first device; where it throws, keeps the sentence and returns nothing (0, null).
template <class F>
auto guarded(F&& body) -> decltype(body()) {
    const melodia::cuda::FirstDevice device;
    try {
        return body();
    } catch (const std::exception& error) {
        last_error = error.what();
    } catch (...) {
        last_error = "an unknown error";
    }
    return {};
}

Options options;

Loop& loop_of(void* pointer, int64_t lane) {
    Loop& loop = *static_cast<Loop*>(pointer);
    if (lane < 0 || lane >= loop.count()) throw std::invalid_argument("there is no such lane");
    return loop;
}

}  // namespace

MELODIA_API const char* melodia_engine_error() { return last_error.c_str(); }

// Why there is no device to run on; empty if there is one.
MELODIA_API const char* melodia_cuda_obstacle() {
    const melodia::cuda::FirstDevice device;
    const char* why = melodia::cuda::obstacle_of_device();
    return why != nullptr ? why : "";
}

// For engines that are made from now on.
MELODIA_API void melodia_cuda_options(const Options* wanted) { options = *wanted; }

#if defined(MELODIA_EMULATOR)
MELODIA_API void melodia_emulator_configure(uint64_t schedule, int64_t resident_blocks, int64_t shared_bytes,
                                            int32_t expire) {
    melodia::emulator::machine.setup = {schedule, resident_blocks, shared_bytes, expire != 0};
}
MELODIA_API int64_t melodia_emulator_faults() { return melodia::emulator::machine.faults; }
#endif

MELODIA_API void* melodia_engine_new(const int64_t* ints, int64_t int_count, const float* floats,
                                     int64_t float_count, int) {
    return guarded([&]() -> void* { return new Decoder(ints, int_count, floats, float_count, options); });
}

MELODIA_API void melodia_engine_free(void* engine) {
    const melodia::cuda::FirstDevice device;
    delete static_cast<Decoder*>(engine);
}

struct EngineFacts {
    int64_t V, S, context, state_size, step_bytes, memory, threads, stalls;
};

// threads: compute blocks; stalls: launches that fell back.
MELODIA_API void melodia_engine_facts(const void* pointer, EngineFacts* facts) {
    const auto& decoder = *static_cast<const Decoder*>(pointer);
    *facts = {decoder.plan.V,          static_cast<int64_t>(decoder.plan.side_sizes.size()),
              decoder.plan.context,    decoder.plan.state_size,
              decoder.plan.step_bytes, decoder.memory.size(),
              decoder.net.blocks,      decoder.fallbacks};
}

// Why the last launch fell back; empty: none did.
MELODIA_API const char* melodia_cuda_fallback(const void* pointer) {
    return static_cast<const Decoder*>(pointer)->fallback.c_str();
}

MELODIA_API void* melodia_lanes_new(void* engine, int64_t count) {
    return guarded([&]() -> void* { return new Lanes(*static_cast<Decoder*>(engine), count); });
}

MELODIA_API void melodia_lanes_free(void* lanes) {
    const melodia::cuda::FirstDevice device;
    delete static_cast<Lanes*>(lanes);
}

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

MELODIA_API void* melodia_loop_new(void* engine, void* lanes, const void* const* rules, int64_t count) {
    return guarded([&]() -> void* {
        return new Loop(*static_cast<Decoder*>(engine), *static_cast<Lanes*>(lanes),
                        reinterpret_cast<const melodia::engine::Rules* const*>(rules), count);
    });
}

MELODIA_API void melodia_loop_free(void* loop) {
    const melodia::cuda::FirstDevice device;
    delete static_cast<Loop*>(loop);
}

MELODIA_API const LaneFacts* melodia_loop_facts(void* loop) { return static_cast<Loop*>(loop)->facts(); }

MELODIA_API void* melodia_loop_follower(void* loop, int64_t lane) {
    return guarded([&]() -> void* { return &loop_of(loop, lane).follower(lane); });
}

MELODIA_API float* melodia_loop_logits(void* loop, int64_t lane) {
    return guarded([&] { return loop_of(loop, lane).logits(lane); });
}

struct BeginNumbers {
    double temperature, top_p, min_p, repetition_penalty;
    int64_t top_k, greedy, window;
    uint64_t random_seed;
    int64_t session, fed;
};

MELODIA_API int melodia_loop_begin(void* loop, int64_t lane, const BeginNumbers* numbers,
                                   const int64_t* recent, int64_t recent_count) {
    return guarded([&] {
        melodia::Sampling sampling;
        sampling.temperature = static_cast<float>(numbers->temperature);
        sampling.top_k = static_cast<int32_t>(numbers->top_k < (1 << 30) ? numbers->top_k : 1 << 30);
        sampling.top_p = numbers->top_p;
        sampling.min_p = numbers->min_p;
        sampling.repetition_penalty = static_cast<float>(numbers->repetition_penalty);
        sampling.greedy = numbers->greedy != 0;
        loop_of(loop, lane)
            .begin(lane, sampling, numbers->window, numbers->random_seed,
                   static_cast<uint32_t>(numbers->session), numbers->fed, recent, recent_count);
        return 1;
    });
}

MELODIA_API int melodia_loop_bias(void* loop, int64_t lane, const float* rows, int64_t count,
                                  const int32_t* row_of, const uint64_t* members, double exponent) {
    return guarded([&] {
        loop_of(loop, lane).set_bias(lane, rows, count, row_of, members, exponent);
        return 1;
    });
}

MELODIA_API int melodia_loop_terms(void* loop, int64_t lane, const LaneTerms* terms) {
    return guarded([&] {
        loop_of(loop, lane).set_terms(lane, *terms);
        return 1;
    });
}

MELODIA_API int64_t melodia_loop_run(void* loop, int64_t steps, int64_t microseconds, const int32_t* flag) {
    return guarded(
        [&] { return static_cast<int64_t>(static_cast<Loop*>(loop)->run(steps, microseconds, flag)); });
}

MELODIA_API int melodia_loop_choose(void* loop, int64_t lane, const uint64_t* legal) {
    return guarded([&] {
        loop_of(loop, lane).choose(lane, legal);
        return 1;
    });
}

MELODIA_API int melodia_loop_take(void* loop, int64_t lane) {
    return guarded([&] {
        loop_of(loop, lane).take(lane);
        return 1;
    });
}

MELODIA_API int melodia_loop_drain(void* loop, int64_t lane, int32_t* tokens, double* nll, double* entropy) {
    return guarded([&] {
        loop_of(loop, lane).drain(lane, tokens, nll, entropy);
        return 1;
    });
}

MELODIA_API int melodia_loop_keep(void* loop, void* lanes, const int64_t* kept, int64_t count) {
    return guarded([&] {
        static_cast<Loop*>(loop)->keep(*static_cast<Lanes*>(lanes), kept, count);
        return 1;
    });
}
