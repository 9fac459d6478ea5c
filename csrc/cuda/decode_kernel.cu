// The decode kernel: see decode.h. Compute blocks come first, sampler blocks behind them.
#include "cuda/decode_compute.h"
#include "cuda/decode_kernel.h"
#include "cuda/decode_sampler.h"

namespace melodia::cuda::decode {

namespace {

// Apart from the compute blocks, whose registers it would take, and compiled once for all kinds of weights.
MELODIA_APART void sample(const Args& a, unsigned char* shared) { SamplerBlock(a, shared).run(); }

template <class W>
__global__ void __launch_bounds__(kThreads) decode(const __grid_constant__ Args a) {
    MELODIA_SHARED(shared);
    if (static_cast<int>(block()) >= a.net.blocks) {
        sample(a, shared);
    } else {
        ComputeBlock<W>(a, shared).run();
    }
}

using Kernel = void (*)(Args);

Kernel kernel_of(int weights) {
    return weights == 0 ? decode<float> : weights == 1 ? decode<Bf16> : decode<Int8>;
}

}  // namespace

const char* blocks_at_once(int weights, int threads, int64_t shared_bytes, int64_t* blocks) {
    return resident_blocks(kernel_of(weights), static_cast<unsigned>(threads),
                           static_cast<size_t>(shared_bytes), blocks);
}

const char* start(int weights, const Args& args, int threads, int64_t shared_bytes, bool together,
                  Stream stream) {
    const Shape shape = {static_cast<unsigned>(args.net.blocks + args.samplers),
                         static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), together};
    return launch("decode", kernel_of(weights), shape, stream, args);
}

}  // namespace melodia::cuda::decode
