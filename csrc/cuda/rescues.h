// How many launches gave up waiting and were made again the slow way: right, but a sign that an exchange does
// not work. Each source that includes this counts its own.
#pragma once

#include "cuda/launch.h"

namespace melodia::cuda {
namespace {

__device__ uint32_t rescues;
#if defined(MELODIA_EMULATOR)
const bool known = emulator::machine.memory.keep(&rescues, sizeof rescues);
#endif

// By a kernel that makes a launch again.
MELODIA_DEVICE void count_rescue() {
    if (block() == 0 && thread() == 0) add_relaxed(&rescues, 1);
}

// On the current device, when everything launched so far is done; -1: the device does not answer.
int64_t rescues_counted() {
#if defined(MELODIA_EMULATOR)
    return rescues;
#else
    uint32_t count = 0;
    const bool known = cudaDeviceSynchronize() == cudaSuccess &&
                       cudaMemcpyFromSymbol(&count, rescues, sizeof count) == cudaSuccess;
    return known ? int64_t{count} : -1;
#endif
}

}  // namespace
}  // namespace melodia::cuda
