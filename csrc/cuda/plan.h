// The host's choice of a tiling. The costs are predictions (NOTES.md), made to order tilings, not to tell
// time.
#pragma once

#include "cuda/scan.h"
#include "cuda/tiling.h"

namespace melodia::cuda {

// What one product of a step is: `gates` rows per unit of the output (1 for a backward pass), K numbers deep.
struct Product {
    int64_t units, gates, depth;
};

constexpr double kClock = 1700.0;         // cycles per microsecond
constexpr double kGlobalBytes = 64.0;     // per cycle and processor, from L2
constexpr double kSharedBytes = 128.0;    // per cycle and processor
constexpr double kExchange = 1.0;         // microseconds
constexpr double kExchangeBlock = 0.004;  // and for every block that takes part

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A tiling with these tiles, batch rows and run, or false: it does not fit.
inline bool tile_runs(const Product& p, int64_t B, int element_bytes, bool resident, int unit_tiles,
                      int batch, int run, int64_t shared_limit, Tiling* out) {
    Tiling t{};
    t.unit_tiles = unit_tiles;
    t.units = unit_tiles * static_cast<int>(16 / p.gates);
    t.batch = batch;
    t.depth = static_cast<int>(ceil_div(p.depth, 16) * 16);
    t.resident = resident;
    t.run = run;
    const int tiles = unit_tiles * (batch / 8), warps = tiles / run;
    if (batch / 8 % run != 0 || warps > kWarps || t.units * batch > kItems * kThreads) return false;
    t.shares = 1;
    while (t.shares * 2 * warps <= kWarps) t.shares *= 2;
    t.unit_blocks = static_cast<int>(ceil_div(p.units, t.units));
    t.batch_blocks = static_cast<int>(ceil_div(B, batch));
    // The whole depth at once if it fits; else the largest chunk of which two fit.
    t.chunk = t.depth;
    if (layout_of(t, element_bytes).end > shared_limit) {
        t.chunk = 16;
        if (t.depth == 16 || layout_of(t, element_bytes).end > shared_limit) return false;
        for (int size = 32; size < t.depth; size += 16) {
            Tiling larger = t;
            larger.chunk = size;
            if (layout_of(larger, element_bytes).end > shared_limit) break;
            t = larger;
        }
    }
    t.shared_bytes = layout_of(t, element_bytes).end;
    const double bytes = double(t.depth) * element_bytes;
    const double read = bytes * (16 * warps + 8 * tiles);                   // rows once per run, vectors
    const double sums = 2.0 * t.shares * t.rows() * batch * sizeof(float);  // written, added
    t.cost = bytes * batch / (kGlobalBytes * kClock) + (read + sums) / (kSharedBytes * kClock);
    if (resident)
        t.cost += kExchange + kExchangeBlock * t.unit_blocks;
    else
        t.cost += bytes * t.rows() / (kGlobalBytes * kClock);
    *out = t;
    return true;
}

// The cheapest tiling with these tiles and batch rows, or false: none fits.
inline bool tile(const Product& p, int64_t B, int element_bytes, bool resident, int unit_tiles, int batch,
                 int64_t shared_limit, Tiling* out) {
    bool any = false;
    for (int run = 1; run <= kLongestRun; ++run) {
        Tiling t;
        if (!tile_runs(p, B, element_bytes, resident, unit_tiles, batch, run, shared_limit, &t)) continue;
        if (!any || t.cost < out->cost) *out = t;
        any = true;
    }
    return any;
}

constexpr int kUnitTiles[] = {1, 2, 3, 4, 6, 8};
constexpr int kBatches[] = {8, 16, 24, 32, 64};

constexpr int kCandidates = (sizeof kUnitTiles / sizeof(int)) * (sizeof kBatches / sizeof(int));

// Of these tilings the one with the fewest blocks that costs no more, or null.
inline const Tiling* fewest_blocks(const Tiling* tilings, int count, double cost) {
    const Tiling* best = nullptr;
    for (const Tiling* t = tilings; t < tilings + count; ++t)
        if (t->cost <= cost && (best == nullptr || t->blocks() < best->blocks())) best = t;
    return best;
}

// The cheapest tilings of `count` products that run side by side on `blocks` blocks: the slowest of them is
// as fast as can be. The batch goes through in rounds of `round_batch` rows. Returns microseconds per step of
// all rounds, or less than 0: the weights do not fit on the chip.
inline double plan_resident(const Product* products, int count, int64_t B, int element_bytes, int64_t blocks,
                            int64_t shared_limit, Tiling* out, int64_t* round_batch) {
    double best = -1.0, all_rounds = -1.0;
    for (int64_t rounds = 1; rounds <= ceil_div(B, 8) && best < 0.0; ++rounds) {
        const int64_t rows =
            ceil_div(ceil_div(B, rounds), 8) * 8 < B ? ceil_div(ceil_div(B, rounds), 8) * 8 : B;
        Tiling found[kMaxCells][kCandidates];
        int made[kMaxCells] = {};
        for (int k = 0; k < count; ++k) {
            for (int tiles : kUnitTiles) {
                for (int batch : kBatches) {
                    if (batch - 8 >= rows) continue;  // a smaller one holds all
                    Tiling t;
                    if (tile(products[k], rows, element_bytes, true, tiles, batch, shared_limit, &t) &&
                        t.blocks() <= blocks)
                        found[k][made[k]++] = t;
                }
            }
        }
        // For each cost that may be the slowest's: of every product the fewest blocks that keep below it.
        for (int slowest = 0; slowest < count; ++slowest) {
            for (int i = 0; i < made[slowest]; ++i) {
                const double cost = found[slowest][i].cost;
                if (best >= 0.0 && cost >= best) continue;
                const Tiling* chosen[kMaxCells] = {};
                int64_t used = 0;
                bool all = true;
                for (int k = 0; k < count; ++k) {
                    chosen[k] = fewest_blocks(found[k], made[k], cost);
                    all = all && chosen[k] != nullptr;
                    if (all) used += chosen[k]->blocks();
                }
                if (!all || used > blocks) continue;
                best = cost;
                all_rounds = cost * static_cast<double>(ceil_div(B, rows));
                for (int k = 0; k < count; ++k) out[k] = *chosen[k];
                *round_batch = rows;
            }
        }
    }
    return all_rounds;
}

// A tiling for single steps whose weights come from L2.
inline bool plan_step(const Product& product, int64_t B, int element_bytes, int64_t shared_limit,
                      Tiling* out) {
    bool any = false;
    for (int tiles : kUnitTiles) {
        for (int batch : kBatches) {
            Tiling t;
            if (batch - 8 >= B || !tile(product, B, element_bytes, false, tiles, batch, shared_limit, &t))
                continue;
            t.cost *= double(ceil_div(t.blocks(), 132));
            if (!any || t.cost < out->cost) *out = t;
            any = true;
        }
    }
    return any;
}

}  // namespace melodia::cuda
