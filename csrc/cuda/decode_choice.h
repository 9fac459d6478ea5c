// What a block chooses of a session's logits, and what it says of the choice (decode_sampler.h).
//
// The contract is that of csrc/sampling.h by another way: candidates stand at their ids, what is filtered out
// becomes -infinity, and thresholds are found bit by bit. Sums of top-p are whole numbers, so that their
// order does not matter. exp and log of two libraries may differ in their last bit; a choice differs only
// where two scores, or a sum and its limit, are as close as that.
#pragma once

#include "cuda/decode_mask.h"
#include "sampling.h"

namespace melodia::cuda::decode {

constexpr float kRemoved = -__builtin_huge_valf();

MELODIA_DEVICE uint32_t ordered(float x) {    // as x is
    const uint32_t bits = bits_of(x + 0.0f);  // -0 as 0
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

MELODIA_DEVICE int ones_in(uint32_t bits) {
#if defined(MELODIA_EMULATOR)
    return __builtin_popcount(bits);
#else
    return __popc(bits);
#endif
}

// By all threads of a block.
class Choice : protected Records {
  protected:
    MELODIA_DEVICE Choice(const Args& args, unsigned char* shared)
        : Records{args}, shared_(shared), box_(reinterpret_cast<double*>(shared + args.layout.sampler)) {}

    MELODIA_DEVICE int count() const { return static_cast<int>(threads()); }
    MELODIA_DEVICE int me() const { return static_cast<int>(thread()); }
    // f(i) for the tokens that are this thread's.
    template <class F>
    MELODIA_DEVICE void each(F f) const {
        MELODIA_ROLLED
        for (int i = me(); i < a.net.V; i += count()) f(i);
    }

    // ---- Where things stand

    MELODIA_DEVICE double* masses(int b) const {
        return a.layout.choices >= 0 ? reinterpret_cast<double*>(shared_ + a.layout.choices)
                                     : scratch<double>(b, a.record.masses);
    }
    MELODIA_DEVICE float* candidates(int b) const {
        return a.layout.choices >= 0 ? reinterpret_cast<float*>(masses(b) + a.net.V)
                                     : scratch<float>(b, a.record.candidates);
    }
    MELODIA_DEVICE float* logits(int b) const { return a.logits + int64_t{b} * a.net.V; }

    // ---- Over the block: the same for every thread

    template <class T, class F>
    MELODIA_DEVICE T over_block(T x, F both) {
        for (unsigned mask = 16; mask; mask >>= 1) x = both(x, shuffle_xor(x, mask));
        turn_ ^= 1;  // the box of the call before may still be read
        auto* box = reinterpret_cast<T*>(box_ + turn_ * 32);
        if (lane() == 0) box[warp()] = x;
        MELODIA_SYNC("decode sampler: parts");
        T all = box[0];
        for (unsigned w = 1; w < warps(); ++w) all = both(all, box[w]);
        return all;
    }
    MELODIA_DEVICE double sum(double x) {
        return over_block(x, [](double p, double q) { return p + q; });
    }
    MELODIA_DEVICE int32_t total(int32_t x) {
        return over_block(x, [](int32_t p, int32_t q) { return p + q; });
    }
    MELODIA_DEVICE double greatest(double x) {
        return over_block(x, [](double p, double q) { return p > q ? p : q; });
    }
    MELODIA_DEVICE int32_t least(int32_t x) {
        return over_block(x, [](int32_t p, int32_t q) { return p < q ? p : q; });
    }

    // How many of three sums over the block are at least `enough`; part: the thread's, part[0] is 0. exact:
    // whether one is just that.
    template <class T>
    MELODIA_DEVICE int reached(const T (&part)[4], T enough, bool* exact) {
        // Each half of the lanes goes on with half of the sums, so that four cost little more than one.
        const bool upper = lane() & 16, odd = lane() & 8;
        const T even = (upper ? part[2] : part[0]) + shuffle_xor(upper ? part[0] : part[2], 16);
        const T other = (upper ? part[3] : part[1]) + shuffle_xor(upper ? part[1] : part[3], 16);
        T x = (odd ? other : even) + shuffle_xor(odd ? even : other, 8);
        for (unsigned mask = 4; mask; mask >>= 1) x += shuffle_xor(x, mask);
        turn_ ^= 1;
        auto* box = reinterpret_cast<T*>(box_ + turn_ * 32);
        if (lane() % 8 == 0) box[warp() * 4 + lane() / 8] = x;
        MELODIA_SYNC("decode sampler: four parts");
        x = box[lane() % 4];
        for (unsigned w = 1; w < warps(); ++w) x += box[w * 4 + lane() % 4];
        *exact = warp_ballot(x == enough) != 0;
        return ones_in(warp_ballot(lane() < 4 && x >= enough));
    }

    // ---- The choice; numbers as in sampling.h

    MELODIA_DEVICE int32_t draw(int b) {
        const Record& v = voice(b);
        const float* from = logits(b);
        float* x = candidates(b);
        const uint64_t* allowed = wanted(b);
        const Opinion other = opinion(b);
        double top = kRemoved, lift = 0.0;
        const bool pools = other.row != nullptr && lift_of(from, allowed, other, &top, &lift);
        int32_t nan = 0, here = 0;
        each([&](int i) {  // 1, 2, 3
            const float logit = from[i];
            nan |= logit != logit;
            float kept = has_bit(allowed, i) ? logit : kRemoved;
            if (pools && kept > kRemoved && has_bit(other.members, i))
                kept = pooled(kept, top, other.exponent, lift) + other.row[i];
            here += kept > kRemoved;
            if (v.penalty != 1.0f && counts(b)[i] > 0) kept = penalised(kept, v.penalty);
            if (!v.greedy && v.temperature != 1.0f) kept /= v.temperature;
            x[i] = kept > kRemoved ? kept : kRemoved;
        });
        if (total(nan) != 0) return kNotANumber;
        here = total(here);
        if (here == 0) return kNothingLegal;
        if (v.greedy) return likeliest(x);
        if (v.top_k > 0 && v.top_k < here) keep_top_k(x, static_cast<int32_t>(v.top_k));  // 4
        if (v.top_p < 1.0 && !keep_top_p(x, masses(b), v.top_p)) return kNotANumber;      // 5
        if (v.min_p > 0.0) {                                                              // 6
            const double threshold = top_of(x) + v.log_min_p;
            each([&](int i) {
                if (double(x[i]) < threshold) x[i] = kRemoved;
            });
        }
        return noisiest(x, noise(b));  // 7
    }

    // The lift of what an opinion is about, and the greatest logit there: as Chooser::pool. False: it does
    // not apply.
    MELODIA_DEVICE bool lift_of(const float* from, const uint64_t* allowed, const Opinion& other, double* top,
                                double* lift) {
        const auto counts = [&](int i) { return has_bit(allowed, i) && has_bit(other.members, i); };
        each([&](int i) {
            if (counts(i)) *top = double(from[i]) > *top ? double(from[i]) : *top;
        });
        *top = greatest(*top);
        if (!(*top > kRemoved && *top < -double(kRemoved))) return false;
        double own = 0.0, flat = 0.0;
        each([&](int i) {
            if (!counts(i) || !(from[i] > kRemoved)) return;
            own += mass_of(double(from[i]) - *top);
            flat += mass_of(other.exponent * (double(from[i]) - *top));
        });
        own = sum(own);
        *lift = log(own / sum(flat));
        return true;
    }

    MELODIA_DEVICE double top_of(const float* x) {
        double top = kRemoved;
        each([&](int i) { top = double(x[i]) > top ? double(x[i]) : top; });
        return greatest(top);
    }

    MELODIA_DEVICE int32_t likeliest(const float* x) {
        const double top = top_of(x);
        int32_t best = INT32_MAX;
        each([&](int i) {
            if (double(x[i]) == top && i < best) best = i;
        });
        return least(best);
    }

    // The greatest number (`ordered`) that has `enough` at or above it, two of its bits a round; amount(i):
    // what candidate i counts. Counts that are met exactly end it: the bits that follow would part nothing.
    template <class T, class F>
    MELODIA_DEVICE uint32_t threshold(const float* x, T enough, F amount) {
        uint32_t key = 0;
        bool exact = false;
        MELODIA_ROLLED
        for (int shift = 30; shift >= 0 && !exact; shift -= 2) {
            T above[4] = {};
            each([&](int i) {
                const uint32_t at = ordered(x[i]);
                const T more = amount(i);
                MELODIA_UNROLL
                for (uint32_t digit = 1; digit < 4; ++digit)
                    if (at >= (key | digit << shift)) above[digit] += more;
            });
            key |= static_cast<uint32_t>(reached(above, enough, &exact)) << shift;
            exact = exact && same_type<T, int32_t>::value;  // what has no mass may stand below a sum
        }
        return key;
    }

    // Keeps what is above `key`, and of what is there the first `ties`.
    MELODIA_DEVICE void keep(float* x, uint32_t key, int32_t ties) {
        int32_t equal = 0;
        each([&](int i) {
            const uint32_t at = ordered(x[i]);
            equal += at == key;
            if (at < key) x[i] = kRemoved;
        });
        if (total(equal) <= ties) return;
        if (warp() == 0) {
            int32_t before = 0;
            for (int first = 0; first < a.net.V; first += 32) {
                const int i = first + static_cast<int>(lane());
                const bool tie = i < a.net.V && ordered(x[i]) == key;
                const uint32_t all = warp_ballot(tie);
                if (tie && before + ones_in(all & ((1u << lane()) - 1)) >= ties) x[i] = kRemoved;
                before += ones_in(all);
            }
        }
        MELODIA_SYNC("decode sampler: ties removed");
    }

    MELODIA_DEVICE void keep_top_k(float* x, int32_t k) {
        const uint32_t key = threshold(x, k, [](int) { return int32_t{1}; });
        int32_t above = 0;
        each([&](int i) { above += ordered(x[i]) > key; });
        keep(x, key, k - total(above));
    }

    MELODIA_DEVICE bool keep_top_p(float* x, double* mass, double p) {
        const double top = top_of(x);
        if (top == -double(kRemoved)) return false;  // infinite: no number is its mass
        double part = 0.0;
        each([&](int i) {
            mass[i] = x[i] > kRemoved ? mass_of(double(x[i]) - top) : 0.0;
            part += mass[i];
        });
        const double limit = p * sum(part);
        const uint32_t key = threshold(x, limit, [=](int i) { return mass[i]; });
        part = 0.0;
        double tied = 0.0;
        each([&](int i) {
            if (ordered(x[i]) > key) part += mass[i];
            if (ordered(x[i]) == key) tied = mass[i];
        });
        double before = sum(part);
        tied = greatest(tied);
        int32_t ties = 0;
        while (before < limit && tied > 0.0) before += tied, ++ties;
        keep(x, key, ties);
        return true;
    }

    // Bounds first (GumbelBounds), the noise itself for what they leave.
    MELODIA_DEVICE int32_t noisiest(const float* x, const uint32_t* words) {
        constexpr double margin = 4e-6;
        double bound = kRemoved;
        each([&](int i) {
            const double low = double(x[i]) + (a.edges[words[i] >> 22] - margin);
            bound = low > bound ? low : bound;
        });
        bound = greatest(bound);
        double score = kRemoved;
        int32_t best = INT32_MAX;
        each([&](int i) {
            if (!(x[i] > kRemoved) || double(x[i]) + (a.edges[(words[i] >> 22) + 1] + margin) < bound) return;
            const double now = double(x[i]) + gumbel_of(words[i]);
            if (now > score) score = now, best = i;
        });
        const double highest = greatest(score);
        best = least(score == highest ? best : INT32_MAX);
        return best == INT32_MAX ? kNotANumber : best;
    }

    // NLL under the unfiltered distribution, entropy of the filtered.
    MELODIA_DEVICE void measure(int b, int32_t token) {
        Record& v = voice(b);
        const float *all = logits(b), *x = candidates(b);
        const double top = top_of(all);
        double part = 0.0;
        each([&](int i) { part += fast_exp(double(all[i]) - top); });
        const double whole = sum(part);
        double entropy = 0.0;
        if (!v.greedy) {
            const double best = top_of(x);
            double weights = 0.0, weighted = 0.0;
            each([&](int i) {
                if (!(x[i] > kRemoved)) return;
                const double weight = fast_exp(double(x[i]) - best);
                weights += weight;
                weighted += weight * (double(x[i]) - best);
            });
            weights = sum(weights);
            weighted = sum(weighted);
            entropy = log(weights) - weighted / weights;
        }
        if (thread() == 0) {
            v.nll = top + log(whole) - double(all[token]);
            v.entropy = entropy > 0.0 ? entropy : 0.0;
        }
    }

  private:
    unsigned char* shared_;
    double* box_;  // [2][warps][4]
    int turn_ = 0;
};

}  // namespace melodia::cuda::decode
