// What the kernels of a scan get: the arguments of a launch. Filled in by scan.cu.
#pragma once

#include "cuda/exchange.h"
#include "cuda/launch.h"
#include "cuda/scan.h"

namespace melodia::cuda {

// One cell's share of a launch.
template <class Cell>
struct Part {
    Cell cell;
    Tiling tiling;
    int64_t from,
        to;      // forward: steps from .. to - 1; backward: phases from, from - 1, .., to (scan_backward.cu)
    int blocks;  // 0: nothing to do in this launch
    uint32_t* counters;  // one per group of blocks, kCounterStride apart
    uint64_t* words;     // null: exchange by counter
};

template <class Cell>
struct ScanLaunch {
    Part<Cell> parts[kMaxCells];
    int count;
    int64_t B;
    int64_t batch_begin, batch_end;  // the rows of this launch
    uint32_t* gave_up;               // null: nothing is exchanged
    uint64_t limit_ns;
};

constexpr int kCounterStride = 64;  // counters that are polled stand in memory lines of their own

// Where a block stands in its part.
struct Place {
    int unit, units;  // first hidden unit, how many there are
    int64_t row;      // first row of the batch
    int rows;         // how many there are
    Channel channel;
};

template <class Cell>
MELODIA_DEVICE Place place_of(const ScanLaunch<Cell>& a, const Part<Cell>& p, int block, int numbers) {
    const Tiling& t = p.tiling;
    Place place;
    const int group = block / t.unit_blocks;
    place.unit = block % t.unit_blocks * t.units;
    const int64_t units = p.cell.H - place.unit;
    place.units = units < t.units ? static_cast<int>(units) : t.units;
    place.row = a.batch_begin + int64_t{group} * t.batch;
    const int64_t rows = a.batch_end - place.row;
    place.rows = rows < t.batch ? static_cast<int>(rows) : t.batch;
    const int64_t buffer = int64_t{t.batch} * numbers;
    place.channel = {p.counters + int64_t{group} * kCounterStride,
                     p.words == nullptr ? nullptr : p.words + 2 * buffer * group, a.gave_up, a.limit_ns,
                     buffer};
    return place;
}

// Which part a block belongs to, and its number there.
template <class Cell>
MELODIA_DEVICE int part_of(const ScanLaunch<Cell>& a, int* at) {
    int part = 0;
    for (*at = static_cast<int>(block()); part + 1 < a.count && *at >= a.parts[part].blocks; ++part)
        *at -= a.parts[part].blocks;
    return part;
}

MELODIA_DEVICE bool lives(const int64_t* lengths, int64_t b, int64_t t) {
    return lengths == nullptr || t < lengths[b];
}

// For scan.cu: the kernels of a number type, by pointer. Rows of Tf32 are those of float: one product suits
// both.
template <class S>
struct Kernels {
    using Forward = void (*)(ScanLaunch<ScanCell>);
    using Backward = void (*)(ScanLaunch<ScanCellBackward>);
    static Forward forward();
    static Backward backward();
    static Forward forward_rows();
    static Backward backward_rows();
};

}  // namespace melodia::cuda
