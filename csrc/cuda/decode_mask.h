// Where the records of the sessions are, and which tokens may follow in one of them (decode_sampler.h).
#pragma once

#include "cuda/decode_plan.h"
#include "cuda/device.h"
#include "sampling.h"

namespace melodia::cuda::decode {

struct Records {
    const Args& a;

    MELODIA_DEVICE unsigned char* record(int b) const { return a.records + b * a.record.size; }
    MELODIA_DEVICE Record& voice(int b) const { return *reinterpret_cast<Record*>(record(b)); }
    template <class T>
    MELODIA_DEVICE T* scratch(int b, int64_t offset) const {
        return reinterpret_cast<T*>(a.scratch + b * a.record.scratch_size + offset);
    }
    MELODIA_DEVICE uint64_t* legal(int b) const { return scratch<uint64_t>(b, a.record.legal); }
    MELODIA_DEVICE uint64_t* wanted(int b) const { return scratch<uint64_t>(b, a.record.wanted); }
    MELODIA_DEVICE uint32_t* noise(int b) const { return scratch<uint32_t>(b, a.record.noise); }
    MELODIA_DEVICE int32_t* counts(int b) const {
        return reinterpret_cast<int32_t*>(record(b) + a.record.counts);
    }
    MELODIA_DEVICE int32_t* ring(int b) const {
        return reinterpret_cast<int32_t*>(record(b) + a.record.ring);
    }
    // The opinion that holds while the present program plays; see engine::Bias.
    MELODIA_DEVICE Opinion opinion(int b) const {
        const Record& v = voice(b);
        if (!v.biased) return {};
        const auto* row_of = reinterpret_cast<const int32_t*>(record(b) + a.record.bias_row_of);
        const auto* rows = reinterpret_cast<const float*>(record(b) + a.record.bias);
        return {rows + of_program(row_of, v.grammar.program, 0) * a.net.V, mask_of(b, kMembersMask),
                v.exponent};
    }
    MELODIA_DEVICE const uint64_t* mask_of(int b, int which) const {
        return reinterpret_cast<const uint64_t*>(record(b) + a.record.masks) + which * a.record.words;
    }
};

// By a warp: each lane its words of the mask. As Grammar::mask, BPE tokens left out. A function of its own,
// as the next, for the sake of ptxas.
MELODIA_APART void grammar_words(const Grammar& g, const GrammarState& s, uint64_t* mask) {
    MELODIA_ROLLED
    for (bool strict : {true, false}) {
        GrammarBounds bounds;
        g.bound(s, strict, bounds);
        uint64_t any = 0;
        MELODIA_ROLLED
        for (int64_t w = lane(); w < g.W; w += 32) any |= mask[w] = g.word(s, bounds, w);
        if (warp_ballot(any != 0) != 0) return;
    }
}
MELODIA_APART bool pair_may_follow(const Grammar& g, const GrammarState& s, const uint64_t* mask,
                                   int64_t token, GrammarChange* changes) {
    return g.pair_may_follow(s, mask, token, changes);
}

// What may follow, less what the caller excludes: as Loop::decide. By all threads of a block: a warp makes
// the words of base tokens, and where there are BPE tokens each thread asks for some of them.
MELODIA_DEVICE void narrow(const Records& of, int b) {
    const Args& a = of.a;
    Record& v = of.voice(b);
    const DeviceRules& rules = a.rules[v.rules];
    const Grammar& g = rules.grammar;
    uint64_t *from = of.legal(b), *to = of.wanted(b);
    const bool pairs = g.head->roots > 0;
    if (warp() == 0) grammar_words(g, v.state, from);
    if (pairs) {
        MELODIA_SYNC("decode sampler: base tokens");
        GrammarChange* changes =
            of.scratch<GrammarChange>(b, a.record.changes) + thread() * a.record.changes_each;
        for (int64_t w = warp(); w < a.record.words; w += warps()) {
            uint64_t bits = from[w];
            for (int half = 0; half < 64; half += 32) {
                const int64_t token = 64 * w + half + lane();
                const bool may = token < a.net.V && g.ops[token] == kBpe &&
                                 pair_may_follow(g, v.state, from, token, changes);
                bits |= uint64_t{warp_ballot(may)} << half;
            }
            if (lane() == 0) to[w] = bits;
        }
        MELODIA_SYNC("decode sampler: pairs");
    }
    if (warp() != 0) return;
    const GrammarRegisters& r = v.grammar;
    uint64_t any = 0;
    for (int64_t w = lane(); w < a.record.words; w += 32) {
        if (pairs) from[w] = to[w];
        uint64_t bits = from[w];
        if (v.exclude) bits &= ~of.mask_of(b, kExcludeMask)[w];
        for (int rule = 0; rule < 3; ++rule) {
            if (!v.late[rule]) continue;
            uint64_t left = bits & of.mask_of(b, kLateMasks + rule)[w];
            for (int j = 0; left != 0; ++j, left >>= 1)
                if ((left & 1) && r.now + rules.moves[w * 64 + j] * r.unit >= v.ticks[rule])
                    bits &= ~(uint64_t{1} << j);
        }
        to[w] = bits;
        any |= bits;
    }
    if (warp_ballot(any != 0) == 0)
        for (int64_t w = lane(); w < a.record.words; w += 32) to[w] = from[w];
}

}  // namespace melodia::cuda::decode
