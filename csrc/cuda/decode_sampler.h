// A block that samples: takes in logits, chooses (decode_choice.h), commands the next step. The contract is
// that of engine/loop.cpp.
//
// Mask and noise of the next choice, and what the grammar makes of the last one, come behind the command. A
// block that does nothing else makes them while the compute blocks are at work. Where there are too few such
// blocks, compute blocks sample between the last stage of a step and the first of the next: they ask for one
// step at a time. What one of them waits for, the logits of a step, it has posted its own share of before.
#pragma once

#include "cuda/decode_choice.h"
#include "cuda/decode_exchange.h"
#include "cuda/decode_kernel.h"

namespace melodia::cuda::decode {

// Functions of their own, for the sake of ptxas.
MELODIA_APART void grammar_advance(const Grammar& g, GrammarState& s, int64_t token) { g.advance(s, token); }
MELODIA_APART void side_advance(const SideInputs& sides, SideState& s, int64_t token, int32_t* out) {
    sides.advance(s, token, out);
}
// Mask and noise of a session's next choice.
MELODIA_APART void prepare(const Records& of, int b) {
    const Args& a = of.a;
    const Record& v = of.voice(b);
    if (v.tokens > 0) {
        uint32_t* noise = of.noise(b);
        MELODIA_ROLLED
        for (int q = static_cast<int>(thread()); 4 * q < a.net.V; q += static_cast<int>(threads())) {
            const Words4 words = noise_words(v.random_seed, static_cast<uint32_t>(v.session),
                                             static_cast<uint64_t>(v.fed), static_cast<uint32_t>(q));
            for (int j = 0; j < 4 && 4 * q + j < a.net.V; ++j) noise[4 * q + j] = words.x[j];
        }
        narrow(of, b);
    }
    MELODIA_SYNC("decode sampler: prepared");
}

class SamplerBlock : Choice {
  public:
    MELODIA_DEVICE SamplerBlock(const Args& args, unsigned char* shared)
        : Choice(args, shared),
          flag_(reinterpret_cast<int*>(shared + args.layout.sampler + 640)),
          mine_(static_cast<int>(block()) - (args.joint ? 0 : args.net.blocks)) {
        if (thread() == 0) *flag_ = 1;  // seen behind the first barrier, and nobody waits before it
    }

    // Steps `begin` .. `end` - 1, or until none of its sessions goes on; false: somebody gave up.
    MELODIA_DEVICE bool run(int begin, int end) {
        for (int step = begin; step < end; ++step) {
            bool goes_on = false;
            for (int b = mine_; b < a.B; b += a.samplers) {
                const Look look = a.records == nullptr ? Look{} : look_at(step, b);
                MELODIA_SYNC("decode sampler: read");
                bool command;
                if (!(a.records == nullptr ? give(step, b, &command) : choose(step, b, look, &command)))
                    return false;
                goes_on = goes_on || command;
            }
            if (a.records != nullptr)
                for (int b = mine_; b < a.B; b += a.samplers) finish(step, b);
            if (!goes_on) break;
        }
        return true;
    }

  private:
    int* flag_;
    int mine_;  // the first of its sessions; the others follow `samplers` apart

    // ---- Commands and logits

    // The last thing before the compute blocks go on. side: [S] of the first thread.
    MELODIA_DEVICE void command(int step, int b, uint32_t token, const int32_t* side) {
        if (thread() != 0) return;
        const Channel out = channel_of(a, step);
        uint64_t* words = words_of(a, step, b);
        post(out, words, token);
        for (int j = 0; j < a.net.S; ++j) post(out, words + 1 + j, static_cast<uint32_t>(side[j]));
    }

    MELODIA_DEVICE bool receive_logits(int step, int b, float* to) {
        const int last = a.net.stages - 1;
        const Stage& head = a.net.stage[last];
        if (a.plain) {
            if (!await(a, step, last, b / a.group, flag_)) return false;
            const auto* from = reinterpret_cast<const Words*>(row_of(a, head, b));
            for (int i = me(); 4 * i < a.net.V; i += count()) {
                const Words four = load_data(from + i);
                for (int j = 0; j < 4 && 4 * i + j < a.net.V; ++j) to[4 * i + j] = float_of(four.x[j]);
            }
        } else {
            const uint64_t* words = words_of(a, step, b) + head.words;
            receive(
                logits_channel_of(a, step), a.net.V, flag_, [&](int i) { return words + i; },
                [&](int i, uint32_t number) { to[i] = float_of(number); });
        }
        return total(*flag_ == 0) == 0;  // one answer for all
    }

    // Tokens that are given.
    MELODIA_DEVICE bool give(int step, int b, bool* goes_on) {
        if (step > 0) {
            float* all =
                a.all_logits == nullptr ? logits(b) : a.all_logits + (int64_t{step - 1} * a.B + b) * a.net.V;
            if (!receive_logits(step - 1, b, all)) return false;
        }
        *goes_on = step < a.steps;
        const int64_t at = int64_t{step} * a.B + b;
        if (*goes_on)
            command(step, b, static_cast<uint32_t>(a.given[at]), a.given_sides + at * a.net.S);
        else
            command(step, b, kEnd, none().x);
        return true;
    }

    struct Row {
        int32_t x[kMaxSides];
    };
    MELODIA_DEVICE static Row none() { return {}; }

    // Where a session stands, before the first thread writes there.
    struct Look {
        bool ended, waits, prepared, taken, fed;
    };
    MELODIA_DEVICE Look look_at(int step, int b) const {
        const Record& v = voice(b);
        return {v.ended != 0, v.waits != 0, v.prepared != 0, v.standing == int64_t(Standing::taken),
                step < a.steps && !v.pauses};
    }

    // One step of a session up to its command.
    MELODIA_DEVICE bool choose(int step, int b, const Look& look, bool* goes_on) {
        Record& v = voice(b);
        bool fed = look.fed;
        *goes_on = false;
        if (look.ended) return true;
        if (look.waits && !receive_logits(step - 1, b, logits(b))) return false;
        if (fed && !look.taken) {
            if (!look.prepared) prepare(*this, b);
            fed = decide(b);
        }
        Row side = none();
        if (thread() == 0) {
            v.waits = fed;
            v.ended = !fed;
            if (fed) side_advance(a.rules[v.rules].sides, v.sides, v.token, side.x);
        }
        command(step, b, fed ? static_cast<uint32_t>(v.token) : kEnd, side.x);
        *goes_on = fed;
        return true;
    }

    // The next token, or why there is none; true: it is to be fed.
    MELODIA_DEVICE bool decide(int b) {
        Record& v = voice(b);
        const bool asks = v.tokens <= 0;
        const int32_t token = asks ? 0 : draw(b);
        if (thread() == 0) {
            auto standing = Standing::chosen;
            if (asks) {
                standing = Standing::asks;
            } else if (token < 0) {
                v.token = token;
                v.nll = v.entropy = 0.0;
                standing = token == kNotANumber ? Standing::nan : Standing::nothing;
            } else {
                v.token = token;
                const int64_t moved = a.rules[v.rules].moves[token];
                const GrammarRegisters& r = v.grammar;
                if ((v.stop && has_bit(mask_of(b, kStopMask), token)) ||
                    (moved > 0 && r.now + moved * r.unit >= v.stop_tick))
                    standing = Standing::stopped;
            }
            v.standing = int64_t(standing);
        }
        MELODIA_SYNC("decode sampler: decided");
        return v.standing == int64_t(Standing::chosen);
    }

    // Behind the command: what the choice means for the next.
    MELODIA_DEVICE void finish(int step, int b) {
        Record& v = voice(b);
        MELODIA_SYNC("decode sampler: commanded");
        const bool chosen = v.standing == int64_t(Standing::chosen);
        const bool ended = v.ended != 0;
        if (ended && (v.ended == 2 || v.standing != int64_t(Standing::stopped))) return;
        if (chosen || ended) measure(b, static_cast<int32_t>(v.token));
        if (ended) {
            if (thread() == 0) v.ended = 2;
            return;
        }
        if (thread() == 0) {
            const DeviceRules& rules = a.rules[v.rules];
            if (chosen) {
                grammar_advance(rules.grammar, v.state, v.token);
                const int64_t at = int64_t{b} * a.steps + step;
                a.tokens[at] = static_cast<int32_t>(v.token);
                a.nll[at] = v.nll;
                a.entropy[at] = v.entropy;
                remember(b, static_cast<int32_t>(v.token));
                v.tokens -= 1;
                v.made += 1;
                v.fed += 1;
            }
            v.standing = int64_t(Standing::ready);
            v.pauses = v.pause != 0 && (rules.traits[v.token] & kEndsNote) != 0;
            v.prepared = step + 1 < a.step_end && step + 1 < a.steps && !v.pauses;
        }
        MELODIA_SYNC("decode sampler: accepted");
        if (v.prepared) prepare(*this, b);
    }

    static constexpr uint8_t kEndsNote = 1, kBeginsNote = 2;

    // The ring of the last tokens and how often each that begins a note stands in it.
    MELODIA_DEVICE void remember(int b, int32_t token) const {
        Record& v = voice(b);
        if (v.ring_size == 0) return;
        const uint8_t* traits = a.rules[v.rules].traits;
        int32_t& place = ring(b)[v.ring_at];
        v.ring_at = v.ring_at + 1 < v.ring_size ? v.ring_at + 1 : 0;
        if (place >= 0 && (traits[place] & kBeginsNote)) counts(b)[place] -= 1;
        place = token;
        if (traits[token] & kBeginsNote) counts(b)[token] += 1;
    }
};

// Apart from what the compute blocks do, whose registers it would take.
MELODIA_APART bool sample(const Args& a, unsigned char* shared, int begin, int end) {
    return SamplerBlock(a, shared).run(begin, end);
}

}  // namespace melodia::cuda::decode
