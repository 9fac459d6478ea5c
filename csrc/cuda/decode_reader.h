// The encoder of a compute block: it reads every finished block of music in both directions, and its summary
// conditions the bottom level until the next one is finished (engine/blocks.cpp; "block" alone means a block
// of the launch here, as everywhere in cuda/).
//
// Every block sees every token, keeps those that wait, and so knows by itself when a session's block of music
// is finished, and how long it is. Then, before the first stage of that token, the blocks run the encoder:
// level after level, both directions side by side, and in each of its steps every block posts the numbers of
// its own units and takes in everybody's. All of a reading stays in words of its own, from which the next
// level takes its input. They have no second buffer: the next reading of a session comes after the logits of
// this token, and those need the units that every block makes behind this reading. Sessions of a group read
// together; one that is shorter ends earlier, one that reads nothing stands by.
#pragma once

#include "cuda/decode_block.h"

namespace melodia::cuda::decode {

template <class W>
class ReaderBlock : BlockParts<W> {
  public:
    MELODIA_DEVICE ReaderBlock(const Args& args, unsigned char* shared)
        : BlockParts<W>(args, shared, args.net.reader.E, args.net.reader.units), reader(args.net.reader) {}

    // The state of a launch's sessions.
    MELODIA_DEVICE void start() {
        each_unit([&](const CellPart& cell, int slot, int b, int u, int64_t at) {
            own_h(slot, b)[u] = a.state_in[at];
            if (cell.lstm) own_c(slot, b)[u] = a.state_in[at + reader.E];
        });
        const int S = a.net.S, E = reader.E;
        for (int b = 0; b < a.B; ++b) {
            const float *from = state_of(a.state_in, b), *first = from + 2 * E + 1;
            const float* side = first + reader.block_max;
            const auto count = static_cast<int>(side[reader.block_max * S]);
            for (int i = static_cast<int>(thread()); i < count; i += static_cast<int>(threads())) {
                uint32_t* row = waiting(b, i);
                row[0] = static_cast<uint32_t>(first[i]);
                for (int k = 0; k < S; ++k) row[1 + k] = static_cast<uint32_t>(side[i * S + k]);
            }
            for (int i = static_cast<int>(thread()); block() == 0 && i < 2 * E;
                 i += static_cast<int>(threads()))
                a.summaries[int64_t{b} * 2 * E + i] = from[i];
            if (thread() == 0) {
                *number(a.own_layout.waiting, b) = static_cast<uint32_t>(count);
                *number(a.own_layout.read, b) = static_cast<uint32_t>(from[2 * E]);
            }
        }
        for (int g = 0; g < a.groups; ++g) {
            const int n = sessions(g);
            for (int l = 0; l < reader.levels; ++l) {
                const CellPart& cell = reader.level[l].cell[0];
                for (ShortWalk at(n, E); at.there(); at.next())
                    take(at.row, at.k,
                         a.state_in[(g * a.group + at.row) * a.net.state_size + cell.state + at.k]);
                MELODIA_SYNC("decode reader: states read");
                encode_all(g, 1);
                Sums<W> inside = sums_at(a.layout.shadow_sums, &cell.recurrent, nullptr);
                const Vectors x = states(0);
                inside.make(base, x, x, n);
                MELODIA_SYNC("decode reader: first sums ready");
                each_of(g, [&](int b, int v, int u) { carry(cell, l, b, u, inside, v, x); });
            }
            for (int v = static_cast<int>(warp()); v < n; v += static_cast<int>(warps())) {
                const float* from = state_of(a.state_in, g * a.group + v);
                hand_in(from[2 * E] > 0.0f ? from : reader.start, 2 * E, v, 0, a.layout.padded_x);
            }
            share(g, true);
        }
    }

    // What a step's tokens of a group mean for the encoder, up to the first stage; false: somebody gave up.
    MELODIA_DEVICE bool run(int step, int g) {
        if (a.part == kWhole || a.part == kCommands) listen(step, g);
        if (a.part == kCommands) return true;
        const int L = longest(g);
        const bool one = a.part == kReading;
        const int levels = L == 0 || a.part == kRest ? 0 : one ? a.reader_level + 1 : reader.levels;
        const int last = one && a.reader_step < L ? a.reader_step : L;
        for (int l = one ? a.reader_level : 0; l < levels; ++l)
            for (int t = one ? a.reader_step : 0; t <= last; ++t)
                if (!advance(step, g, l, t, L)) return false;
        if (one) return true;
        if (L > 0 && !summarise(step, g)) return false;
        keep(step, g);
        return true;
    }

    MELODIA_DEVICE void end() {
        each_unit([&](const CellPart& cell, int slot, int b, int u, int64_t at) {
            a.state_out[at] = own_h(slot, b)[u];
            if (cell.lstm) a.state_out[at + reader.E] = own_c(slot, b)[u];
        });
        const int S = a.net.S, E = reader.E;
        for (int b = 0; block() == 0 && b < a.B; ++b) {
            float *to = state_of(a.state_out, b), *first = to + 2 * E + 1, *side = first + reader.block_max;
            const auto count = static_cast<int>(*number(a.own_layout.waiting, b));
            for (int i = static_cast<int>(thread()); i < 2 * E; i += static_cast<int>(threads()))
                to[i] = a.summaries[int64_t{b} * 2 * E + i];
            for (int i = static_cast<int>(thread()); i < reader.block_max; i += static_cast<int>(threads())) {
                const uint32_t* row = waiting(b, i);
                first[i] = i < count ? static_cast<float>(row[0]) : 0.0f;
                for (int k = 0; k < S; ++k)
                    side[i * S + k] = i < count ? static_cast<float>(row[1 + k]) : 0.0f;
            }
            if (thread() == 0) {
                const uint32_t read = *number(a.own_layout.read, b);
                to[2 * E] = static_cast<float>(read < (1u << 24) ? read : 1u << 24);  // exact up to there
                side[reader.block_max * S] = static_cast<float>(count);
            }
        }
    }

  private:
    using Parts = BlockParts<W>;
    using Parts::a, Parts::base, Parts::unit, Parts::units, Parts::kInt8;
    using Parts::add_tables, Parts::embedded, Parts::encode_states, Parts::flag, Parts::floats;
    using Parts::goes_on, Parts::hand_in, Parts::normalise, Parts::own, Parts::own_share, Parts::own_words;
    using Parts::raw, Parts::sessions, Parts::sides, Parts::step_cell, Parts::sums_at, Parts::take,
        Parts::tokens;

    const Reader& reader;

    // ---- What stands where; the slots of a level are 2 l, forward, and 2 l + 1, backward

    MELODIA_DEVICE float* cell_of(int slot) const {
        return own(a.own_layout.reader + slot * a.own_layout.reader_slot);
    }
    MELODIA_DEVICE float* own_h(int slot, int b) const { return cell_of(slot) + b * reader.units; }
    MELODIA_DEVICE float* own_c(int slot, int b) const {
        return cell_of(slot) + a.own_layout.reader_c + b * reader.units;
    }
    MELODIA_DEVICE float* own_sums(int slot, int b) const {
        return cell_of(slot) + a.own_layout.reader_sums + b * reader.units * 4;
    }
    MELODIA_DEVICE uint32_t* number(int which, int i) const { return own_words(which) + i; }
    MELODIA_DEVICE int length_of(int b) const { return static_cast<int>(*number(a.own_layout.length, b)); }
    MELODIA_DEVICE int longest(int g) const {
        int most = 0;
        MELODIA_ROLLED
        for (int v = 0; v < sessions(g); ++v) {
            const int length = length_of(g * a.group + v);
            most = length > most ? length : most;
        }
        return most;
    }
    // Token and side inputs that wait at a place.
    MELODIA_DEVICE uint32_t* waiting(int b, int at) const {
        const int64_t row = (int64_t{block()} * a.B + b) * reader.block_max + at;
        return a.waiting + row * (1 + a.net.S);
    }
    // What a level made in its step t: [2E], forward and backward.
    MELODIA_DEVICE uint64_t* words(int b, int level, int t) const {
        return a.reader_words + ((int64_t{b} * reader.levels + level) * reader.block_max + t) * 2 * reader.E;
    }
    template <class T>
    MELODIA_DEVICE T* state_of(T* states, int b) const {
        return states + b * a.net.state_size + reader.state;
    }
    MELODIA_DEVICE Vectors states(int way) const { return Parts::states(way, a.layout.padded_e); }
    MELODIA_DEVICE Vectors inputs(int way) const { return Parts::inputs(way, a.layout.padded_x); }

    // f(forward cell, slot, session, local unit, its place in the states)
    template <class F>
    MELODIA_DEVICE void each_unit(F f) const {
        const int U = reader.units;
        for (int i = static_cast<int>(thread()); i < reader.levels * a.B * U;
             i += static_cast<int>(threads())) {
            const int l = i / (a.B * U), b = i / U % a.B, u = i % U;
            const CellPart& cell = reader.level[l].cell[0];
            if (u < units) f(cell, 2 * l, b, u, b * a.net.state_size + cell.state + unit + u);
        }
    }
    // f(session, its row, local unit)
    template <class F>
    MELODIA_DEVICE void each_of(int g, F f) const {
        for (ShortWalk at(sessions(g), reader.units); at.there(); at.next())
            if (at.k < units) f(g * a.group + at.row, at.row, at.k);
    }

    // ---- The steps of a reading

    // Whose blocks of music the tokens finish.
    MELODIA_DEVICE void listen(int step, int g) const {
        for (int v = static_cast<int>(thread()); v < sessions(g); v += static_cast<int>(threads())) {
            const int b = g * a.group + v;
            const auto count = static_cast<int>(*number(a.own_layout.waiting, b));
            const bool ends = goes_on(step, b) && count > 0 &&
                              (count == reader.block_max ||
                               (reader.opens != nullptr && reader.opens[tokens(step)[b]] != 0));
            *number(a.own_layout.length, b) = ends ? static_cast<uint32_t>(count) : 0u;
            if (a.part == kCommands && block() == 0) a.lengths[b] = ends ? count : 0;
        }
        MELODIA_SYNC("decode reader: lengths");
    }

    // Step t of a level, of L; in step L only what the one before it made is taken in.
    MELODIA_DEVICE bool advance(int step, int g, int level, int t, int L) const {
        const ReaderLevel& part = reader.level[level];
        const int n = sessions(g), E = reader.E;
        const Channel out = channel_of(a, step);
        const bool tables = level == 0 && a.net.folded;
        const Sums<W> sums = input_sums(part);
        Sums<W> inside = sums_at(a.layout.shadow_sums, &part.cell[0].recurrent, &part.cell[1].recurrent);
        if (!tables && t < L && !take_inputs(g, level, t, out)) return false;
        if (t > 0) {
            receive(
                out, n, 2 * E, flag(),
                [&](int v, int j) {
                    const int b = g * a.group + v;
                    return t <= length_of(b) ? words(b, level, t - 1) + j : nullptr;
                },
                [&](int v, int j, uint32_t x) {
                    take(v, j < E ? j : a.layout.padded_e + j - E, float_of(x));
                });
            MELODIA_SYNC("decode reader: states received");
            if (*flag() == 0) return false;
            encode_all(g, 2);
            inside.make(base, states(0), states(1), n);
        }
        MELODIA_SYNC("decode reader: sums ready");
        each_of(g, [&](int b, int v, int u) {
            const int length = length_of(b), j = unit + u;
            if (length == 0 || t > length) return;
            if (t == length) return carry(part.cell[0], level, b, u, inside, v, states(0));
            for (int way = 0; way < 2; ++way) {
                const CellPart& cell = part.cell[way];
                const int slot = 2 * level + way;
                float gate[4], r[4] = {};
                MELODIA_UNROLL
                for (int q = 0; q < 4; ++q) {
                    gate[q] = cell.bias[j * 4 + q];
                    if (q >= cell.gates) continue;
                    if (!tables) gate[q] += sums.get(way, u * cell.gates + q, v, inputs(way));
                    if (t > 0)
                        r[q] = inside.get(way, u * cell.gates + q, v, states(way));
                    else if (way == 0)
                        r[q] = own_sums(slot, b)[4 * u + q];
                }
                if (tables) {
                    const uint32_t* row = waiting(b, way == 0 ? t : length - 1 - t);
                    add_tables(gate, cell, E, j, row[0], row + 1);
                }
                float *h = own_h(slot, b) + u, *c = own_c(slot, b) + u;
                if (t == 0 && way == 1) *h = *c = 0.0f;
                step_cell(cell, j, gate, r, h, c);
                post(out, words(b, level, t) + way * E + j, bits_of(*h));
            }
        });
        return true;
    }

    MELODIA_DEVICE Sums<W> input_sums(const ReaderLevel& part) const {
        return sums_at(a.layout.sums, &part.cell[0].input, &part.cell[1].input);
    }

    // The products of a level's input at place t and at the one as far from the end.
    MELODIA_DEVICE bool take_inputs(int g, int level, int t, const Channel& in) const {
        const int n = sessions(g), D = a.net.D;
        if (level > 0) {
            gather(g, level, t, in);
        } else {
            for (ShortWalk at(n, 2 * D); at.there(); at.next()) {
                const int b = g * a.group + at.row, length = length_of(b), way = at.k >= D,
                          j = at.k - way * D;
                if (t >= length) continue;
                const uint32_t* row = waiting(b, way == 0 ? t : length - 1 - t);
                raw(at.row)[way * a.layout.padded_x + j] = embedded(row[0], row + 1, j);
            }
        }
        MELODIA_SYNC("decode reader: inputs received");
        if (*flag() == 0) return false;
        for (int i = static_cast<int>(warp()); i < 2 * n; i += static_cast<int>(warps())) {
            const int v = i / 2, way = i % 2;
            float* x = raw(v) + way * a.layout.padded_x;
            if (t >= length_of(g * a.group + v)) continue;
            if (level > 0) finish(x, level - 1);
            hand_in(x, level > 0 ? 2 * reader.E : D, v, way, a.layout.padded_x);
        }
        MELODIA_SYNC("decode reader: inputs ready");
        input_sums(reader.level[level]).make(base, inputs(0), inputs(1), n);
        return true;
    }

    // What the levels below `level` made of place t and of the one as far from the end, two vectors [2E] of
    // floats; t -1: of the last and the first.
    MELODIA_DEVICE void gather(int g, int level, int t, const Channel& in) const {
        const int wide = 2 * reader.E, from = reader.residual ? 0 : level - 1;
        for (int l = from; l < level; ++l) {
            receive(
                in, sessions(g), 2 * wide, flag(),
                [&](int v, int k) -> const uint64_t* {
                    const int b = g * a.group + v, way = k >= wide, j = k - way * wide;
                    const int length = length_of(b), near = t < 0 ? length - 1 : t;
                    if (near >= length || length == 0) return nullptr;
                    // Each direction made it in the step that is as far from its own beginning.
                    return words(b, l, (way == 0) == (j < reader.E) ? near : length - 1 - near) + j;
                },
                [&](int v, int k, uint32_t x) {
                    const int way = k >= wide;
                    float* to = raw(v) + way * a.layout.padded_x + k - way * wide;
                    *to = l == from ? float_of(x) : *to + float_of(x);
                });
        }
    }

    // By a warp: a level's norm.
    MELODIA_DEVICE void finish(float* x, int level) const {
        const ReaderLevel& of = reader.level[level];
        if (of.norm_weight == nullptr) return;
        float total = 0.0f;
        for (int i = static_cast<int>(lane()); i < 2 * reader.E; i += 32) total += x[i];
        normalise(x, 2 * reader.E, total, of.norm_weight, of.norm_bias, of.norm_eps);
    }

    // int8: the states that came in, in the form of the weights.
    MELODIA_DEVICE void encode_all(int g, int vectors) const {
        if constexpr (kInt8) {
            for (int v = static_cast<int>(warp()); v < sessions(g); v += static_cast<int>(warps()))
                encode_states(v, vectors, reader.E, a.layout.padded_e);
            MELODIA_SYNC("decode reader: states encoded");
        }
    }

    // The recurrent sums with which the forward direction goes on in the next block of music.
    MELODIA_DEVICE void carry(const CellPart& cell, int level, int b, int u, const Sums<W>& inside, int v,
                              const Vectors& x) const {
        for (int q = 0; q < cell.gates; ++q)
            own_sums(2 * level, b)[4 * u + q] = inside.get(0, u * cell.gates + q, v, x);
    }

    // The forward direction's last numbers and the backward one's, which it has made of the first token.
    MELODIA_DEVICE bool summarise(int step, int g) const {
        const int E = reader.E;
        gather(g, reader.levels, -1, channel_of(a, step));
        MELODIA_SYNC("decode reader: last received");
        if (*flag() == 0) return false;
        for (int v = static_cast<int>(warp()); v < sessions(g); v += static_cast<int>(warps())) {
            const int b = g * a.group + v;
            if (length_of(b) == 0) continue;
            float *x = raw(v), *first = x + a.layout.padded_x;
            finish(x, reader.levels - 1);
            finish(first, reader.levels - 1);
            for (int i = static_cast<int>(lane()); i < 2 * E; i += 32) {
                if (i >= E) x[i] = first[i];
                if (block() == 0) a.summaries[int64_t{b} * 2 * E + i] = x[i];
            }
            hand_in(x, 2 * E, v, 0, a.layout.padded_x);
        }
        share(g, false);
        return true;
    }

    // The share of the bottom's gates, of the summaries that are handed in; all: of every session of the
    // group, else of those that read.
    MELODIA_DEVICE void share(int g, bool all) const {
        MELODIA_SYNC("decode reader: summaries ready");
        const Stage& bottom = a.net.stage[0];
        const int n = sessions(g);
        const Vectors x = inputs(0);
        Sums<W> sums = sums_at(a.layout.sums, &bottom.cell[0].context,
                               bottom.cells == 2 ? &bottom.cell[1].context : nullptr);
        sums.make(base, x, x, n);
        MELODIA_SYNC("decode reader: share ready");
        for (ShortWalk at(n, a.net.units); at.there(); at.next()) {
            const int v = at.row, u = at.k, b = g * a.group + v;
            if (!all && length_of(b) == 0) continue;
            for (int k = 0; k < bottom.cells; ++k) {
                const int gates = bottom.cell[k].gates;
                for (int q = 0; q < gates; ++q) own_share(k, b)[4 * u + q] = sums.get(k, u * gates + q, v, x);
            }
        }
    }

    // The tokens wait, each in its own session.
    MELODIA_DEVICE void keep(int step, int g) const {
        for (int v = static_cast<int>(thread()); v < sessions(g); v += static_cast<int>(threads())) {
            const int b = g * a.group + v;
            if (!goes_on(step, b)) continue;
            uint32_t& count = *number(a.own_layout.waiting, b);
            if (length_of(b) > 0) {
                *number(a.own_layout.read, b) += 1;
                count = 0;
            }
            uint32_t* row = waiting(b, static_cast<int>(count));
            row[0] = tokens(step)[b];
            for (int k = 0; k < a.net.S; ++k) row[1 + k] = sides(b)[k];
            ++count;
        }
    }
};

}  // namespace melodia::cuda::decode
