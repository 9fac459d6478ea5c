// How a scan is cut into blocks: sizes that the host chooses (plan.h) and a block follows (tile.h).
//
// A step multiplies rows of weights [R, K] with the vectors [B, K] of a batch. A block owns `units` hidden
// units and `batch` rows of the batch. Its weights stand as 16-row tiles in shared memory, the vectors come
// in chunks of `chunk` numbers. A warp has `run` tiles of 16 rows x 8 vectors beside each other, whose
// weights it reads once, or shares them with other warps by parts of K.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define MELODIA_BOTH __host__ __device__ __forceinline__
#else
#define MELODIA_BOTH inline
#endif

namespace melodia::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kLongestRun = 4;  // tiles of a warp, whose sums are held in registers
constexpr int kItems = 3;       // units x batch rows that a thread owns at most

struct Tiling {
    int unit_tiles;    // tiles of 16 rows
    int units;         // hidden units of a block
    int batch;         // rows of the batch of a block, a multiple of 8
    int depth;         // K rounded up to 16
    int chunk;         // numbers of a vector in shared memory at once, a multiple of 16
    int run;           // tiles of a warp, of the same 16 rows; divides batch / 8
    int shares;        // warps that share out K
    int resident;      // the weights stay in shared memory; else they come in chunks too, for a single step
    int unit_blocks;   // blocks along the units
    int batch_blocks;  // blocks along the batch
    int64_t shared_bytes;
    double cost;  // predicted microseconds per step

    MELODIA_BOTH int rows() const { return 16 * unit_tiles; }
    MELODIA_BOTH int blocks() const { return unit_blocks * batch_blocks; }
};

// Where the arrays of a block stand in its shared memory, in bytes. The same arithmetic on both sides.
struct Layout {
    int weights_stride, vectors_stride,
        sums_stride;                              // in numbers; odd multiples of 16 bytes: no bank conflicts
    int weights, vectors, sums, bias, flag, end;  // offsets in bytes
    int weights_buffer, vectors_buffer;           // bytes of one chunk's buffer
};

MELODIA_BOTH Layout layout_of(const Tiling& t, int element_bytes) {
    Layout l{};
    const int pad = 16 / element_bytes, buffers = t.chunk < t.depth ? 2 : 1, rows = 16 * t.unit_tiles;
    l.weights_stride = (t.resident ? t.depth : t.chunk) + pad;
    l.vectors_stride = t.chunk + pad;
    l.sums_stride = t.batch + 2;
    l.weights_buffer = rows * l.weights_stride * element_bytes;
    l.vectors_buffer = t.batch * l.vectors_stride * element_bytes;
    l.weights = 0;
    l.vectors = l.weights_buffer * (t.resident ? 1 : buffers);
    l.sums = l.vectors + l.vectors_buffer * buffers;
    l.bias = l.sums + t.shares * rows * l.sums_stride * 4;
    l.flag = l.bias + rows * 4;
    l.end = l.flag + 16;
    return l;
}

}  // namespace melodia::cuda
