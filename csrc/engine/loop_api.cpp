// The loop, the rules and their followers for Python; see api.cpp. The caller frees loops and followers
// before their rules and lanes.
#include <cstdint>
#include <stdexcept>

#include "engine/api.h"
#include "engine/loop.h"
#include "engine/rules.h"

using melodia::engine::Engine;
using melodia::engine::Follower;
using melodia::engine::guarded;
using melodia::engine::LaneFacts;
using melodia::engine::Lanes;
using melodia::engine::LaneTerms;
using melodia::engine::Loop;
using melodia::engine::Rules;

namespace {

Follower& follower_of(void* pointer) { return *static_cast<Follower*>(pointer); }

Loop& loop_of(void* pointer, int64_t lane) {
    Loop& loop = *static_cast<Loop*>(pointer);
    if (lane < 0 || lane >= loop.count()) throw std::invalid_argument("there is no such lane");
    return loop;
}

void require_token(const Follower& follower, int64_t token) {
    if (token < 0 || token >= follower.rules().grammar.head->V)
        throw std::invalid_argument("the token is not in the vocabulary");
}

}  // namespace

MELODIA_API void* melodia_rules_new(const int64_t* ints, int64_t count) {
    return guarded([&]() -> void* { return new Rules(ints, count); });
}

MELODIA_API void melodia_rules_free(void* rules) { delete static_cast<Rules*>(rules); }

MELODIA_API void* melodia_follower_new(const void* rules) {
    return guarded([&]() -> void* { return new Follower(*static_cast<const Rules*>(rules)); });
}

MELODIA_API void melodia_follower_free(void* follower) { delete static_cast<Follower*>(follower); }

struct StatePlaces {
    int64_t registers, begun, rows, ends;  // addresses
    int64_t capacity;                      // of the ends
};

MELODIA_API void melodia_follower_places(void* pointer, StatePlaces* places) {
    const melodia::GrammarState& s = follower_of(pointer).grammar();
    const auto address = [](const void* p) { return static_cast<int64_t>(reinterpret_cast<intptr_t>(p)); };
    *places = {address(s.r), address(s.begun), address(s.rows), address(s.ends), s.capacity};
}

MELODIA_API int melodia_follower_mask(void* pointer, uint64_t* mask) {
    return guarded([&] {
        follower_of(pointer).check();
        follower_of(pointer).mask(mask);
        return 1;
    });
}

MELODIA_API int melodia_follower_advance(void* pointer, int64_t token) {
    return guarded([&] {
        require_token(follower_of(pointer), token);
        follower_of(pointer).check();
        follower_of(pointer).advance_grammar(token);
        return 1;
    });
}

MELODIA_API int melodia_follower_advance_side(void* pointer, int64_t token, int32_t* out) {
    return guarded([&] {
        require_token(follower_of(pointer), token);
        follower_of(pointer).advance_sides(token, out);
        return 1;
    });
}

MELODIA_API int melodia_follower_set_grammar(void* pointer, const int64_t* registers, int64_t count,
                                             const int64_t* programs, const int64_t* rows, int64_t end_count,
                                             const int64_t* ends) {
    return guarded([&] {
        follower_of(pointer).set_grammar(registers, count, programs, rows, end_count, ends);
        return 1;
    });
}

MELODIA_API int melodia_follower_set_sides(void* pointer, const int64_t* flat, int64_t count) {
    return guarded([&] {
        follower_of(pointer).set_sides(flat, count);
        return 1;
    });
}

// How many numbers there are; they are written where `capacity` has room for them.
MELODIA_API int64_t melodia_follower_sides(void* pointer, int64_t* out, int64_t capacity) {
    return guarded([&]() -> int64_t {
        const std::vector<int64_t> flat = follower_of(pointer).flat_sides();
        const auto size = static_cast<int64_t>(flat.size());
        if (size <= capacity) std::copy(flat.begin(), flat.end(), out);
        return size;
    });
}

MELODIA_API void* melodia_loop_new(const void* engine, void* lanes, const void* const* rules, int64_t count) {
    return guarded([&]() -> void* {
        return new Loop(static_cast<const Engine*>(engine)->plan, *static_cast<Lanes*>(lanes),
                        reinterpret_cast<const Rules* const*>(rules), count);
    });
}

MELODIA_API void melodia_loop_free(void* loop) { delete static_cast<Loop*>(loop); }

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

MELODIA_API int melodia_loop_bias(void* loop, int64_t lane, const float* bias) {
    return guarded([&] {
        loop_of(loop, lane).set_bias(lane, bias);
        return 1;
    });
}

MELODIA_API int melodia_loop_terms(void* loop, int64_t lane, const LaneTerms* terms) {
    return guarded([&] {
        loop_of(loop, lane).set_terms(lane, *terms);
        return 1;
    });
}

// Why it came back (Stopped), or 0.
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
