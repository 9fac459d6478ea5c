// A compute block of a decode launch: its rows of every stage, for all sessions, step after step.
//
// What is not needed at once is made while others wait: the recurrent products of a level for the next step
// come after the numbers of the following stage have been posted (kernels of a stage: receive, mix, multiply,
// post, then the shadow). A session's numbers do not depend on which other sessions there are.
#pragma once

#include "cuda/cell.h"
#include "cuda/decode_exchange.h"
#include "cuda/decode_product.h"

namespace melodia::cuda::decode {

MELODIA_DEVICE float square_root(float x) {
#if defined(MELODIA_EMULATOR)
    return std::sqrt(x);
#else
    return __fsqrt_rn(x);
#endif
}
MELODIA_DEVICE float exponential(float x) {
#if defined(MELODIA_EMULATOR)
    return std::exp(x);
#else
    return expf(x);
#endif
}
MELODIA_DEVICE float warp_max(float x) {
    for (unsigned mask = 16; mask; mask >>= 1) {
        const float other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

template <class W>
class ComputeBlock {
  public:
    MELODIA_DEVICE ComputeBlock(const Args& args, unsigned char* shared) : a(args), base(shared) {
        unit = static_cast<int>(block()) * a.net.units;
        units = a.net.H - unit < a.net.units ? a.net.H - unit : a.net.units;
    }

    MELODIA_DEVICE void run() {
        start();
        for (int step = a.step_begin; step < a.step_end; ++step) {
            for (int s = 0; s < a.net.stages; ++s) {
                if (s + 1 < a.phase_begin || s + 1 >= a.phase_end) continue;
                for (int g = 0; g < groups_of(a); ++g)
                    if (!stage(step, s, g)) return;
            }
            if (a.phase_begin <= 1 && !any_goes_on(step)) break;
        }
        end();
    }

  private:
    static constexpr bool kFloat = same_type<W, float>::value, kInt8 = same_type<W, Int8>::value;

    const Args& a;
    unsigned char* base;
    int unit, units;  // the first of its hidden units, how many there are

    // ---- What stands where

    MELODIA_DEVICE float* floats(int offset) const { return reinterpret_cast<float*>(base + offset); }
    MELODIA_DEVICE float* own(int at) const { return floats(a.layout.own) + at; }
    MELODIA_DEVICE float* own_h(int slot, int b) const {
        return own(slot * a.own_layout.slot + b * a.net.units);
    }
    MELODIA_DEVICE float* own_c(int slot, int b) const {
        return own(slot * a.own_layout.slot + a.own_layout.c + b * a.net.units);
    }
    MELODIA_DEVICE float* own_sums(int slot, int b) const {
        return own(slot * a.own_layout.slot + a.own_layout.sums + b * a.net.units * 4);
    }
    MELODIA_DEVICE uint32_t* tokens(int step) const {
        return reinterpret_cast<uint32_t*>(own(a.own_layout.tokens)) + (step & 1) * a.B;
    }
    MELODIA_DEVICE uint32_t* sides(int b) const {
        return reinterpret_cast<uint32_t*>(own(a.own_layout.sides)) + b * a.net.S;
    }
    MELODIA_DEVICE int* flag() const { return reinterpret_cast<int*>(base + a.layout.flag); }
    MELODIA_DEVICE float* raw(int v) const { return floats(a.layout.raw) + v * a.layout.raw_stride; }
    MELODIA_DEVICE unsigned char* state_row(int v) const {
        return base + a.layout.states + v * a.layout.states_stride;
    }
    MELODIA_DEVICE unsigned char* input_row(int v) const {
        return base + a.layout.inputs + v * a.layout.inputs_stride;
    }
    MELODIA_DEVICE float* scales(int which) const { return floats(a.layout.scales) + which * kGroup; }
    MELODIA_DEVICE Vectors states(int vector) const {
        return {state_row(0) + vector * a.layout.padded_h * Form<W>::kBytes, a.layout.states_stride,
                scales(vector)};
    }
    MELODIA_DEVICE Vectors inputs() const { return {input_row(0), a.layout.inputs_stride, scales(2)}; }
    MELODIA_DEVICE int sessions(int g) const { return a.B - g * kGroup < kGroup ? a.B - g * kGroup : kGroup; }
    MELODIA_DEVICE bool goes_on(int step, int b) const { return tokens(step)[b] != kEnd; }
    MELODIA_DEVICE bool any_goes_on(int step) const {
        for (int b = 0; b < a.B; ++b)
            if (goes_on(step, b)) return true;
        return false;
    }

    // ---- The beginning and the end of a launch

    MELODIA_DEVICE void start() {
        const int count = static_cast<int>(threads());
        auto* words = reinterpret_cast<uint32_t*>(base);  // padding is multiplied, too: by zeros
        for (int i = static_cast<int>(thread()); i < a.layout.weights / 4; i += count) words[i] = 0;
        MELODIA_SYNC("decode: cleared");
        if (thread() == 0) *flag() = 1;
        for (int s = 0; s < a.net.stages; ++s) {
            const Stage& stage = a.net.stage[s];
            for (int k = 0; k < stage.cells; ++k) {
                bring(stage.cell[k].input);
                bring(stage.cell[k].recurrent);
            }
            bring(stage.product);
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
            for (int g = 0; stage.kind == kCells && g < groups_of(a); ++g) {
                const int n = sessions(g);
                for (int i = static_cast<int>(thread()); i < n * stage.cells * a.net.H; i += count) {
                    const int v = i / (stage.cells * a.net.H), k = i / a.net.H % stage.cells, j = i % a.net.H;
                    take(v, k, j, a.state_in[(g * kGroup + v) * a.net.state_size + stage.cell[k].state + j]);
                }
                MELODIA_SYNC("decode: states read");
                if (kInt8) {
                    for (int v = static_cast<int>(warp()); v < n; v += static_cast<int>(warps()))
                        encode_states(v, stage.cells);
                    MELODIA_SYNC("decode: states encoded");
                }
                recur(stage, g);
            }
        }
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
    }

    // ---- A stage for a group of sessions; false: somebody gave up

    MELODIA_DEVICE bool stage(int step, int s, int g) {
        const Stage& stage = a.net.stage[s];
        const int n = sessions(g), first = g * kGroup;
        if (s == 0 && !commands(step, g)) return false;
        bool any = false;
        for (int v = 0; v < n; ++v) any = any || goes_on(step, first + v);
        if (!any) return true;

        const bool comes_in = s > 0 || !a.net.folded;
        Vectors x = states(0);
        if (comes_in) {
            if (s == 0) {
                embed(step, g);
            } else if (!receive_from(step, s, g)) {
                return false;
            }
            MELODIA_SYNC("decode: received");
            if (*flag() == 0) return false;
            if (kInt8 || stage.mixes()) {
                for (int v = static_cast<int>(warp()); v < n; v += static_cast<int>(warps())) {
                    if (kInt8 && stage.shadow >= 0) encode_states(v, stage.vectors);
                    mix(stage, first + v, v);
                }
                x = inputs();
                MELODIA_SYNC("decode: mixed");
            }
        }
        const Channel out = channel_of(a, step, a.B + s * groups_of(a) + g, a.net.blocks);
        const bool cells = stage.kind == kCells;
        Sums<W> sums(floats(a.layout.sums), cells ? &stage.cell[0].input : &stage.product,
                     stage.cells == 2 ? &stage.cell[1].input : nullptr);
        if (comes_in) {
            sums.make(base, x, x, n);
            MELODIA_SYNC("decode: sums ready");
        }
        if (cells) {
            advance(step, stage, g, out, sums, x, comes_in);
        } else {
            project(step, stage, g, out, sums, x);
        }
        announce(out);
        if (stage.shadow >= 0) recur(a.net.stage[stage.shadow], g);
        return true;
    }

    MELODIA_DEVICE bool commands(int step, int g) {
        const int n = sessions(g), first = g * kGroup, each = 1 + a.net.S;
        for (int v = 0; v < n; ++v) {
            const int b = first + v;
            if (step == 0 || goes_on(step - 1, b)) await(channel_of(a, step, b, 1), flag());
        }
        uint32_t* now = tokens(step);
        receive(
            channel_of(a, step, 0, 1), n * each, flag(),
            [&](int i) -> const uint64_t* {
                const int b = first + i / each, j = i % each;
                if (step > 0 && !goes_on(step - 1, b)) {
                    if (j == 0) now[b] = kEnd;
                    return nullptr;
                }
                return words_of(a, step, b) + j;
            },
            [&](int i, uint32_t number) {
                const int b = first + i / each, j = i % each;
                if (j == 0)
                    now[b] = number;
                else
                    sides(b)[j - 1] = number;
            });
        MELODIA_SYNC("decode: commands");
        return *flag() != 0;
    }

    // A number that comes in.
    MELODIA_DEVICE void take(int v, int vector, int i, float x) const {
        const int at = vector * a.layout.padded_h + i;
        if (a.net.raw || kFloat) raw(v)[at] = x;
        if constexpr (same_type<W, Bf16>::value)
            reinterpret_cast<Bf16*>(state_row(v))[at] = from_float<Bf16>(x);
    }

    // The sum of the embeddings.
    MELODIA_DEVICE void embed(int step, int g) const {
        const int n = sessions(g), D = a.net.D;
        for (int i = static_cast<int>(thread()); i < n * D; i += static_cast<int>(threads())) {
            const int v = i / D, j = i % D, b = g * kGroup + v;
            if (!goes_on(step, b)) continue;
            float sum = a.net.embeddings[0][int64_t{tokens(step)[b]} * D + j];
            for (int k = 0; k < a.net.S; ++k) sum += a.net.embeddings[1 + k][int64_t{sides(b)[k]} * D + j];
            take(v, 0, j, sum);
        }
    }

    MELODIA_DEVICE bool receive_from(int step, int s, int g) {
        const Stage& stage = a.net.stage[s];
        const int n = sessions(g), first = g * kGroup, all = stage.vectors * stage.size;
        const int64_t words = a.net.stage[s - 1].words;
        const Channel in = channel_of(a, step, a.B + (s - 1) * groups_of(a) + g, a.net.blocks);
        await(in, flag());
        if (a.counted && *flag() == 0) return false;
        receive(
            in, n * all, flag(),
            [&](int i) -> const uint64_t* {
                const int b = first + i / all;
                return goes_on(step, b) ? words_of(a, step, b) + words + i % all : nullptr;
            },
            [&](int i, uint32_t number) {
                take(i / all, i % all / stage.size, i % stage.size, float_of(number));
            });
        return true;
    }

    // ---- By one warp

    // x [count] floats as whole numbers from -127 to 127 and what one of them is worth, as
    // engine/kernels_impl.h.
    MELODIA_DEVICE float encode(const float* x, int count, unsigned char* out) const {
        const int me = static_cast<int>(lane());
        float top = 0.0f;
        for (int i = me; i < count; i += 32) {
            const float size = x[i] < 0.0f ? -x[i] : x[i];
            top = size > top ? size : top;
        }
        top = warp_max(top);
        const float scale = top > 0.0f ? top / 127.0f : 1.0f, inverse = 1.0f / scale;
        for (int i = me; i < count; i += 32) {
            const float shifted = x[i] * inverse + 12582912.0f;
            out[i] = static_cast<unsigned char>(bits_of(shifted) - 0x4B400000u);
        }
        return scale;
    }

    MELODIA_DEVICE void encode_states(int v, int vectors) const {
        for (int k = 0; k < vectors; ++k) {
            const float scale =
                encode(raw(v) + k * a.layout.padded_h, a.net.H, state_row(v) + k * a.layout.padded_h);
            if (lane() == 0) scales(k)[v] = scale;
        }
    }

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
            if (stage.norm_weight != nullptr) {
                const float mean = warp_sum(total) / float(n);
                float squares = 0.0f;
                for (int i = me; i < n; i += 32) squares += (y[i] - mean) * (y[i] - mean);
                const float scale = 1.0f / square_root(warp_sum(squares) / float(n) + stage.norm_eps);
                for (int i = me; i < n; i += 32)
                    y[i] = (y[i] - mean) * scale * stage.norm_weight[i] + stage.norm_bias[i];
            }
            x = y;
            count = n;
        }
        if constexpr (kInt8) {
            const float scale = encode(x, count, input_row(v));
            if (lane() == 0) scales(2)[v] = scale;
        } else {
            for (int i = me; i < count; i += 32) reinterpret_cast<W*>(input_row(v))[i] = from_float<W>(x[i]);
        }
    }

    // ---- What a block's own rows come to

    MELODIA_DEVICE void advance(int step, const Stage& stage, int g, const Channel& out, const Sums<W>& sums,
                                const Vectors& x, bool comes_in) const {
        const int n = sessions(g), U = a.net.units;
        for (int i = static_cast<int>(thread()); i < n * U; i += static_cast<int>(threads())) {
            const int v = i / U, u = i % U, b = g * kGroup + v, j = unit + u;
            if (u >= units || !goes_on(step, b)) continue;
            uint64_t* words = words_of(a, step, b) + stage.words;
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
                    add_row(gate, cell.tables[0], tokens(step)[b], j);
                    for (int side = 0; side < a.net.S; ++side)
                        add_row(gate, cell.tables[1 + side], sides(b)[side], j);
                }
                const float* r = own_sums(cell.slot, b) + 4 * u;
                float* h = own_h(cell.slot, b) + u;
                if (cell.lstm) {
                    float* c = own_c(cell.slot, b) + u;
                    const auto now =
                        lstm_forward(gate[0] + r[0], gate[1] + r[1], gate[2] + r[2], gate[3] + r[3], *c);
                    *c = now.c;
                    *h = now.h;
                } else {
                    const float inside = r[2] + cell.bias_n[j * 4 + 2];
                    *h = gru_forward(gate[0] + r[0], gate[1] + r[1], gate[2], inside, *h).h;
                }
                post(out, words + k * a.net.H + j, bits_of(*h));
            }
        }
    }

    MELODIA_DEVICE void add_row(float (&gate)[4], const float* table, uint32_t row, int j) const {
        struct alignas(16) Four {
            float x[4];
        };
        const Four four = *reinterpret_cast<const Four*>(table + (int64_t{row} * a.net.H + j) * 4);
        MELODIA_UNROLL
        for (int q = 0; q < 4; ++q) gate[q] += four.x[q];
    }

    MELODIA_DEVICE void project(int step, const Stage& stage, int g, const Channel& out, const Sums<W>& sums,
                                const Vectors& x) const {
        const int n = sessions(g), begin = static_cast<int>(block()) * stage.share;
        for (int i = static_cast<int>(thread()); i < n * stage.share; i += static_cast<int>(threads())) {
            const int v = i / stage.share, row = i % stage.share, b = g * kGroup + v, j = begin + row;
            if (j >= stage.rows || !goes_on(step, b)) continue;
            float sum = stage.bias == nullptr ? 0.0f : stage.bias[j];
            sum += sums.get(0, row, v, x);
            if (stage.gated) {
                const Stage& pair = a.net.stage[stage.shadow];
                const float lstm = own_h(pair.cell[0].slot, b)[row], gru = own_h(pair.cell[1].slot, b)[row];
                sum = gru + 1.0f / (1.0f + exponential(-sum)) * (lstm - gru);
            }
            post(out, words_of(a, step, b) + stage.words + j, bits_of(sum));
        }
    }

    // The recurrent products of a level for the next step, of the states that came in.
    MELODIA_DEVICE void recur(const Stage& stage, int g) const {
        const int n = sessions(g), U = a.net.units;
        const Matrix* second = stage.cells == 2 ? &stage.cell[1].recurrent : nullptr;
        Sums<W> sums(floats(a.layout.shadow_sums), &stage.cell[0].recurrent, second);
        const Vectors x0 = states(0), x1 = states(1);
        sums.make(base, x0, x1, n);
        MELODIA_SYNC("decode: shadow ready");
        for (int i = static_cast<int>(thread()); i < n * U; i += static_cast<int>(threads())) {
            const int v = i / U, u = i % U;
            for (int k = 0; u < units && k < stage.cells; ++k) {
                const CellPart& cell = stage.cell[k];
                float* to = own_sums(cell.slot, g * kGroup + v) + 4 * u;
                for (int q = 0; q < cell.gates; ++q)
                    to[q] = sums.get(k, u * cell.gates + q, v, k == 0 ? x0 : x1);
            }
        }
    }
};

}  // namespace melodia::cuda::decode
