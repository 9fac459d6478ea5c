// The decode kernel of a kind of weights W; a source for each, so that they compile side by side. One block
// per processor is said in the bounds: without it ptxas gives 80 registers on sm_100, and spills. Compute
// blocks come first, sampler blocks behind them if there are any.
#pragma once

#include "cuda/decode_compute.h"
#include "cuda/decode_kernel.h"

namespace melodia::cuda::decode {
namespace {

template <class W>
__global__ void __launch_bounds__(kThreads, 1) decode(const __grid_constant__ Args a) {
    MELODIA_SHARED(shared);
    open_words(a);
    if (static_cast<int>(block()) >= a.net.blocks) {
        if (a.phase_begin == 0) sample(a, shared, a.step_begin, a.step_end);
    } else {
        ComputeBlock<W>(a, shared).run();
    }
    close_words(a);
}

}  // namespace
}  // namespace melodia::cuda::decode
