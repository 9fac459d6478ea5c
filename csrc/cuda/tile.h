// The product of a step inside a block: weights and vectors into shared memory, sums of 16 x 8 tiles per
// warp. S is float, Tf32, Bf16 or Half; sums are float. Everything follows tiling.h.
#pragma once

#include "cuda/device.h"
#include "cuda/tiling.h"

namespace melodia::cuda {

// A block's view of its shared memory.
template <class S>
struct Scratch {
    Tiling tiling;
    Layout layout;
    unsigned char* base;

    MELODIA_DEVICE Scratch(const Tiling& t, unsigned char* shared)
        : tiling(t), layout(layout_of(t, sizeof(S))), base(shared) {}
    MELODIA_DEVICE S* weights(int buffer) const {
        return reinterpret_cast<S*>(base + layout.weights + buffer * layout.weights_buffer);
    }
    MELODIA_DEVICE S* vectors(int buffer) const {
        return reinterpret_cast<S*>(base + layout.vectors + buffer * layout.vectors_buffer);
    }
    MELODIA_DEVICE float* sums() const { return reinterpret_cast<float*>(base + layout.sums); }
    MELODIA_DEVICE float* bias() const { return reinterpret_cast<float*>(base + layout.bias); }
    MELODIA_DEVICE int sum_at(int row, int vector) const { return row * layout.sums_stride + vector; }
    // 1 as long as nobody of the block has given up.
    MELODIA_DEVICE int* flag() const { return reinterpret_cast<int*>(base + layout.flag); }
    MELODIA_DEVICE int row_of(int unit, int gate, int gates) const {
        const int per_tile = 16 / gates;
        return unit / per_tile * 16 + unit % per_tile * gates + gate;
    }
};

MELODIA_DEVICE bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// A thread's way through rows of `width` places, kThreads places on at each step, without divisions.
struct Walk {
    int row, k;

    MELODIA_DEVICE explicit Walk(int width)
        : row(static_cast<int>(thread()) / width),
          k(static_cast<int>(thread()) % width),
          width_(width),
          rows_on_(kThreads / width),
          places_on_(kThreads % width) {}
    MELODIA_DEVICE void next() {
        row += rows_on_;
        k += places_on_;
        if (k >= width_) k -= width_, ++row;
    }

  private:
    int width_, rows_on_, places_on_;
};

// Numbers k0 .. k0 + width - 1 of `rows` rows of global memory, depth numbers each, to shared memory; zeros
// where there are none. source(row): a row's first number, or null for a row of zeros. The caller commits and
// waits.
template <class S, class F>
MELODIA_DEVICE void stage(S* to, int stride, int rows, int k0, int width, int depth, F source) {
    constexpr int per_vector = 16 / sizeof(S);
    for (Walk walk(width / per_vector); walk.row < rows; walk.next()) {
        const int k = k0 + walk.k * per_vector;
        S* place = to + walk.row * stride + (k - k0);
        const S* from = source(walk.row);
        if (from != nullptr && k + per_vector <= depth && aligned16(from + k)) {
            copy_async(place, from + k);
            continue;
        }
        for (int j = 0; j < per_vector; ++j)
            place[j] = from != nullptr && k + j < depth ? load_data(from + k + j) : S{};
    }
}

constexpr int kAhead = 8;  // numbers that a thread asks for before it needs the first

// As `stage`, from numbers that value(row, k) makes, all of `rows` rows.
template <class S, class F>
MELODIA_DEVICE void stage_values(S* to, int stride, int rows, int k0, int width, int depth, F value) {
    for (Walk walk(width); walk.row < rows;) {
        int place[kAhead];
        S made[kAhead];
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j, walk.next()) {
            place[j] = walk.row < rows ? walk.row * stride + walk.k : -1;
            made[j] = place[j] >= 0 && k0 + walk.k < depth ? value(walk.row, k0 + walk.k) : S{};
        }
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j)
            if (place[j] >= 0) to[place[j]] = made[j];
    }
}

// Zeros in the vectors [first, batch) of a chunk's buffer, which no row of the batch stands behind.
template <class S>
MELODIA_DEVICE void clear_vectors(const Scratch<S>& scratch, S* buffer, int first) {
    struct alignas(16) Sixteen {
        uint32_t words[4];
    };
    const int stride = scratch.layout.vectors_stride;
    auto* to = reinterpret_cast<Sixteen*>(buffer + first * stride);
    const int count = (scratch.tiling.batch - first) * stride / static_cast<int>(16 / sizeof(S));
    for (int at = static_cast<int>(thread()); at < count; at += kThreads) to[at] = {};
}

// The same in both buffers, once for all steps of a launch, since nobody else writes there.
template <class S>
MELODIA_DEVICE void clear_spare_vectors(const Scratch<S>& scratch, int first) {
    for (int buffer = 0; buffer < (scratch.tiling.chunk < scratch.tiling.depth ? 2 : 1); ++buffer)
        clear_vectors(scratch, scratch.vectors(buffer), first);
}

// c[i] += the product of a 16-row tile of weights and the 8 vectors of tile i, for N tiles beside each other,
// over `steps` x 16 numbers. The lane with g = lane / 4, q = lane % 4 gets {row g, vector 2q}, {g, 2q + 1},
// {g + 8, 2q}, {g + 8, 2q + 1}.
template <int N, class S>
MELODIA_DEVICE void multiply_run(float (&c)[kLongestRun][4], const S* weights, int weights_stride,
                                 const S* vectors, int vectors_stride, int steps) {
    const int g = static_cast<int>(lane()) / 4, q = static_cast<int>(lane()) % 4;
    const S* w = weights + g * weights_stride + 2 * q;
    const S* x = vectors + g * vectors_stride + 2 * q;
    const auto word = [](const S* p) { return *reinterpret_cast<const uint32_t*>(p); };
    for (int step = 0; step < steps; ++step, w += 16, x += 16) {
        const uint32_t a[4] = {word(w), word(w + 8 * weights_stride), word(w + 8),
                               word(w + 8 * weights_stride + 8)};
        MELODIA_UNROLL
        for (int i = 0; i < N; ++i) {
            const S* y = x + i * 8 * vectors_stride;
            const uint32_t b[2] = {word(y), word(y + 8)};
            multiply_16x8x16<S>(c[i], a, b);
        }
    }
}

template <int N>
MELODIA_DEVICE void multiply_run(float (&c)[kLongestRun][4], const float* weights, int weights_stride,
                                 const float* vectors, int vectors_stride, int steps) {
    struct alignas(16) Four {
        float x[4];
    };
    const int g = static_cast<int>(lane()) / 4, q = static_cast<int>(lane()) % 4;
    const float *w0 = weights + g * weights_stride, *w1 = w0 + 8 * weights_stride;
    const float* x0 = vectors + 2 * q * vectors_stride;
    for (int k = 0; k < steps * 16; k += 4) {
        const Four a = *reinterpret_cast<const Four*>(w0 + k), b = *reinterpret_cast<const Four*>(w1 + k);
        MELODIA_UNROLL
        for (int i = 0; i < N; ++i) {
            const float* x = x0 + i * 8 * vectors_stride + k;
            const Four y = *reinterpret_cast<const Four*>(x);
            const Four z = *reinterpret_cast<const Four*>(x + vectors_stride);
            MELODIA_UNROLL
            for (int j = 0; j < 4; ++j) {
                c[i][0] += a.x[j] * y.x[j];
                c[i][1] += a.x[j] * z.x[j];
                c[i][2] += b.x[j] * y.x[j];
                c[i][3] += b.x[j] * z.x[j];
            }
        }
    }
}

// Words one by one: rows stand an odd number of 16 bytes apart, so the lanes of a warp meet 32 banks.
template <int N>
MELODIA_DEVICE void multiply_run(float (&c)[kLongestRun][4], const Tf32* weights, int weights_stride,
                                 const Tf32* vectors, int vectors_stride, int steps) {
    const int g = static_cast<int>(lane()) / 4, q = static_cast<int>(lane()) % 4;
    const Tf32 *w = weights + g * weights_stride + q, *x = vectors + g * vectors_stride + q;
    for (int step = 0; step < 2 * steps; ++step, w += 8, x += 8) {
        const uint32_t a[4] = {tf32_bits(w[0]), tf32_bits(w[8 * weights_stride]), tf32_bits(w[4]),
                               tf32_bits(w[8 * weights_stride + 4])};
        MELODIA_UNROLL
        for (int i = 0; i < N; ++i) {
            const Tf32* y = x + i * 8 * vectors_stride;
            const uint32_t b[2] = {tf32_bits(y[0]), tf32_bits(y[4])};
            multiply_16x8x8(c[i], a, b);
        }
    }
}

template <int N>
struct Run {
    static constexpr int count = N;
};

// sums[share][row][vector] of the whole depth. stage_vectors(to, k0, width) and, unless the weights are
// resident, stage_weights(to, k0, width) bring a chunk; false when the flag says that somebody gave up.
template <class S, class V, class W>
MELODIA_DEVICE bool multiply(const Scratch<S>& scratch, V stage_vectors, W stage_weights) {
    const Tiling& t = scratch.tiling;
    const Layout& l = scratch.layout;
    const int chunks = (t.depth + t.chunk - 1) / t.chunk;
    const int runs = t.batch / 8 / t.run, warps = t.unit_tiles * runs;  // of a tile of rows; of a share
    const int share = static_cast<int>(warp()) / warps, mine = static_cast<int>(warp()) % warps;
    const int first_row = mine / runs * 16, first_vector = mine % runs * t.run * 8;
    float c[kLongestRun][4] = {};

    const auto bring = [&](int chunk) {
        const int k0 = chunk * t.chunk, width = t.depth - k0 < t.chunk ? t.depth - k0 : t.chunk;
        stage_vectors(scratch.vectors(chunk % 2), k0, width);
        if (!t.resident) stage_weights(scratch.weights(chunk % 2), k0, width);
        commit_copies();
    };
    // A chunk is brought while the one before it is used. One call of bring, for the size of the code.
    for (int next = 0; next <= chunks; ++next) {
        if (next < chunks) bring(next);
        if (next == 0) continue;
        const int chunk = next - 1;
        if (next < chunks) {
            MELODIA_ORDER("tile: this chunk copied", wait_copies<1>());
        } else {
            MELODIA_ORDER("tile: last chunk copied", wait_copies<0>());
        }
        MELODIA_SYNC("tile: chunk staged");
        if (*scratch.flag() == 0) {  // the block ends, and the next chunk is still on its way into it
            MELODIA_ORDER("tile: nothing on its way", wait_copies<0>());
            return false;
        }
        const int k0 = chunk * t.chunk, width = t.depth - k0 < t.chunk ? t.depth - k0 : t.chunk;
        const int steps = width / 16, each = (steps + t.shares - 1) / t.shares;
        const int begin = share * each < steps ? share * each : steps;
        const int end = share >= t.shares ? begin : begin + each < steps ? begin + each : steps;
        const S* weights = (t.resident ? scratch.weights(0) + k0 : scratch.weights(chunk % 2)) +
                           first_row * l.weights_stride + begin * 16;
        const S* vectors = scratch.vectors(chunk % 2) + first_vector * l.vectors_stride + begin * 16;
        const auto multiply_tiles = [&](auto tiles) {
            multiply_run<decltype(tiles)::count>(c, weights, l.weights_stride, vectors, l.vectors_stride,
                                                 end - begin);
        };
        switch (t.run) {
            case 1:
                multiply_tiles(Run<1>());
                break;
            case 2:
                multiply_tiles(Run<2>());
                break;
            case 3:
                multiply_tiles(Run<3>());
                break;
            default:
                multiply_tiles(Run<4>());
        }
        if (next < chunks) MELODIA_SYNC("tile: chunk used");
    }
    const int g = static_cast<int>(lane()) / 4, q = static_cast<int>(lane()) % 4;
    MELODIA_UNROLL
    for (int i = 0; i < kLongestRun; ++i) {
        if (share >= t.shares || i >= t.run) break;
        float* to = scratch.sums() + (share * t.rows() + first_row + g) * l.sums_stride + first_vector +
                    i * 8 + 2 * q;
        to[0] = c[i][0];
        to[1] = c[i][1];
        to[8 * l.sums_stride] = c[i][2];
        to[8 * l.sums_stride + 1] = c[i][3];
    }
    MELODIA_SYNC("tile: sums ready");
    return true;
}

// The sums of a thread's items, G rows beside each other of each, their shares added in a fixed order; those
// of a share are asked for together. place: where an item's first row stands among the sums (`sum_at`), -1
// for no item.
template <int G, class S>
MELODIA_DEVICE void add_sums(const Scratch<S>& scratch, const int (&place)[kItems], float (&sum)[kItems][G]) {
    const int next_row = scratch.layout.sums_stride, next_share = scratch.tiling.rows() * next_row;
    const float* from = scratch.sums();
    for (int share = 0; share < scratch.tiling.shares; ++share, from += next_share) {
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i) {
            if (place[i] < 0) continue;
            MELODIA_UNROLL
            for (int g = 0; g < G; ++g) sum[i][g] += from[place[i] + g * next_row];
        }
    }
}

}  // namespace melodia::cuda
