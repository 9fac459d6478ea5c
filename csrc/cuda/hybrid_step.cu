// hybrid_step: a whole stack by one token. A group of blocks takes rows of the batch through all stages; in a
// stage a block owns tiles of hidden units with all their gates. The product with the state before comes
// first, while the others still make what comes in.
#include "cuda/cell.h"
#include "cuda/hybrid_kernel.h"
#include "cuda/rescues.h"

namespace melodia::cuda {
namespace {

constexpr float kNormEpsilon = 1e-5f;

MELODIA_DEVICE float number_at(const Numbers& numbers, int64_t at) {
    switch (numbers.type) {
        case Type::float32:
            return static_cast<const float*>(numbers.data)[at];
        case Type::bfloat16:
            return to_float(static_cast<const Bf16*>(numbers.data)[at]);
        default:
            return to_float(static_cast<const Half*>(numbers.data)[at]);
    }
}

MELODIA_DEVICE void put_number(void* to, Type type, int64_t at, float x) {
    switch (type) {
        case Type::float32:
            static_cast<float*>(to)[at] = x;
            return;
        case Type::bfloat16:
            static_cast<Bf16*>(to)[at] = from_float<Bf16>(x);
            return;
        default:
            static_cast<Half*>(to)[at] = from_float<Half>(x);
    }
}

template <class S>
class StackBlock {
  public:
    MELODIA_DEVICE StackBlock(const StackLaunch& a, unsigned char* shared)
        : a_(a), shared_(shared), H_(static_cast<int>(a.H)) {
        const int group = static_cast<int>(block()) / a.blocks;
        at_ = static_cast<int>(block()) % a.blocks;
        row_ = int64_t{group} * a.batch;
        const int64_t rows = a.B - row_;
        rows_ = rows < a.batch ? static_cast<int>(rows) : a.batch;
        channel_ = {a.counters + int64_t{group} * kStackCounterStride, nullptr, a.gave_up, a.limit_ns, 0};
    }

    MELODIA_DEVICE void run() {
        if (thread() == 0) *flag() = 1;
        for (int s = a_.from; s < a_.to; ++s) {
            const Stage& stage = a_.stages[s];
            entered_ = false;
            const int first = items_of(stage, 0), all = first + items_of(stage, 1);
            for (int item = at_; item < all; item += a_.blocks) {
                const int k = item < first ? 0 : 1, of = item - k * first;
                // The other product's tiles lie otherwise, and slow warps may still read sums of the last.
                if (item > at_) MELODIA_SYNC("hybrid: tile done");
                const bool there = stage.kind == kStackMix ? tile<1>(s, 0, of)
                                   : stage.cell[k].lstm    ? tile<4>(s, k, of)
                                                           : tile<3>(s, k, of);
                if (!there) return;
            }
            if (!enter(s)) return;
            if (stage.kind == kStackOutput) output(stage);
            if (s + 1 == a_.to) return;
            if (a_.blocks > 1)
                announce(channel_);
            else
                MELODIA_SYNC("hybrid: stage written");
        }
    }

  private:
    MELODIA_DEVICE int* flag() const { return reinterpret_cast<int*>(shared_); }
    MELODIA_DEVICE float* statistics() const { return reinterpret_cast<float*>(shared_ + 256); }

    MELODIA_DEVICE const Tiling& tiling_of(const Stage& stage, int k) const {
        return a_.tilings[stage.kind == kStackMix ? kMixProduct
                          : stage.cell[k].lstm    ? kLstmProduct
                                                  : kGruProduct];
    }

    MELODIA_DEVICE int items_of(const Stage& stage, int k) const {
        const bool none = stage.kind == kStackOutput || k >= (stage.kind == kStackMix ? 1 : stage.cells);
        return none ? 0 : tiling_of(stage, k).unit_blocks;
    }

    // Once per stage, by all threads: until what comes in is there; false: somebody gave up.
    MELODIA_DEVICE bool enter(int s) {
        if (entered_) return true;
        entered_ = true;
        if (s > a_.from && a_.blocks > 1) {
            await(channel_, static_cast<uint32_t>(s - a_.from), static_cast<uint32_t>(a_.blocks), flag());
            if (*flag() == 0) return false;
        }
        const Stage& stage = a_.stages[s];
        if (stage.sum != nullptr) {  // a share of it
            const int step = a_.blocks * kThreads, numbers = rows_ * H_;
            for (int i = at_ * kThreads + static_cast<int>(thread()); i < numbers; i += step)
                store_data(stage.sum + row_ * H_ + i, incoming(stage, row_ * H_ + i));
        }
        if (stage.norm_weight.data != nullptr && stage.kind != kStackOutput) {
            for (int row = static_cast<int>(warp()); row < rows_; row += kWarps)
                measure(stage, row, statistics() + 2 * row);
            MELODIA_SYNC("hybrid: statistics ready");
        }
        return true;
    }

    // A number of what comes in, before its LayerNorm.
    MELODIA_DEVICE float incoming(const Stage& stage, int64_t at) const {
        float x = load_data(stage.from + at);
        if (stage.beside != nullptr) x += load_data(stage.beside + at);
        if (stage.below != nullptr) x += load_data(stage.below + at);
        return x;
    }

    // Mean and 1 / deviation of a row, by a warp.
    MELODIA_DEVICE void measure(const Stage& stage, int row, float* to) const {
        const int64_t from = (row_ + row) * H_;
        float sum = 0.0f, square = 0.0f;
        for (int k = static_cast<int>(lane()); k < H_; k += 32) sum += incoming(stage, from + k);
        const float mean = warp_sum(sum) / static_cast<float>(H_);
        for (int k = static_cast<int>(lane()); k < H_; k += 32) {
            const float x = incoming(stage, from + k) - mean;
            square += x * x;
        }
        const float deviation = sqrtf(warp_sum(square) / static_cast<float>(H_) + kNormEpsilon);
        to[0] = mean;
        to[1] = 1.0f / deviation;
    }

    MELODIA_DEVICE float normalised(const Stage& stage, float x, const float* measured, int k) const {
        if (stage.norm_weight.data == nullptr) return x;
        return (x - measured[0]) * measured[1] * number_at(stage.norm_weight, k) +
               number_at(stage.norm_bias, k);
    }

    // The head's input: a row for each warp of the group.
    MELODIA_DEVICE void output(const Stage& stage) const {
        for (int row = at_ * kWarps + static_cast<int>(warp()); row < rows_; row += a_.blocks * kWarps) {
            float measured[2];
            if (stage.norm_weight.data != nullptr) measure(stage, row, measured);
            for (int k = static_cast<int>(lane()); k < H_; k += 32) {
                const int64_t at = (row_ + row) * H_ + k;
                put_number(a_.output, a_.output_type, at,
                           normalised(stage, incoming(stage, at), measured, k));
            }
        }
    }

    // A tile of units: G 4 of an LSTM, 3 of a GRU, 1 of a mix. False: somebody gave up.
    template <int G>
    MELODIA_DEVICE bool tile(int s, int k, int item) {
        const Stage& stage = a_.stages[s];
        const StepCell& cell = stage.cell[k];
        const Tiling& tiling = tiling_of(stage, k);
        Scratch<S> scratch(tiling, shared_ + kStackHead);
        scratch.layout.flag = -kStackHead;
        const int unit = item * tiling.units, left = H_ - unit,
                  units = left < tiling.units ? left : tiling.units;
        // Sums of this thread's units: r, z, n of the state, n of the input for a GRU.
        float sums[kItems][4] = {};
        // One product's code serves both passes.
        MELODIA_ROLLED
        for (int pass = G == 1 ? 1 : 0; pass < 2; ++pass) {
            if (pass == 1 && !enter(s)) return false;
            const bool given = G > 1 && pass == 1 && cell.gates_x != nullptr;
            const auto* weights = static_cast<const S*>(G == 1      ? stage.mix
                                                        : pass == 1 ? cell.weight_ih
                                                                    : cell.weight_hh);
            const Numbers& bias = G == 1 ? stage.mix_bias : pass == 1 ? cell.bias_ih : cell.bias_hh;
            const int depth = G == 1 ? 2 * H_ : H_;
            const auto weight_row = [&](int row) -> const S* {
                const int j = row / 16 * (16 / G) + row % 16 / G, gate = row % 16 % G;
                return row % 16 < 16 / G * G && j < units ? weights + (int64_t{gate} * H_ + unit + j) * depth
                                                          : nullptr;
            };
            const auto bring_weights = [&](S* to, int k0, int width) {
                melodia::cuda::stage(to, scratch.layout.weights_stride, tiling.rows(), k0, width, depth,
                                     weight_row);
            };
            const auto bring_vectors = [&](S* to, int k0, int width) {
                clear_vectors(scratch, to, rows_);  // tilings of other products had this memory
                stage_values(
                    to, scratch.layout.vectors_stride, rows_, k0, width, depth, [&](int row, int n) -> S {
                        const int64_t at = (row_ + row) * H_;
                        if (pass == 0) return from_float<S>(number_at(cell.h, at + n));
                        if (G == 1)
                            return from_float<S>(
                                load_data(n < H_ ? stage.from + at + n : stage.beside + at + n - H_));
                        return from_float<S>(
                            normalised(stage, incoming(stage, at + n), statistics() + 2 * row, n));
                    });
            };
            if (!given && !multiply(scratch, bring_vectors, bring_weights)) return false;
            int place[kItems];
            float sum[kItems][G] = {};
            MELODIA_UNROLL
            for (int i = 0; i < kItems; ++i) {
                const int at = static_cast<int>(thread()) + i * kThreads, j = at % units, row = at / units;
                place[i] = given || row >= rows_ ? -1 : scratch.sum_at(scratch.row_of(j, 0, G), row);
            }
            add_sums<G>(scratch, place, sum);
            MELODIA_UNROLL
            for (int i = 0; i < kItems; ++i) {
                const int at = static_cast<int>(thread()) + i * kThreads, j = at % units, row = at / units;
                if (row >= rows_) continue;
                MELODIA_UNROLL
                for (int gate = 0; gate < G; ++gate) {
                    const int of = gate * H_ + unit + j;
                    const float more = given ? to_float(static_cast<const S*>(
                                                   cell.gates_x)[(row_ + row) * int64_t{G} * H_ + of])
                                             : sum[i][gate] + number_at(bias, of);
                    if (G == 3 && gate == 2 && pass == 1)
                        sums[i][3] += more;
                    else
                        sums[i][gate] += more;
                }
            }
        }
        MELODIA_UNROLL
        for (int i = 0; i < kItems; ++i) {
            const int at = static_cast<int>(thread()) + i * kThreads, j = at % units, row = at / units;
            if (row >= rows_) continue;
            finish<G>(stage, cell, k, (row_ + row) * H_ + unit + j, sums[i]);
        }
        return true;
    }

    // What follows the sums of a unit; at: its number in [B, H].
    template <int G>
    MELODIA_DEVICE void finish(const Stage& stage, const StepCell& cell, int k, int64_t at,
                               const float (&sums)[4]) const {
        float made = sums[0];
        if constexpr (G == 4) {
            const auto unit =
                melodia::lstm_forward(sums[0], sums[1], sums[2], sums[3], number_at(cell.c, at));
            put_number(cell.h_n, cell.h.type, at, unit.h);
            put_number(cell.c_n, cell.c.type, at, unit.c);
            made = unit.h;
        } else if constexpr (G == 3) {
            const auto unit = melodia::gru_forward(sums[0], sums[1], sums[3], sums[2], number_at(cell.h, at));
            put_number(cell.h_n, cell.h.type, at, unit.h);
            made = unit.h;
        } else if (stage.gated) {
            const float lstm = load_data(stage.from + at), gru = load_data(stage.beside + at);
            made = gru + melodia::fast_sigmoid(sums[0]) * (lstm - gru);
        }
        store_data(stage.made[k] + at, made);
    }

    const StackLaunch& a_;
    unsigned char* shared_;
    int H_, at_, rows_;
    int64_t row_;
    Channel channel_;
    bool entered_ = false;
};

template <class S>
__global__ void __launch_bounds__(kThreads, 1) hybrid_step_kernel(const __grid_constant__ StackLaunch a) {
    MELODIA_SHARED(shared);
    if (a.rescue) {
        if (load_relaxed(a.gave_up) == 0) return;
        count_rescue();
    }
    StackBlock<S>(a, shared).run();
}

}  // namespace

int64_t stack_rescues() { return rescues_counted(); }

template <>
StackKernel<float>::Pointer StackKernel<float>::get() {
    return hybrid_step_kernel<float>;
}
template <>
StackKernel<Bf16>::Pointer StackKernel<Bf16>::get() {
    return hybrid_step_kernel<Bf16>;
}
template <>
StackKernel<Half>::Pointer StackKernel<Half>::get() {
    return hybrid_step_kernel<Half>;
}

}  // namespace melodia::cuda
