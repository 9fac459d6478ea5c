// The host's part of hybrid_step: the stages of a stack, how they are cut into tiles, which launches. No
// kernel stands here.
#include "cuda/hybrid_kernel.h"
#include "cuda/plan.h"

namespace melodia::cuda {
namespace {

constexpr int64_t kFlagBytes = 256, kCounterBytes = kStackCounterStride * 4;
constexpr int64_t kSmallestBatch = 8;

int64_t counter_bytes(int64_t B) { return kFlagBytes + ceil_div(B, kSmallestBatch) * kCounterBytes; }

// The stages of a stack; `floats` is workspace for four times [B, H] per level. How many there are.
int stages_of(const StepStack& stack, float* floats, Stage* stages) {
    const int64_t size = stack.B * stack.H;
    int count = 0;
    Stage in{};  // what the next stage reads
    for (int i = 0; i < stack.count; ++i, floats += 4 * size) {
        const StepLevel& level = stack.levels[i];
        Stage cells = in;
        cells.kind = kStackCells;
        cells.cells = level.join == Join::none ? 1 : 2;
        for (int k = 0; k < cells.cells; ++k) {
            cells.cell[k] = level.cell[k];
            cells.made[k] = floats + k * size;
        }
        stages[count++] = cells;
        const float* below = nullptr;  // the sum that this level read
        if (stack.residual && i > 0) below = cells.sum != nullptr ? cells.sum : cells.from;
        in = Stage{};
        in.from = cells.made[0];
        in.beside = level.join == Join::none ? nullptr : cells.made[1];
        if (level.join == Join::concat || level.join == Join::gated) {
            Stage mix = in;
            mix.kind = kStackMix;
            mix.gated = level.join == Join::gated;
            mix.mix = level.mix;
            mix.mix_bias = level.mix_bias;
            mix.made[0] = floats + 2 * size;
            stages[count++] = mix;
            in = Stage{};
            in.from = mix.made[0];
        }
        in.below = below;
        in.norm_weight = level.norm_weight;
        in.norm_bias = level.norm_bias;
        const bool several = in.beside != nullptr || in.below != nullptr;
        if (stack.residual && i + 1 < stack.count && several) in.sum = floats + 3 * size;
    }
    in.kind = kStackOutput;
    stages[count++] = in;
    return count;
}

// Tiles for all products, with as many rows of the batch in each; the cheapest by plan.h's formula.
const char* choose(const StepStack& stack, int element_bytes, const Device& device, StackLaunch* a,
                   int stages) {
    const int64_t H = stack.H, limit = device.shared_bytes - kStackHead;
    const Product products[3] = {{H, 4, H}, {H, 3, H}, {H, 1, 2 * H}};
    int uses[3] = {};  // in the stack
    for (int s = 0; s < stages; ++s) {
        const Stage& stage = a->stages[s];
        if (stage.kind == kStackMix) uses[kMixProduct] += 1;
        for (int k = 0; stage.kind == kStackCells && k < stage.cells; ++k)
            uses[stage.cell[k].lstm ? kLstmProduct : kGruProduct] += 2;
    }
    double best = -1.0;
    for (int batch : kBatches) {
        if (batch - 8 >= stack.B) continue;  // a smaller one holds all
        Tiling found[3] = {};
        double total = 0.0;
        bool all = true;
        for (int p = 0; p < 3 && all; ++p) {
            if (uses[p] == 0) continue;
            bool any = false;
            double least = 0.0;
            for (int tiles : kUnitTiles) {
                Tiling t;
                if (!tile(products[p], stack.B, element_bytes, false, tiles, batch, limit, &t)) continue;
                const double cost = t.cost * double(ceil_div(t.blocks(), device.processors));
                if (any && cost >= least) continue;
                least = cost;
                found[p] = t;
                any = true;
            }
            all = any;
            total += least * uses[p];
        }
        if (!all || (best >= 0.0 && total >= best)) continue;
        best = total;
        a->batch = batch;
        for (int p = 0; p < 3; ++p) a->tilings[p] = found[p];
    }
    return best >= 0.0 ? nullptr : "the device has too little shared memory";
}

template <class S>
const char* run(int element_bytes, const StepStack& stack, const ScanOptions& options, void* workspace,
                Stream stream, Path* chosen) {
    StackLaunch a{};
    auto* bytes = static_cast<unsigned char*>(workspace);
    const int stages = stages_of(stack, reinterpret_cast<float*>(bytes + counter_bytes(stack.B)), a.stages);
    a.B = stack.B;
    a.H = stack.H;
    a.output = stack.output;
    a.output_type = stack.output_type;
    a.gave_up = reinterpret_cast<uint32_t*>(bytes);
    a.counters = reinterpret_cast<uint32_t*>(bytes + kFlagBytes);
    a.limit_ns = options.spin_limit_ns;
    Device device{};
    if (const char* error = device_of(&device)) return error;
    if (const char* error = choose(stack, element_bytes, device, &a, stages)) return error;
    int64_t shared = 0, items = 1;
    for (const Tiling& t : a.tilings) shared = t.shared_bytes > shared ? t.shared_bytes : shared;
    for (int s = 0; s < stages; ++s) {
        const Stage& stage = a.stages[s];
        int64_t here = stage.kind == kStackMix ? a.tilings[kMixProduct].unit_blocks : 0;
        for (int k = 0; stage.kind == kStackCells && k < stage.cells; ++k)
            here += a.tilings[stage.cell[k].lstm ? kLstmProduct : kGruProduct].unit_blocks;
        items = here > items ? here : items;
    }
    shared += kStackHead;
    const int64_t groups = ceil_div(stack.B, a.batch);
    const auto start = [&](int from, int to, int64_t blocks, bool rescue, Together together) {
        a.from = from;
        a.to = to;
        a.blocks = static_cast<int32_t>(blocks);
        a.rescue = rescue;
        const Shape shape{static_cast<unsigned>(groups * blocks), kThreads, static_cast<size_t>(shared),
                          together};
        return launch("hybrid_step", StackKernel<S>::get(), shape, stream, a);
    };
    if (options.path == Path::rows || (options.path == Path::automatic && items == 1)) {
        *chosen = Path::rows;  // a block of a group has nobody to wait for
        return start(0, stages, 1, false, Together::no);
    }
    if (options.path != Path::steps) {
        int64_t most = 0;
        const bool known =
            resident_blocks(StackKernel<S>::get(), kThreads, static_cast<size_t>(shared), &most) == nullptr;
        const int64_t blocks = known ? (most / groups < items ? most / groups : items) : 0;
        if (blocks > 1) {
            if (const char* error = clear(workspace, static_cast<size_t>(counter_bytes(stack.B)), stream))
                return error;
            *chosen = Path::resident;
            const char* error = start(0, stages, blocks, false, Together::grid);
            if (error == nullptr)
                return start(0, stages, 1, true, Together::no);  // does nothing unless blocks gave up
            if (options.path == Path::resident) return error;
        } else if (options.path == Path::resident) {
            return "a batch of this size leaves no blocks to share a step; choose another path";
        }
    }
    *chosen = Path::steps;
    for (int s = 0; s < stages; ++s)
        if (const char* error = start(s, s + 1, items, false, Together::no)) return error;
    return nullptr;
}

}  // namespace

int64_t stack_workspace(const StepStack& stack) {
    return counter_bytes(stack.B) + 4 * stack.count * stack.B * stack.H * int64_t{sizeof(float)};
}

const char* stack_step(Type type, const StepStack& stack, const ScanOptions& options, void* workspace,
                       void* stream, Path* chosen) {
    const auto on = static_cast<Stream>(stream);
    switch (type) {
        case Type::float32:
            return run<float>(4, stack, options, workspace, on, chosen);
        case Type::bfloat16:
            return run<Bf16>(2, stack, options, workspace, on, chosen);
        default:
            return run<Half>(2, stack, options, workspace, on, chosen);
    }
}

}  // namespace melodia::cuda
