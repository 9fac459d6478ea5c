#include "engine/loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>

namespace melodia::engine {

Loop::Loop(const Plan& plan, Lanes& lanes, const Rules* const* rules, int64_t count)
    : Voices(plan, lanes.count(), rules, count),
      lanes_(&lanes),
      S_(static_cast<int64_t>(plan.side_sizes.size())) {
    tokens_.assign(count, 0);
    sides_.assign(static_cast<size_t>(count * S_), 0);
    legal_.assign(W_, 0);
    wanted_.assign(W_, 0);
}

void Loop::keep(Lanes& lanes, const int64_t* kept, int64_t count) {
    Voices::keep(lanes.count(), kept, count);
    lanes_ = &lanes;
}

Stopped Loop::run(int64_t steps, int64_t microseconds, const int32_t* flag) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::microseconds(microseconds);
    const int64_t B = count();
    for (const auto& voice : voices_) voice->follower.check();
    for (int64_t done = 0;;) {
        bool asked = B == 0;
        for (int64_t lane = 0; lane < B; ++lane) {
            if (facts_[lane].is(Standing::ready)) decide(lane);
            asked = asked || facts_[lane].over();
        }
        if (asked) return Stopped::lane;
        if (flag != nullptr && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0) return Stopped::flag;
        if (feed()) return Stopped::pause;
        if (++done == steps) return Stopped::steps;
        if (microseconds > 0 && Clock::now() >= until) return Stopped::time;
    }
}

void Loop::decide(int64_t lane) {
    Voice& v = *voices_[lane];
    if (v.terms.tokens <= 0) {
        facts_[lane].set(Standing::asks);
        return;
    }
    v.follower.mask(legal_.data());
    wanted_ = legal_;
    if (v.terms.exclude != nullptr)
        for (int64_t w = 0; w < W_; ++w) wanted_[w] &= ~v.terms.exclude[w];
    const GrammarRegisters& r = *v.follower.grammar().r;
    const std::vector<int64_t>& moves = v.follower.rules().moves;
    for (int rule = 0; rule < LaneTerms::kRules; ++rule) {
        const uint64_t* late = v.terms.late[rule];
        for (int64_t w = 0; late != nullptr && w < W_; ++w) {
            for (uint64_t bits = wanted_[w] & late[w]; bits != 0; bits &= bits - 1) {
                const int64_t token = w * 64 + __builtin_ctzll(bits);
                if (r.now + moves[token] * r.unit >= v.terms.ticks[rule]) clear_bit(wanted_.data(), token);
            }
        }
    }
    uint64_t any = 0;
    for (uint64_t word : wanted_) any |= word;
    draw(lane, any != 0 ? wanted_.data() : legal_.data());
    LaneFacts& facts = facts_[lane];
    if (facts.over()) return;
    const int64_t moved = moves[facts.token];
    if ((v.terms.stop != nullptr && has_bit(v.terms.stop, facts.token)) ||
        (moved > 0 && r.now + moved * r.unit >= v.terms.stop_tick))
        facts.set(Standing::stopped);
}

// One step of every lane; whether one of them ended a note and is to pause.
bool Loop::feed() {
    bool pause = false;
    for (int64_t lane = 0; lane < count(); ++lane) {
        Voice& v = *voices_[lane];
        LaneFacts& facts = facts_[lane];
        if (facts.is(Standing::chosen)) accept(lane);
        v.follower.advance_sides(facts.token, sides_.data() + lane * S_);
        tokens_[lane] = static_cast<int32_t>(facts.token);
        facts.set(Standing::ready);
        pause |= v.terms.pause != 0 && (v.follower.rules().traits[facts.token] & Rules::kEndsNote) != 0;
    }
    lanes_->advance(1, tokens_.data(), sides_.data(), logits_.data(), false);
    return pause;
}

}  // namespace melodia::engine
