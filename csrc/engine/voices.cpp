#include "engine/voices.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace melodia::engine {

Voices::Voices(const Plan& plan, int64_t sessions, const Rules* const* rules, int64_t count)
    : V_(plan.V), W_((plan.V + 63) / 64), chooser_(static_cast<int32_t>(plan.V)) {
    if (count != sessions) throw std::invalid_argument("there must be rules for every session");
    for (int64_t lane = 0; lane < count; ++lane) {
        const Rules& of = *rules[lane];
        if (of.grammar.head->V != V_) throw std::invalid_argument("the grammar is of another vocabulary");
        if (of.sides.tables.S != static_cast<int64_t>(plan.side_sizes.size()) ||
            !std::equal(plan.side_sizes.begin(), plan.side_sizes.end(), of.sides.tables.sizes))
            throw std::invalid_argument("the side inputs are not those of the network");
        voices_.push_back(std::make_shared<Voice>(of));
    }
    facts_.assign(count, LaneFacts{static_cast<int64_t>(Standing::ready), -1, 0.0, 0.0, 0, 0});
    logits_.assign(static_cast<size_t>(count * V_), 0.0f);
    seen_.assign(V_, 0);
}

void Voices::begin(int64_t lane, const Sampling& sampling, int64_t window, uint64_t random_seed,
                   uint32_t session, int64_t fed, const int64_t* recent, int64_t recent_count) {
    Voice& v = *voices_[lane];
    if (window < 1 || window > (1 << 20))
        throw std::invalid_argument("the window of the penalty must lie from 1 to 1048576 (received " +
                                    std::to_string(window) + ")");
    if (std::any_of(recent, recent + recent_count, [&](int64_t token) { return token < 0 || token >= V_; }))
        throw std::invalid_argument("a recent token is not in the vocabulary");
    v.sampling = sampling;
    v.random_seed = random_seed;
    v.session = session;
    facts_[lane].fed = fed;
    v.recent.assign(sampling.repetition_penalty == 1.0f ? 0 : window, -1);
    v.at = 0;
    for (int64_t i = std::max<int64_t>(0, recent_count - window); !v.recent.empty() && i < recent_count; ++i)
        v.recent[v.at++ % window] = static_cast<int32_t>(recent[i]);
}

void Voices::set_bias(int64_t lane, const float* rows, int64_t count, const int32_t* row_of,
                      const uint64_t* members, double exponent) {
    if (!(exponent >= 0.0 && exponent <= 1.0))
        throw std::invalid_argument("the exponent of a bias must lie from 0 to 1 (received " +
                                    std::to_string(exponent) + ")");
    for (int64_t i = 0; i < kProgramNumbers; ++i)
        if (row_of[i] < 0 || row_of[i] >= count)
            throw std::invalid_argument("a program's row of the bias must lie from 0 to " +
                                        std::to_string(count - 1) + " (received " +
                                        std::to_string(row_of[i]) + ")");
    voices_[lane]->bias = {
        {rows, rows + count * V_}, {row_of, row_of + kProgramNumbers}, {members, members + W_}, exponent};
}

void Voices::set_terms(int64_t lane, const LaneTerms& terms) {
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
    if (facts_[lane].is(Standing::asks)) facts_[lane].set(Standing::ready);
}

void Voices::choose(int64_t lane, const uint64_t* legal) {
    if (!facts_[lane].is(Standing::stopped)) check(lane, Standing::asks);
    draw(lane, legal);
    if (!facts_[lane].over()) facts_[lane].set(Standing::stopped);
}

void Voices::draw(int64_t lane, const uint64_t* legal) {
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
                                          v.session, static_cast<uint64_t>(facts.fed), true,
                                          v.bias.of(v.follower.grammar().r->program, V_));
    facts.token = choice.token;
    facts.nll = choice.nll;
    facts.entropy = choice.entropy;
    facts.set(choice.token >= 0             ? Standing::chosen
              : choice.token == kNotANumber ? Standing::nan
                                            : Standing::nothing);
}

void Voices::take(int64_t lane) {
    check(lane, Standing::stopped);
    voices_[lane]->follower.check();
    accept(lane);
    facts_[lane].set(Standing::taken);
}

void Voices::check(int64_t lane, Standing standing) const {
    if (!facts_[lane].is(standing)) throw std::invalid_argument("the lane does not wait for this");
}

// Steps the grammar behind the chosen token.
void Voices::accept(int64_t lane) {
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

void Voices::drain(int64_t lane, int32_t* tokens, double* nll, double* entropy) {
    Voice& v = *voices_[lane];
    std::copy(v.tokens.begin(), v.tokens.end(), tokens);
    std::copy(v.nll.begin(), v.nll.end(), nll);
    std::copy(v.entropy.begin(), v.entropy.end(), entropy);
    v.tokens.clear();
    v.nll.clear();
    v.entropy.clear();
    facts_[lane].made = 0;
}

void Voices::keep(int64_t sessions, const int64_t* kept, int64_t count) {
    if (count != sessions) throw std::invalid_argument("the sessions are not those that go on");
    for (int64_t i = 0; i < count; ++i)
        if (kept[i] < (i == 0 ? 0 : kept[i - 1] + 1) || kept[i] >= this->count())
            throw std::invalid_argument("the lanes to keep must ascend");
    for (int64_t i = 0; i < count; ++i) {
        std::swap(voices_[i], voices_[kept[i]]);
        facts_[i] = facts_[kept[i]];
        std::memmove(logits(i), logits(kept[i]), static_cast<size_t>(V_) * sizeof(float));
    }
    voices_.resize(static_cast<size_t>(count));
}

}  // namespace melodia::engine
