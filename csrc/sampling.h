// From logits to a token: mask, pool of opinions, repetition penalty, temperature, top-k, top-p, min-p,
// choice. The twin of melodia/decode/filters.py; the arithmetic is part of the contract and is numbered as
// there. Letters: V = vocabulary size.
//
// The choice is exact, but most of the work is not: sums of probabilities and noise are bounded by cheap
// means first, and only what the bounds leave open is computed as the contract says. What a CUDA twin shares
// is marked MELODIA_HD: the order, the penalty, the masses of top-p, the noise (philox.h) and the records.
// The Chooser is the host's way through them; a block of threads takes another one to the same token.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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
    bool greedy = false;
};

struct Choice {
    int32_t token = -1;    // -1: nothing is legal; -2: a logit is not a number
    double nll = 0.0;      // under the unfiltered distribution, in nats
    double entropy = 0.0;  // of the filtered distribution, in nats
};

// A second opinion on some tokens, pooled with the model's; melodia.decode.Opinion.
struct Opinion {
    const float* row = nullptr;  // [V]; null: there is none
    const uint64_t* members = nullptr;
    double exponent = 1.0;
};

constexpr int32_t kNothingLegal = -1;
constexpr int32_t kNotANumber = -2;

// Logit descending, id ascending: ties go to the lowest id.
MELODIA_HD bool likelier(float a_logit, int32_t a_id, float b_logit, int32_t b_id) {
    return a_logit > b_logit || (a_logit == b_logit && a_id < b_id);
}

MELODIA_HD float penalised(float logit, float penalty) {
    return logit < 0.0f ? logit * penalty : logit / penalty;
}

// What top-p adds up, `below` being the distance from the greatest logit: whole numbers, so that sums are
// exact in any order.
MELODIA_HD double mass_of(double below) { return rint(exp(below) * 0x1p36); }

// What the logit of a member becomes, the number of the row not yet added. top: the greatest of the members;
// lift: log(A / B), of their masses before and behind.
MELODIA_HD float pooled(float logit, double top, double exponent, double lift) {
    return static_cast<float>(top + (exponent * (double(logit) - top) + lift));
}

// exp(x) for x <= 0 within 2e-13 of itself (below -700 as at -700); a loop over it vectorises.
MELODIA_HD double fast_exp(double x) {
    x = x < -700.0 ? -700.0 : x;
    const double shifted = x * 1.4426950408889634 + 0x1.8p52;  // the whole part lands in the low bits
    const double whole = shifted - 0x1.8p52;
    const double r = (x - whole * 0x1.62e42fee00000p-1) - whole * 0x1.a39ef35793c76p-33;  // |r| <= log(2) / 2
    double p = 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits, power;
    memcpy(&bits, &shifted, 8);
    power = (bits + 1023) << 52;
    double scale;
    memcpy(&scale, &power, 8);
    return p * scale;
}

// Bounds of gumbel_of by the upper bits of a word: it grows with the word.
class GumbelBounds {
  public:
    static const GumbelBounds& get() {
        static const GumbelBounds bounds;
        return bounds;
    }
    double low(uint32_t word) const { return edges_[word >> kShift] - kMargin; }
    double high(uint32_t word) const { return edges_[(word >> kShift) + 1] + kMargin; }

  private:
    static constexpr int kShift = 22;
    static constexpr uint32_t kBins = 1u << (32 - kShift);
    static constexpr double kMargin = 4e-6;  // a float at 23 is off by 2e-6 at most

    GumbelBounds() {
        for (uint32_t i = 0; i < kBins; ++i) edges_[i] = static_cast<float>(gumbel_of(i << kShift));
        edges_[kBins] = static_cast<float>(gumbel_of(~uint32_t{0}));
    }
    float edges_[kBins + 1];
};

// Draws tokens; keeps its scratch memory, so that no call allocates.
class Chooser {
  public:
    explicit Chooser(int32_t vocab_size) { reserve(vocab_size); }

    // logits [V]; legal: a bit per token, or null for no mask; recent: distinct ids, `recent_count` of them.
    // with_entropy: nll and entropy as well, within 1e-11.
    Choice choose(const float* logits, int32_t vocab_size, const uint64_t* legal, const int32_t* recent,
                  int32_t recent_count, const Sampling& sampling, uint64_t random_seed, uint32_t session,
                  uint64_t position, bool with_entropy, const Opinion& opinion = {}) {
        reserve(vocab_size);
        float top;
        if (!scan(logits, vocab_size, top)) return {kNotANumber};
        gather(logits, vocab_size, legal);  // 1
        if (opinion.row != nullptr) pool(opinion);
        if (count_ == 0) return {kNothingLegal};
        if (sampling.repetition_penalty != 1.0f)
            penalise(recent, recent_count, sampling.repetition_penalty);  // 2
        Choice choice;
        if (sampling.greedy) {
            choice.token = likeliest();
        } else {
            if (sampling.temperature != 1.0f) {  // 3
                const float temperature = sampling.temperature;
                for (int32_t i = 0; i < count_; ++i) logit_[i] /= temperature;
            }
            if (sampling.top_k > 0 && sampling.top_k < count_) keep_top_k(sampling.top_k);  // 4
            if (sampling.top_p < 1.0) {                                                     // 5
                if (!keep_top_p<false>(sampling.top_p)) keep_top_p<true>(sampling.top_p);
            }
            if (sampling.min_p > 0.0) keep_min_p(sampling.min_p);  // 6
            choice.token = draw(random_seed, session, position);   // 7
            if (with_entropy) choice.entropy = entropy();
        }
        if (choice.token < 0) return {kNotANumber};  // an infinite logit
        if (with_entropy) {
            for (int32_t v = 0; v < vocab_size; ++v) weights_[v] = fast_exp(double(logits[v]) - double(top));
            choice.nll = double(top) + std::log(sum(vocab_size)) - double(logits[choice.token]);
        }
        return choice;
    }

  private:
    static constexpr int32_t kBuckets = 256;
    static constexpr int32_t kBatch = 16;  // Philox counters at a time

    void reserve(int32_t vocab_size) {
        if (static_cast<size_t>(vocab_size) <= logit_.size()) return;
        logit_.resize(vocab_size);
        id_.resize(vocab_size);
        slot_.resize(vocab_size);
        weights_.resize(vocab_size);
        bucket_.resize(vocab_size);
        inside_.resize(vocab_size);
        quads_.resize(vocab_size + kBatch);
        words_.resize(4 * (size_t(vocab_size) + kBatch));
    }

    // The greatest logit; false if one is not a number.
    static bool scan(const float* logits, int32_t vocab_size, float& top) {
        constexpr int32_t lanes = 16;
        float tops[lanes];
        int32_t nan[lanes] = {};
        std::fill_n(tops, lanes, -std::numeric_limits<float>::infinity());
        int32_t v = 0;
        for (; v + lanes <= vocab_size; v += lanes) {
            for (int32_t j = 0; j < lanes; ++j) {
                const float x = logits[v + j];
                tops[j] = x > tops[j] ? x : tops[j];
                nan[j] |= x != x;
            }
        }
        for (; v < vocab_size; ++v) {
            tops[0] = std::max(tops[0], logits[v]);
            nan[0] |= logits[v] != logits[v];
        }
        int32_t any = 0;
        top = tops[0];
        for (int32_t j = 0; j < lanes; ++j) {
            top = std::max(top, tops[j]);
            any |= nan[j];
        }
        return any == 0;
    }

    // Candidates stand in order of id from here to the end.
    void gather(const float* logits, int32_t vocab_size, const uint64_t* legal) {
        constexpr float removed = -std::numeric_limits<float>::infinity();
        int32_t n = 0;
        for (int32_t base = 0; base < vocab_size; base += 64) {
            uint64_t bits = legal ? legal[base / 64] : ~uint64_t{0};
            if (vocab_size - base < 64) bits &= (uint64_t{1} << (vocab_size - base)) - 1;
            for (; bits; bits &= bits - 1) {
                const int32_t id = base + __builtin_ctzll(bits);
                logit_[n] = logits[id];
                id_[n] = id;
                n += logits[id] > removed;
            }
        }
        count_ = n;
    }

    void pool(const Opinion& opinion) {
        int32_t n = 0;
        float top = -std::numeric_limits<float>::infinity();
        for (int32_t i = 0; i < count_; ++i) {
            if ((opinion.members[id_[i] / 64] >> (id_[i] % 64) & 1) == 0) continue;
            inside_[n++] = i;
            top = std::max(top, logit_[i]);
        }
        if (n == 0 || std::isinf(top)) return;
        double own = 0.0, flat = 0.0;
        for (int32_t k = 0; k < n; ++k) {
            const double below = double(logit_[inside_[k]]) - double(top);
            own += mass_of(below);
            flat += mass_of(opinion.exponent * below);
        }
        const double lift = std::log(own / flat);
        for (int32_t k = 0; k < n; ++k) {
            float& logit = logit_[inside_[k]];
            logit = pooled(logit, top, opinion.exponent, lift) + opinion.row[id_[inside_[k]]];
        }
    }

    void penalise(const int32_t* recent, int32_t count, float penalty) {
        for (int32_t i = 0; i < count_; ++i) slot_[id_[i]] = i;
        for (int32_t r = 0; r < count; ++r) {
            const int32_t i = slot_[recent[r]];  // of an earlier call, if this id is no candidate
            if (i < count_ && id_[i] == recent[r]) logit_[i] = penalised(logit_[i], penalty);
        }
    }

    int32_t likeliest() const {
        int32_t best = 0;
        for (int32_t i = 1; i < count_; ++i) best = logit_[i] > logit_[best] ? i : best;
        return id_[best];
    }

    // Sorts the candidates coarsely, likeliest first: a bucket holds nothing that is likelier than what the
    // one before it holds. Returns the greatest logit.
    float fill_buckets() {
        float top = logit_[0], bottom = logit_[0];
        for (int32_t i = 1; i < count_; ++i) {
            top = logit_[i] > top ? logit_[i] : top;
            bottom = logit_[i] < bottom ? logit_[i] : bottom;
        }
        const float range = std::min(top - bottom, 16.0f);  // nats; what is rarer needs no order, as a rule
        const float scale = range > 0.0f ? (kBuckets - 1) / range : 0.0f;
        for (int32_t i = 0; i < count_; ++i) {
            const float place = (top - logit_[i]) * scale;
            bucket_[i] = place < float(kBuckets - 1) ? static_cast<int32_t>(place) : kBuckets - 1;
        }
        return top;
    }

    // The candidates of a bucket as inside_[0 .. n), in order.
    int32_t sort_bucket(int32_t bucket) {
        int32_t n = 0;
        for (int32_t i = 0; i < count_; ++i) {
            inside_[n] = i;
            n += bucket_[i] == bucket;
        }
        const float* logit = logit_.data();
        std::sort(inside_.begin(), inside_.begin() + n,
                  [=](int32_t a, int32_t b) { return likelier(logit[a], a, logit[b], b); });
        return n;
    }

    // Keeps the candidate `last` and all that are likelier.
    void keep_down_to(int32_t last) {
        const float logit = logit_[last];
        int32_t n = 0;
        for (int32_t i = 0; i < count_; ++i) {
            const bool kept = logit_[i] > logit || (logit_[i] == logit && i <= last);
            logit_[n] = logit_[i];
            id_[n] = id_[i];
            n += kept;
        }
        count_ = n;
    }

    void keep_top_k(int32_t k) {
        fill_buckets();
        int32_t counts[kBuckets] = {};
        for (int32_t i = 0; i < count_; ++i) ++counts[bucket_[i]];
        int32_t bucket = 0, before = 0;
        while (before + counts[bucket] < k) before += counts[bucket++];
        sort_bucket(bucket);
        keep_down_to(inside_[k - before - 1]);
    }

    // Exact or not: with cheap masses it decides only what they decide for certain; false: nothing was done.
    template <bool exact>
    bool keep_top_p(double p) {
        const double top = fill_buckets();
        double masses[kBuckets] = {};
        if (exact) {
            for (int32_t i = 0; i < count_; ++i) weights_[i] = mass_of(double(logit_[i]) - top);
        } else {
            for (int32_t i = 0; i < count_; ++i) weights_[i] = fast_exp(double(logit_[i]) - top);
        }
        for (int32_t i = 0; i < count_; ++i) masses[bucket_[i]] += weights_[i];
        const double total = sum(count_), limit = p * total;
        // The greatest mass is 1: rounding to whole numbers moves each by 2^-37, and fast_exp by less.
        const double margin = exact ? 0.0 : total * (1e-12 + count_ * 0x1p-36);
        int32_t bucket = 0;
        double before = 0.0;
        while (bucket + 1 < kBuckets && before + masses[bucket] < limit - margin) before += masses[bucket++];
        const int32_t n = sort_bucket(bucket);
        int32_t kept = 0;
        while (kept < n && before < limit - margin) before += weights_[inside_[kept++]];
        if (!exact && !(before >= limit + margin)) return false;
        if (kept == 0) {  // masses that are not numbers, of an infinite logit
            count_ = 0;
            return true;
        }
        keep_down_to(inside_[kept - 1]);
        return true;
    }

    void keep_min_p(double p) {
        float top = -std::numeric_limits<float>::infinity();
        for (int32_t i = 0; i < count_; ++i) top = logit_[i] > top ? logit_[i] : top;
        const double threshold = double(top) + std::log(p);
        int32_t n = 0;
        for (int32_t i = 0; i < count_; ++i) {
            const bool kept = !(double(logit_[i]) < threshold);
            logit_[n] = logit_[i];
            id_[n] = id_[i];
            n += kept;
        }
        count_ = n;
    }

    // The greatest sum of logit and noise; -1 if there is none.
    int32_t draw(uint64_t random_seed, uint32_t session, uint64_t position) {
        int32_t quads = 0;  // ids ascend, and with them the counters
        quads_[0] = ~uint32_t{0};
        for (int32_t i = 0; i < count_; ++i) {
            const auto quad = static_cast<uint32_t>(id_[i]) / 4;
            quads += i > 0 && quad != quads_[quads];
            quads_[quads] = quad;
            slot_[i] = 4 * quads + id_[i] % 4;
        }
        std::fill_n(quads_.begin() + quads + 1, kBatch - 1, 0u);
        for (int32_t q = 0; q <= quads; q += kBatch)
            noise_words_of<kBatch>(random_seed, session, position, &quads_[q], &words_[4 * q]);
        const GumbelBounds& bounds = GumbelBounds::get();
        double least = -std::numeric_limits<double>::infinity();
        for (int32_t i = 0; i < count_; ++i) {
            const uint32_t word = words_[slot_[i]];
            least = std::max(least, double(logit_[i]) + bounds.low(word));
            weights_[i] = double(logit_[i]) + bounds.high(word);
        }
        int32_t best = -1;
        double best_score = -std::numeric_limits<double>::infinity();
        for (int32_t i = 0; i < count_; ++i) {
            if (weights_[i] < least) continue;
            const double score = double(logit_[i]) + gumbel_of(words_[slot_[i]]);
            if (score > best_score) {
                best_score = score;
                best = id_[i];
            }
        }
        return best;
    }

    double entropy() {
        double top = logit_[0];
        for (int32_t i = 1; i < count_; ++i) top = std::max(top, double(logit_[i]));
        for (int32_t i = 0; i < count_; ++i) weights_[i] = fast_exp(double(logit_[i]) - top);
        double total = 0.0, weighted = 0.0;
        for (int32_t i = 0; i < count_; ++i) {
            total += weights_[i];
            weighted += weights_[i] * (double(logit_[i]) - top);
        }
        return std::max(0.0, std::log(total) - weighted / total);
    }

    // The sum of weights_[0 .. n).
    double sum(int32_t n) const {
        double parts[8] = {};
        int32_t i = 0;
        for (; i + 8 <= n; i += 8)
            for (int32_t j = 0; j < 8; ++j) parts[j] += weights_[i + j];
        for (; i < n; ++i) parts[i % 8] += weights_[i];
        return ((parts[0] + parts[1]) + (parts[2] + parts[3])) +
               ((parts[4] + parts[5]) + (parts[6] + parts[7]));
    }

    int32_t count_ = 0;         // candidates
    std::vector<float> logit_;  // of each
    std::vector<int32_t> id_;
    std::vector<int32_t> slot_;    // where an id stands; where a candidate's noise stands
    std::vector<double> weights_;  // of each, of several kinds
    std::vector<int32_t> bucket_, inside_;
    std::vector<uint32_t> quads_, words_;
};

}  // namespace melodia
