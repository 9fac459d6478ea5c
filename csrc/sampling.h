// From logits to a token: mask, repetition penalty, temperature, top-k, top-p, min-p, choice.
// The twin of melodia/decode/filters.py; the arithmetic is part of the contract and is numbered as there.
// Letters: V = vocabulary size.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "philox.h"

namespace melodia {

struct Sampling {
    float temperature = 1.0f;
    int32_t top_k = 0;   // 0: off
    double top_p = 1.0;  // 1: off
    double min_p = 0.0;  // 0: off
    float repetition_penalty = 1.0f;
    int32_t repetition_window = 64;
    bool greedy = false;
};

struct Choice {
    int32_t token = -1;    // -1: nothing is legal; -2: a logit is not a number
    double nll = 0.0;      // under the unfiltered distribution, in nats
    double entropy = 0.0;  // of the filtered distribution, in nats
};

constexpr int32_t kNothingLegal = -1;
constexpr int32_t kNotANumber = -2;

struct Candidate {
    float logit;
    int32_t id;
};

// Logit descending, id ascending: ties go to the lowest id.
inline bool likelier(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Draws tokens; keeps its scratch memory, so that no call allocates.
class Chooser {
  public:
    explicit Chooser(int32_t vocab_size) { candidates_.reserve(vocab_size); }

    // logits [V]; legal: a bit per token, or null for no mask; recent: distinct ids, `recent_count` of them.
    Choice choose(const float* logits, int32_t vocab_size, const uint64_t* legal, const int32_t* recent,
                  int32_t recent_count, const Sampling& sampling, uint64_t random_seed, uint32_t session,
                  uint64_t position, bool with_entropy) {
        double total = 0.0;
        float top = -std::numeric_limits<float>::infinity();
        for (int32_t v = 0; v < vocab_size; ++v) {
            if (std::isnan(logits[v])) return {kNotANumber};
            top = std::max(top, logits[v]);
        }
        if (with_entropy) {
            for (int32_t v = 0; v < vocab_size; ++v) total += std::exp(double(logits[v]) - double(top));
        }
        gather(logits, vocab_size, legal);  // 1
        if (candidates_.empty()) return {kNothingLegal};
        penalise(recent, recent_count, sampling.repetition_penalty);  // 2
        Choice choice;
        if (sampling.greedy) {
            choice.token = std::min_element(candidates_.begin(), candidates_.end(), likelier)->id;
        } else {
            if (sampling.temperature != 1.0f)  // 3
                for (Candidate& c : candidates_) c.logit /= sampling.temperature;
            keep_top_k(sampling.top_k);                           // 4
            keep_top_p(sampling.top_p);                           // 5
            keep_min_p(sampling.min_p);                           // 6
            choice.token = draw(random_seed, session, position);  // 7
            if (with_entropy) choice.entropy = entropy();
        }
        if (with_entropy) choice.nll = double(top) + std::log(total) - double(logits[choice.token]);
        return choice;
    }

  private:
    void gather(const float* logits, int32_t vocab_size, const uint64_t* legal) {
        candidates_.clear();
        const auto removed = -std::numeric_limits<float>::infinity();
        for (int32_t base = 0; base < vocab_size; base += 64) {
            uint64_t bits = legal ? legal[base / 64] : ~uint64_t{0};
            if (vocab_size - base < 64) bits &= (uint64_t{1} << (vocab_size - base)) - 1;
            for (; bits; bits &= bits - 1) {
                const int32_t id = base + __builtin_ctzll(bits);
                if (logits[id] > removed) candidates_.push_back({logits[id], id});
            }
        }
    }

    void penalise(const int32_t* recent, int32_t count, float penalty) {
        if (penalty == 1.0f) return;
        for (int32_t i = 0; i < count; ++i) {  // candidates still stand in order of id
            auto at = std::lower_bound(candidates_.begin(), candidates_.end(), recent[i],
                                       [](const Candidate& c, int32_t id) { return c.id < id; });
            if (at != candidates_.end() && at->id == recent[i])
                at->logit = at->logit < 0.0f ? at->logit * penalty : at->logit / penalty;
        }
    }

    void keep_top_k(int32_t k) {
        if (k <= 0 || k >= static_cast<int32_t>(candidates_.size())) return;
        std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(), likelier);
        candidates_.resize(k);
    }

    void keep_top_p(double p) {
        if (p >= 1.0) return;
        std::sort(candidates_.begin(), candidates_.end(), likelier);
        const double top = candidates_.front().logit;
        weights_.clear();
        double total = 0.0;
        for (const Candidate& c : candidates_) {  // whole numbers: exact sums in any order
            weights_.push_back(std::rint(std::exp(double(c.logit) - top) * 0x1p36));
            total += weights_.back();
        }
        double before = 0.0;
        size_t kept = 0;
        while (kept < candidates_.size() && before < p * total) before += weights_[kept++];
        candidates_.resize(kept);
    }

    void keep_min_p(double p) {
        if (p <= 0.0) return;
        float top = -std::numeric_limits<float>::infinity();
        for (const Candidate& c : candidates_) top = std::max(top, c.logit);
        const double threshold = double(top) + std::log(p);
        candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                         [&](const Candidate& c) { return double(c.logit) < threshold; }),
                          candidates_.end());
    }

    int32_t draw(uint64_t random_seed, uint32_t session, uint64_t position) const {
        int32_t best = -1;
        double best_score = -std::numeric_limits<double>::infinity();
        for (const Candidate& c : candidates_) {
            const Words4 words = noise_words(random_seed, session, position, uint32_t(c.id) / 4);
            const double score = double(c.logit) + gumbel_of(words.x[c.id % 4]);
            if (score > best_score || (score == best_score && c.id < best)) {
                best_score = score;
                best = c.id;
            }
        }
        return best;
    }

    double entropy() const {
        double top = -std::numeric_limits<double>::infinity();
        for (const Candidate& c : candidates_) top = std::max(top, double(c.logit));
        double total = 0.0, weighted = 0.0;
        for (const Candidate& c : candidates_) {
            const double kept = double(c.logit) - top, weight = std::exp(kept);
            total += weight;
            weighted += weight * kept;
        }
        return std::max(0.0, std::log(total) - weighted / total);
    }

    std::vector<Candidate> candidates_;
    std::vector<double> weights_;
};

}  // namespace melodia
