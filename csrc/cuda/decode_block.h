// What the parts of a compute block have in common: where things stand in its shared memory, and the forms
// that numbers take there.
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
class BlockParts {
  protected:
    static constexpr bool kFloat = same_type<W, float>::value, kInt8 = same_type<W, Int8>::value;

    const Args& a;
    unsigned char* base;
    int unit, units;  // the first of its units of `size`, how many there are
    int turn = 0;     // which of two places the states of the present group have

    MELODIA_DEVICE BlockParts(const Args& args, unsigned char* shared, int size, int each)
        : a(args), base(shared) {
        unit = static_cast<int>(block()) * each;
        units = size - unit < each ? size - unit : each;
    }

    // ---- What stands where

    MELODIA_DEVICE float* floats(int offset) const { return reinterpret_cast<float*>(base + offset); }
    MELODIA_DEVICE float* own(int at) const { return floats(a.layout.own) + at; }
    MELODIA_DEVICE uint32_t* own_words(int at) const { return reinterpret_cast<uint32_t*>(own(at)); }
    MELODIA_DEVICE uint32_t* tokens(int step) const {
        return own_words(a.own_layout.tokens) + (step & 1) * a.B;
    }
    MELODIA_DEVICE uint32_t* sides(int b) const { return own_words(a.own_layout.sides) + b * a.net.S; }
    // The summary's share of the gates of the bottom's cell k: [U][4].
    MELODIA_DEVICE float* own_share(int k, int b) const {
        return own(a.own_layout.share) + (k * a.B + b) * a.net.units * 4;
    }
    MELODIA_DEVICE int* flag() const { return reinterpret_cast<int*>(base + a.layout.flag); }
    MELODIA_DEVICE unsigned char* state_row(int v) const {
        return base + a.layout.states + turn * a.layout.states_turn + v * a.layout.states_stride;
    }
    MELODIA_DEVICE float* raw(int v) const {
        if constexpr (kFloat) return reinterpret_cast<float*>(state_row(v));
        return floats(a.layout.raw) + v * a.layout.raw_stride;
    }
    MELODIA_DEVICE unsigned char* input_row(int v) const {
        return base + a.layout.inputs + v * a.layout.inputs_stride;
    }
    MELODIA_DEVICE float* scales(int which) const { return floats(a.layout.scales) + which * kMostGroup; }
    // Two vectors of each session; the second begins behind `padded` numbers.
    MELODIA_DEVICE Vectors states(int vector, int padded) const {
        return {state_row(0) + vector * padded * Form<W>::kBytes, a.layout.states_stride, scales(vector)};
    }
    MELODIA_DEVICE Vectors inputs(int vector, int padded) const {
        return {input_row(0) + vector * padded * Form<W>::kBytes, a.layout.inputs_stride, scales(2 + vector)};
    }
    MELODIA_DEVICE Sums<W> sums_at(int offset, const Matrix* first, const Matrix* second) const {
        return {floats(offset), a.layout.sums_stride, first, second};
    }
    MELODIA_DEVICE int sessions(int g) const {
        return a.B - g * a.group < a.group ? a.B - g * a.group : a.group;
    }
    MELODIA_DEVICE bool goes_on(int step, int b) const { return tokens(step)[b] != kEnd; }
    // A bit for each session of a group: whether it goes on. By whole warps.
    MELODIA_DEVICE uint32_t going(int step, int g) const {
        const auto v = static_cast<int>(lane());
        return warp_ballot(v < sessions(g) && goes_on(step, g * a.group + v));
    }

    // A number that comes in, at a place of row v.
    MELODIA_DEVICE void take(int v, int at, float x) const {
        if (a.net.raw || kFloat) raw(v)[at] = x;
        if constexpr (same_type<W, Bf16>::value)
            reinterpret_cast<Bf16*>(state_row(v))[at] = from_float<Bf16>(x);
    }

    // Number j of the sum of the embeddings.
    MELODIA_DEVICE float embedded(uint32_t token, const uint32_t* side, int j) const {
        float sum = a.net.embeddings[0][int64_t{token} * a.net.D + j];
        for (int k = 0; k < a.net.S; ++k) sum += a.net.embeddings[1 + k][int64_t{side[k]} * a.net.D + j];
        return sum;
    }

    // ---- A cell's unit j of `size`

    MELODIA_DEVICE void add_row(float (&gate)[4], const float* row) const {
        struct alignas(16) Four {
            float x[4];
        };
        const Four four = *reinterpret_cast<const Four*>(row);
        MELODIA_UNROLL
        for (int q = 0; q < 4; ++q) gate[q] += four.x[q];
    }

    MELODIA_DEVICE void add_tables(float (&gate)[4], const CellPart& cell, int size, int j, uint32_t token,
                                   const uint32_t* side) const {
        const auto row = [=](uint32_t of) { return (int64_t{of} * size + j) * 4; };
        add_row(gate, cell.tables[0] + row(token));
        for (int k = 0; k < a.net.S; ++k) add_row(gate, cell.tables[1 + k] + row(side[k]));
    }

    // r: what the recurrence adds. h and c are replaced.
    MELODIA_DEVICE void step_cell(const CellPart& cell, int j, const float (&gate)[4], const float* r,
                                  float* h, float* c) const {
        if (cell.lstm) {
            const auto now = lstm_forward(gate[0] + r[0], gate[1] + r[1], gate[2] + r[2], gate[3] + r[3], *c);
            *c = now.c;
            *h = now.h;
        } else {
            const float inside = r[2] + cell.bias_n[j * 4 + 2];
            *h = gru_forward(gate[0] + r[0], gate[1] + r[1], gate[2], inside, *h).h;
        }
    }

    // ---- By one warp, of which a lane touches its own numbers only

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

    // The vectors of row v that came in as floats, `padded` numbers apart, in the form of the weights.
    MELODIA_DEVICE void encode_states(int v, int vectors, int size, int padded) const {
        for (int k = 0; k < vectors; ++k) {
            const float* x = raw(v) + k * padded;
            if constexpr (kInt8) {
                const float scale = encode(x, size, state_row(v) + k * padded);
                if (lane() == 0) scales(k)[v] = scale;
            } else if constexpr (!kFloat) {
                for (int i = static_cast<int>(lane()); i < size; i += 32)
                    reinterpret_cast<W*>(state_row(v))[k * padded + i] = from_float<W>(x[i]);
            }
        }
    }

    // total: the lane's part of the sum of y [n].
    MELODIA_DEVICE void normalise(float* y, int n, float total, const float* weight, const float* bias,
                                  float eps) const {
        const int me = static_cast<int>(lane());
        const float mean = warp_sum(total) / float(n);
        float squares = 0.0f;
        for (int i = me; i < n; i += 32) squares += (y[i] - mean) * (y[i] - mean);
        const float scale = 1.0f / square_root(warp_sum(squares) / float(n) + eps);
        for (int i = me; i < n; i += 32) y[i] = (y[i] - mean) * scale * weight[i] + bias[i];
    }

    // x [count] as a product wants it: vector `vector` of row v.
    MELODIA_DEVICE void hand_in(const float* x, int count, int v, int vector, int padded) const {
        unsigned char* to = input_row(v) + vector * padded * Form<W>::kBytes;
        if constexpr (kInt8) {
            const float scale = encode(x, count, to);
            if (lane() == 0) scales(2 + vector)[v] = scale;
        } else {
            for (int i = static_cast<int>(lane()); i < count; i += 32)
                reinterpret_cast<W*>(to)[i] = from_float<W>(x[i]);
        }
    }
};

}  // namespace melodia::cuda::decode
