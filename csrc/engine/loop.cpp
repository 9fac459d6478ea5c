#include "engine/loop.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>

namespace melodia::engine {

namespace {

bool over(const LaneFacts& facts) { return facts.standing >= static_cast<int64_t>(Standing::stopped); }

}  // namespace

Loop::Loop(const Plan& plan, Lanes& lanes, const Rules* const* rules, int64_t count)
    : lanes_(&lanes),
      V_(plan.V),
      S_(static_cast<int64_t>(plan.side_sizes.size())),
      W_((V_ + 63) / 64),
      chooser_(static_cast<int32_t>(V_)) {
    if (count != lanes.count()) throw std::invalid_argument("there must be rules for every session");
    for (int64_t lane = 0; lane < count; ++lane) {
        const Rules& of = *rules[lane];
        if (of.grammar.head->V != V_) throw std::invalid_argument("the grammar is of another vocabulary");
        if (of.sides.tables.S != S_ ||
            !std::equal(plan.side_sizes.begin(), plan.side_sizes.end(), of.sides.tables.sizes))
            throw std::invalid_argument("the side inputs are not those of the network");
        voices_.push_back(std::make_shared<Voice>(of));
    }
    facts_.assign(count, LaneFacts{static_cast<int64_t>(Standing::ready), -1, 0.0, 0.0, 0, 0});
    logits_.assign(static_cast<size_t>(count * V_), 0.0f);
    tokens_.assign(count, 0);
    sides_.assign(static_cast<size_t>(count * S_), 0);
    legal_.assign(W_, 0);
    wanted_.assign(W_, 0);
    seen_.assign(V_, 0);
}

void Loop::begin(int64_t lane, const Sampling& sampling, int64_t window, uint64_t random_seed,
                 uint32_t session, int64_t fed, const int64_t* recent, int64_t recent_count) {
    Voice& v = *voices_[lane];
    if (window < 1 || window > (1 << 20))
        throw std::invalid_argument("the window of the penalty is too long");
    v.sampling = sampling;
    v.random_seed = random_seed;
    v.session = session;
    facts_[lane].fed = fed;
    v.recent.assign(sampling.repetition_penalty == 1.0f ? 0 : window, -1);
    v.at = 0;
    for (int64_t i = std::max<int64_t>(0, recent_count - window); !v.recent.empty() && i < recent_count;
         ++i) {
        if (recent[i] < 0 || recent[i] >= V_) throw std::invalid_argument("a token is not in the vocabulary");
        v.recent[v.at++ % window] = static_cast<int32_t>(recent[i]);
    }
}

void Loop::set_terms(int64_t lane, const LaneTerms& terms) {
    Voice& v = *voices_[lane];
    v.terms = terms;
    v.bits.clear();
    v.bits.reserve(static_cast<size_t>(W_) * (LaneTerms::kRules + 2));
    auto keep = [&](const uint64_t*& from) {
        if (from == nullptr) return;
        v.bits.insert(v.bits.end(), from, from + W_);
        from = v.bits.data() + v.bits.size() - W_;
    };
    for (const uint64_t*& late : v.terms.late) keep(late);
    keep(v.terms.exclude);
    keep(v.terms.stop);
    v.follower.sides().r.bars_total = std::max<int64_t>(0, terms.bars_total);
    if (facts_[lane].standing == static_cast<int64_t>(Standing::asks))
        facts_[lane].standing = static_cast<int64_t>(Standing::ready);
}

Stopped Loop::run(int64_t steps, int64_t microseconds, const int32_t* flag) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::microseconds(microseconds);
    const int64_t B = count();
    for (const auto& voice : voices_) voice->follower.check();
    for (int64_t done = 0;;) {
        bool asked = B == 0;
        for (int64_t lane = 0; lane < B; ++lane) {
            if (facts_[lane].standing == static_cast<int64_t>(Standing::ready)) decide(lane);
            asked = asked || over(facts_[lane]);
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
        facts_[lane].standing = static_cast<int64_t>(Standing::asks);
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
    if (over(facts)) return;
    const int64_t moved = moves[facts.token];
    if ((v.terms.stop != nullptr && has_bit(v.terms.stop, facts.token)) ||
        (moved > 0 && r.now + moved * r.unit >= v.terms.stop_tick))
        facts.standing = static_cast<int64_t>(Standing::stopped);
}

void Loop::draw(int64_t lane, const uint64_t* legal) {
    Voice& v = *voices_[lane];
    LaneFacts& facts = facts_[lane];
    distinct_.clear();
    if (++stamp_ == INT32_MAX) std::fill(seen_.begin(), seen_.end(), stamp_ = 0), ++stamp_;
    for (const int32_t token : v.recent) {
        if (token < 0 || seen_[token] == stamp_) continue;
        if ((v.follower.rules().traits[token] & Rules::kBeginsNote) == 0) continue;
        seen_[token] = stamp_;
        distinct_.push_back(token);
    }
    const Choice choice = chooser_.choose(logits(lane), static_cast<int32_t>(V_), legal, distinct_.data(),
                                          static_cast<int32_t>(distinct_.size()), v.sampling, v.random_seed,
                                          v.session, static_cast<uint64_t>(facts.fed), true);
    facts.token = choice.token;
    facts.nll = choice.nll;
    facts.entropy = choice.entropy;
    facts.standing = static_cast<int64_t>(choice.token >= 0             ? Standing::chosen
                                          : choice.token == kNotANumber ? Standing::nan
                                                                        : Standing::nothing);
}

void Loop::choose(int64_t lane, const uint64_t* legal) {
    check(lane, Standing::asks);
    draw(lane, legal);
    if (!over(facts_[lane])) facts_[lane].standing = static_cast<int64_t>(Standing::stopped);
}

void Loop::check(int64_t lane, Standing standing) const {
    if (facts_[lane].standing != static_cast<int64_t>(standing))
        throw std::invalid_argument("the lane does not wait for this");
}

void Loop::take(int64_t lane) {
    check(lane, Standing::stopped);
    voices_[lane]->follower.check();
    accept(lane);
    facts_[lane].standing = static_cast<int64_t>(Standing::taken);
}

// Steps the grammar behind the chosen token.
void Loop::accept(int64_t lane) {
    Voice& v = *voices_[lane];
    LaneFacts& facts = facts_[lane];
    v.follower.advance_grammar(facts.token);
    v.tokens.push_back(static_cast<int32_t>(facts.token));
    v.nll.push_back(facts.nll);
    v.entropy.push_back(facts.entropy);
    if (!v.recent.empty())
        v.recent[v.at++ % static_cast<int64_t>(v.recent.size())] = static_cast<int32_t>(facts.token);
    v.terms.tokens -= 1;
    facts.made += 1;
    facts.fed += 1;
}

// One step of every lane; whether one of them ended a note and is to pause.
bool Loop::feed() {
    bool pause = false;
    for (int64_t lane = 0; lane < count(); ++lane) {
        Voice& v = *voices_[lane];
        LaneFacts& facts = facts_[lane];
        if (facts.standing == static_cast<int64_t>(Standing::chosen)) accept(lane);
        v.follower.advance_sides(facts.token, sides_.data() + lane * S_);
        tokens_[lane] = static_cast<int32_t>(facts.token);
        facts.standing = static_cast<int64_t>(Standing::ready);
        pause |= v.terms.pause != 0 && (v.follower.rules().traits[facts.token] & Rules::kEndsNote) != 0;
    }
    lanes_->advance(1, tokens_.data(), sides_.data(), logits_.data(), false);
    return pause;
}

void Loop::drain(int64_t lane, int32_t* tokens, double* nll, double* entropy) {
    Voice& v = *voices_[lane];
    std::copy(v.tokens.begin(), v.tokens.end(), tokens);
    std::copy(v.nll.begin(), v.nll.end(), nll);
    std::copy(v.entropy.begin(), v.entropy.end(), entropy);
    v.tokens.clear();
    v.nll.clear();
    v.entropy.clear();
    facts_[lane].made = 0;
}

void Loop::keep(Lanes& lanes, const int64_t* kept, int64_t count) {
    if (count != lanes.count()) throw std::invalid_argument("the sessions are not those that go on");
    for (int64_t i = 0; i < count; ++i)
        if (kept[i] < (i == 0 ? 0 : kept[i - 1] + 1) || kept[i] >= this->count())
            throw std::invalid_argument("the lanes to keep must ascend");
    for (int64_t i = 0; i < count; ++i) {
        std::swap(voices_[i], voices_[kept[i]]);
        facts_[i] = facts_[kept[i]];
        std::memmove(logits(i), logits(kept[i]), static_cast<size_t>(V_) * sizeof(float));
    }
    voices_.resize(static_cast<size_t>(count));
    lanes_ = &lanes;
}

}  // namespace melodia::engine
