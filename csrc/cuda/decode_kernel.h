// Starting the decode kernel; weights as engine::Weights. Errors are sentences, null means success.
#pragma once

#include "cuda/decode_plan.h"
#include "cuda/launch.h"

#if defined(MELODIA_EMULATOR)
#define __grid_constant__
#define MELODIA_APART inline
#else
#define MELODIA_APART __device__ __noinline__
#endif

namespace melodia::cuda::decode {

constexpr int kThreads = 256;

const char* blocks_at_once(int weights, int threads, int64_t shared_bytes, int64_t* blocks);
const char* start(int weights, const Args& args, int threads, int64_t shared_bytes, bool together,
                  Stream stream);

}  // namespace melodia::cuda::decode
