// A compute block of a decode launch: its rows of every stage, for all sessions, step after step.
//
// What is not needed at once is made while others wait: the recurrent products of a level for the next step
// come after the numbers of the following stage have been posted (kernels of a stage: receive, mix, multiply,
// post, then the shadow). A session's numbers do not depend on which other sessions there are.
#pragma once

#include "cuda/decode_block.h"
#include "cuda/decode_kernel.h"
#include "cuda/decode_reader.h"
#include "cuda/decode_sampler.h"

namespace melodia::cuda::decode {

// The encoder's part, apart: it is rare, and its registers would count for all.
template <class W>
MELODIA_APART void start_reader(const Args& a, unsigned char* shared) {
    ReaderBlock<W>(a, shared).start();
}
template <class W>
MELODIA_APART bool read_blocks(const Args& a, unsigned char* shared, int step, int g) {
    return ReaderBlock<W>(a, shared).run(step, g);
}
template <class W>
MELODIA_APART void end_reader(const Args& a, unsigned char* shared) {
    ReaderBlock<W>(a, shared).end();
}

template <class W>
class ComputeBlock : BlockParts<W> {
  public:
    MELODIA_DEVICE ComputeBlock(const Args& args, unsigned char* shared)
        : BlockParts<W>(args, shared, args.net.H, args.net.units) {}

    MELODIA_DEVICE void run() {
        start();
        const bool samples = a.joint && a.phase_begin == 0 && block() < static_cast<unsigned>(a.samplers);
        for (int step = a.step_begin; step < a.step_end; ++step) {
            if (samples && !sample(a, base, step, step + 1)) return;
            for (int s = 0; s < a.net.stages; ++s) {
                if (s + 1 < a.phase_begin || s + 1 >= a.phase_end) continue;
                if (s == 0 && !begin(step)) return;
                if (s == 0 && !whole_or(kRest)) continue;
                if (s == 0 && a.net.folded) {
                    first_level(step);
                } else {
                    for (int g = 0; g < a.groups; ++g)
                        if (!stage(step, s, g)) return;
                }
            }
            if (a.phase_begin <= 1 && !any_goes_on(step)) break;
        }
        end();
    }

  private:
    using Parts = BlockParts<W>;
    using Parts::a, Parts::base, Parts::unit, Parts::units, Parts::kFloat, Parts::kInt8;
    using Parts::add_row, Parts::add_tables, Parts::embedded, Parts::encode_states, Parts::flag;
    using Parts::floats, Parts::going, Parts::goes_on, Parts::hand_in, Parts::inputs, Parts::normalise;
    using Parts::own, Parts::own_share, Parts::raw, Parts::sessions, Parts::sides, Parts::state_row;
    using Parts::step_cell, Parts::sums_at, Parts::take, Parts::tokens, Parts::turn;

    enum { kUnknown, kThere, kAsked } next = kUnknown;  // what is known of the rows that come in next

    // ---- What stands where

    MELODIA_DEVICE float* own_h(int slot, int b) const {
        return own(slot * a.own_layout.slot + b * a.net.units);
    }
    MELODIA_DEVICE float* own_c(int slot, int b) const {
        return own(slot * a.own_layout.slot + a.own_layout.c + b * a.net.units);
    }
    MELODIA_DEVICE float* own_sums(int slot, int b) const {
        return own(slot * a.own_layout.slot + a.own_layout.sums + b * a.net.units * 4);
    }
    MELODIA_DEVICE Vectors states(int vector) const { return Parts::states(vector, a.layout.padded_h); }
    MELODIA_DEVICE bool any_goes_on(int step) const {
        for (int g = 0; g < a.groups; ++g)
            if (going(step, g) != 0) return true;
        return false;
    }

    // ---- The beginning and the end of a launch

    MELODIA_DEVICE void start() {
        const int count = static_cast<int>(threads());
        auto* words = reinterpret_cast<uint32_t*>(base);  // padding is multiplied, too: by zeros
        const int first = static_cast<int>(thread()) + a.layout.words / 4;
        for (int i = first; i < a.layout.weights / 4; i += count) words[i] = 0;
        MELODIA_SYNC("decode: cleared");
        if (thread() == 0) *flag() = 1;
        for (int s = 0; s < a.net.stages; ++s) {
            const Stage& stage = a.net.stage[s];
            for (int k = 0; k < stage.cells; ++k) {
                bring(stage.cell[k].input);
                bring(stage.cell[k].recurrent);
                bring(stage.cell[k].context);
            }
            bring(stage.product);
        }
        for (int l = 0; l < a.net.reader.levels; ++l) {
            for (const CellPart& cell : a.net.reader.level[l].cell) {
                bring(cell.input);
                bring(cell.recurrent);
            }
        }
        commit_copies();
        if (!a.first) {
            const float* from = a.kept + int64_t{block()} * a.own_layout.size;
            for (int i = static_cast<int>(thread()); i < a.own_layout.size; i += count) *own(i) = from[i];
        } else {
            for (int i = static_cast<int>(thread()); i < a.net.stages * a.B * a.net.units; i += count) {
                const int s = i / (a.B * a.net.units), b = i / a.net.units % a.B, u = i % a.net.units;
                const Stage& stage = a.net.stage[s];
                for (int k = 0; u < units && k < stage.cells; ++k) {
                    const CellPart& cell = stage.cell[k];
                    const float* from = a.state_in + b * a.net.state_size + cell.state + unit + u;
                    own_h(cell.slot, b)[u] = from[0];
                    if (cell.lstm) own_c(cell.slot, b)[u] = from[a.net.H];
                }
            }
        }
        MELODIA_ORDER("decode: weights copied", wait_copies<0>());
        MELODIA_SYNC("decode: started");
        for (int s = 0; a.first && s < a.net.stages; ++s) {
            const Stage& stage = a.net.stage[s];
            for (int g = 0; stage.kind == kCells && g < a.groups; ++g) {
                const int n = sessions(g);
                for (int i = static_cast<int>(thread()); i < n * stage.cells * a.net.H; i += count) {
                    const int v = i / (stage.cells * a.net.H), k = i / a.net.H % stage.cells, j = i % a.net.H;
                    take(v, k * a.layout.padded_h + j,
                         a.state_in[(g * a.group + v) * a.net.state_size + stage.cell[k].state + j]);
                }
                MELODIA_SYNC("decode: states read");
                if (kInt8) {
                    for (int v = static_cast<int>(warp()); v < n; v += static_cast<int>(warps()))
                        encode_states(v, stage.cells, a.net.H, a.layout.padded_h);
                    MELODIA_SYNC("decode: states encoded");
                }
                recur(stage, g);
            }
        }
        if (a.first && a.net.reader.levels > 0) start_reader<W>(a, base);
    }

    MELODIA_DEVICE void bring(const Matrix& m) const {
        if (m.tiles == 0 || m.resident < 0) return;
        const int size = m.tiles * m.chunks * kChunkBytes;
        const unsigned char* from = m.data + int64_t{block()} * size;
        for (int i = static_cast<int>(thread()) * 16; i < size; i += static_cast<int>(threads()) * 16)
            copy_async(base + m.resident + i, from + i);
    }

    MELODIA_DEVICE void end() {
        const int count = static_cast<int>(threads());
        MELODIA_SYNC("decode: done");
        if (!a.last) {
            float* to = a.kept + int64_t{block()} * a.own_layout.size;
            for (int i = static_cast<int>(thread()); i < a.own_layout.size; i += count) to[i] = *own(i);
            return;
        }
        for (int i = static_cast<int>(thread()); i < a.net.stages * a.B * a.net.units; i += count) {
            const int s = i / (a.B * a.net.units), b = i / a.net.units % a.B, u = i % a.net.units;
            const Stage& stage = a.net.stage[s];
            for (int k = 0; u < units && k < stage.cells; ++k) {
                const CellPart& cell = stage.cell[k];
                float* to = a.state_out + b * a.net.state_size + cell.state + unit + u;
                to[0] = own_h(cell.slot, b)[u];
                if (cell.lstm) to[a.net.H] = own_c(cell.slot, b)[u];
            }
        }
        if (a.net.reader.levels > 0) end_reader<W>(a, base);
    }

    // ---- What comes before the first stage; false: somebody gave up

    MELODIA_DEVICE bool begin(int step) {
        if (whole_or(kCommands) && !commands(step)) return false;
        if (a.net.reader.levels == 0) return true;
        for (int g = 0; g < a.groups; ++g)
            if (going(step, g) != 0 && !read_blocks<W>(a, base, step, g)) return false;
        MELODIA_SYNC("decode: read");
        return true;
    }
    MELODIA_DEVICE bool whole_or(Part part) const { return a.part == kWhole || a.part == part; }

    // Of all sessions at once, since each word takes a way to L2 and back.
    MELODIA_DEVICE bool commands(int step) {
        uint32_t* now = tokens(step);
        const uint64_t* words = words_of(a, step, 0);
        receive(
            channel_of(a, step), a.B, 1 + a.net.S, flag(),
            [&](int b, int j) -> const uint64_t* {
                if (step == 0 || goes_on(step - 1, b)) return words + (b * a.net.words + j);
                if (j == 0) now[b] = kEnd;
                return nullptr;
            },
            [&](int b, int j, uint32_t number) { (j == 0 ? now[b] : sides(b)[j - 1]) = number; });
        // Before the barrier: behind it a fast warp may already wait for the next stage, and give up.
        return MELODIA_ALL("decode: commands", *flag() != 0);
    }

    // ---- A stage

    // The first where tables stand for its input: all sessions at once, since nothing is multiplied.
    MELODIA_DEVICE void first_level(int step) const {
        const Stage& stage = a.net.stage[0];
        const Sums<W> none = sums_at(a.layout.sums, &stage.cell[0].input, nullptr);
        advance(step, stage, 0, a.B, channel_of(a, step), none, states(0), false);
        announce(a, 0, 0, a.groups);
    }

    // For a group of sessions; false: somebody gave up.
    MELODIA_DEVICE bool stage(int step, int s, int g) {
        const Stage& stage = a.net.stage[s];
        const int n = sessions(g), first = g * a.group;
        const uint32_t live = going(step, g);
        if (live == 0) return true;

        if (s == 0) {
            embed(step, g, live);
        } else if (!receive_from(step, s, g, live)) {
            return false;
        }
        MELODIA_SYNC("decode: received");
        if (*flag() == 0) return false;
        Vectors x = states(0);
        if (kInt8 || stage.mixes()) {
            for (int v = static_cast<int>(warp()); v < n; v += static_cast<int>(warps())) {
                if ((kInt8 || a.plain) && stage.shadow >= 0)
                    encode_states(v, stage.vectors, a.net.H, a.layout.padded_h);
                mix(stage, first + v, v);
            }
            x = inputs(0, 0);
            MELODIA_SYNC("decode: mixed");
        }
        const Channel out = s + 1 < a.net.stages ? channel_of(a, step) : logits_channel_of(a, step);
        const bool cells = stage.kind == kCells;
        Sums<W> sums = sums_at(a.layout.sums, cells ? &stage.cell[0].input : &stage.product,
                               stage.cells == 2 ? &stage.cell[1].input : nullptr);
        const Ahead ahead = look_ahead(step, s, g);
        sums.make(base, x, x, n);
        note(ahead, step);
        MELODIA_SYNC("decode: sums ready");
        if (ahead.live != 0 && flag()[1]) ask_ahead(ahead);
        if (cells) {
            advance(step, stage, first, n, out, sums, x, true);
        } else {
            project(step, stage, g, live, out, sums, x);
        }
        announce(a, s, g, 1);
        if (stage.shadow >= 0) recur(a.net.stage[stage.shadow], g);
        return true;
    }

    // The sum of the embeddings. live: which sessions go on.
    MELODIA_DEVICE void embed(int step, int g, uint32_t live) const {
        for (ShortWalk at(sessions(g), a.net.D); at.there(); at.next()) {
            const int b = g * a.group + at.row;
            if (live >> at.row & 1) take(at.row, at.k, embedded(tokens(step)[b], sides(b), at.k));
        }
    }

    MELODIA_DEVICE bool receive_from(int step, int s, int g, uint32_t live) {
        const Stage& from = a.net.stage[s - 1];
        const int vectors = a.net.stage[s].vectors, size = a.net.stage[s].size;
        if (a.plain) {
            if (next == kUnknown && !await(a, step, s - 1, g, flag())) return false;
            if (next != kAsked) ask(from, g, live);
            next = kUnknown;
            turn ^= 1;
            MELODIA_ORDER("decode: rows copied", wait_copies<0>());
            return true;
        }
        const int each = static_cast<int>(a.net.words);
        const uint64_t* words = words_of(a, step, g * a.group) + from.words;
        receive(
            channel_of(a, step), sessions(g), vectors * size, flag(),
            [&](int v, int j) { return live >> v & 1 ? words + (v * each + j) : nullptr; },
            [&](int v, int j, uint32_t number) {  // the second of two vectors has a place of its own
                take(v, j < size ? j : a.layout.padded_h + j - size, float_of(number));
            });
        return true;
    }

    // For the rows of a group's sessions, which stand as they are wanted, padding included.
    MELODIA_DEVICE void ask(const Stage& from, int g, uint32_t live) const {
        const unsigned char* rows = row_of(a, from, g * a.group);
        unsigned char* to = reinterpret_cast<unsigned char*>(raw(0));
        int stride = 4 * a.layout.raw_stride;
        if (from.rounded) to = state_row(0), stride = a.layout.states_stride;
        if (from.rounded || kFloat) to += (turn ? -1 : 1) * a.layout.states_turn;
        const int each = from.row_bytes;
        for (int v = static_cast<int>(warp()); v < sessions(g); v += static_cast<int>(warps())) {
            if (!(live >> v & 1)) continue;
            for (int i = static_cast<int>(lane()) * 16; i < each; i += 32 * 16)
                copy_async(to + v * stride + i, rows + v * each + i);
        }
        commit_copies();
    }

    // ---- Ahead: a look at the counter of what comes in next is on the way during the products, and nobody
    // waits for it. What is there by then need not be waited for later, and is asked for as soon as raw rows
    // are free if states have room.

    struct Ahead {
        int stage, g;    // which posted it, of which group
        uint32_t live;   // 0: there is nothing to look at, as where it is the same group again
        uint32_t count;  // of the first thread
    };
    MELODIA_DEVICE Ahead look_ahead(int step, int s, int g) const {
        const bool here = g + 1 < a.groups;
        const int after = here ? s : s + 1, group = here ? g + 1 : 0;
        Ahead ahead = {after - 1, group, 0, 0};
        const bool posted = after > 0 && after < a.net.stages;  // nobody posts what comes into the first
        if (!a.plain || group == g || !posted || after + 1 >= a.phase_end) return ahead;
        ahead.live = going(step, group);
        if (thread() == 0) ahead.count = load_relaxed(counter_of(a, ahead.stage, group));
        return ahead;
    }
    // Before the barrier behind which everybody knows.
    MELODIA_DEVICE void note(const Ahead& ahead, int step) const {
        if (ahead.live == 0 || thread() != 0) return;
        flag()[1] = all_counted(a, step, ahead.count);
        if (flag()[1]) MELODIA_ORDER("decode ahead: acquire", fence_acquire());
    }
    MELODIA_DEVICE void ask_ahead(const Ahead& ahead) {
        next = a.ahead ? kAsked : kThere;
        if (a.ahead) ask(a.net.stage[ahead.stage], ahead.g, ahead.live);
    }

    // ---- By one warp

    // What came in, as the next product wants it. A lane touches its own numbers only.
    MELODIA_DEVICE void mix(const Stage& stage, int b, int v) const {
        const int me = static_cast<int>(lane()), n = stage.size;
        const float* x = raw(v);
        int count = (stage.vectors - 1) * a.layout.padded_h + n;
        if (stage.mixes()) {
            float* y = floats(a.layout.y) + v * a.layout.y_stride;
            float* levels = a.below + int64_t{block()} * a.net.levels * a.B * a.net.H;
            const auto kept = [&](int level) { return levels + (int64_t{level} * a.B + b) * a.net.H; };
            float total = 0.0f;
            for (int i = me; i < n; i += 32) {
                float sum = x[i];
                if (stage.adds) sum += x[a.layout.padded_h + i];
                if (stage.residual) sum += kept(stage.level - 1)[i];
                if (stage.keeps) kept(stage.level)[i] = sum;
                y[i] = sum;
                total += sum;
            }
            if (stage.norm_weight != nullptr)
                normalise(y, n, total, stage.norm_weight, stage.norm_bias, stage.norm_eps);
            x = y;
            count = n;
        }
        hand_in(x, count, v, 0, 0);
    }

    // ---- What a block's own rows come to

    // Number j of vector k that a session's stage makes.
    MELODIA_DEVICE void hand_on(const Channel& out, int step, const Stage& stage, int b, int k, int j,
                                float x) const {
        if (!a.plain) {
            post(out, words_of(a, step, b) + stage.words + k * a.net.H + j, bits_of(x));
            return;
        }
        unsigned char* row = row_of(a, stage, b);
        const int at = k * a.layout.padded_h + j;
        if (stage.rounded)
            store_data(reinterpret_cast<Bf16*>(row) + at, from_float<Bf16>(x));
        else
            store_data(reinterpret_cast<float*>(row) + at, x);
    }

    // Of sessions first .. first + n - 1; comes_in: sums were made, else tables stand for them.
    MELODIA_DEVICE void advance(int step, const Stage& stage, int first, int n, const Channel& out,
                                const Sums<W>& sums, const Vectors& x, bool comes_in) const {
        for (ShortWalk at(n, a.net.units); at.there(); at.next()) {
            const int v = at.row, u = at.k, b = first + v, j = unit + u;
            if (u >= units || !goes_on(step, b)) continue;
            for (int k = 0; k < stage.cells; ++k) {
                const CellPart& cell = stage.cell[k];
                float gate[4];
                MELODIA_UNROLL
                for (int q = 0; q < 4; ++q) gate[q] = cell.bias[j * 4 + q];
                if (comes_in) {
                    MELODIA_UNROLL
                    for (int q = 0; q < 4; ++q)
                        if (q < cell.gates) gate[q] += sums.get(k, u * cell.gates + q, v, x);
                } else {
                    add_tables(gate, cell, a.net.H, j, tokens(step)[b], sides(b));
                }
                if (cell.context.tiles > 0) add_row(gate, own_share(k, b) + 4 * u);
                float* h = own_h(cell.slot, b) + u;
                step_cell(cell, j, gate, own_sums(cell.slot, b) + 4 * u, h, own_c(cell.slot, b) + u);
                hand_on(out, step, stage, b, k, j, *h);
            }
        }
    }

    MELODIA_DEVICE void project(int step, const Stage& stage, int g, uint32_t live, const Channel& out,
                                const Sums<W>& sums, const Vectors& x) const {
        const int begin = static_cast<int>(block()) * stage.share;
        for (ShortWalk at(sessions(g), stage.share); at.there(); at.next()) {
            const int v = at.row, row = at.k, b = g * a.group + v, j = begin + row;
            if (j >= stage.rows || !(live >> v & 1)) continue;
            float sum = stage.bias == nullptr ? 0.0f : stage.bias[j];
            sum += sums.get(0, row, v, x);
            if (stage.gated) {
                const Stage& pair = a.net.stage[stage.shadow];
                const float lstm = own_h(pair.cell[0].slot, b)[row], gru = own_h(pair.cell[1].slot, b)[row];
                sum = gru + 1.0f / (1.0f + exponential(-sum)) * (lstm - gru);
            }
            hand_on(out, step, stage, b, 0, j, sum);
        }
    }

    // The recurrent products of a level for the next step, of the states that came in.
    MELODIA_DEVICE void recur(const Stage& stage, int g) const {
        const int n = sessions(g);
        const Matrix* second = stage.cells == 2 ? &stage.cell[1].recurrent : nullptr;
        Sums<W> sums = sums_at(a.layout.shadow_sums, &stage.cell[0].recurrent, second);
        const Vectors x0 = states(0), x1 = states(1);
        sums.make(base, x0, x1, n);
        MELODIA_SYNC("decode: shadow ready");
        for (ShortWalk at(n, a.net.units); at.there(); at.next()) {
            const int v = at.row, u = at.k;
            for (int k = 0; u < units && k < stage.cells; ++k) {
                const CellPart& cell = stage.cell[k];
                float* to = own_sums(cell.slot, g * a.group + v) + 4 * u;
                for (int q = 0; q < cell.gates; ++q)
                    to[q] = sums.get(k, u * cell.gates + q, v, k == 0 ? x0 : x1);
            }
        }
    }
};

}  // namespace melodia::cuda::decode
