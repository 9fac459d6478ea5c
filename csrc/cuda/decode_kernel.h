// Starting the decode kernel; weights as engine::Weights. Errors are sentences, null means success.
#pragma once

#include "cuda/decode_plan.h"
#include "cuda/launch.h"

#if defined(MELODIA_EMULATOR)
#define MELODIA_APART inline
#else
#define MELODIA_APART inline __device__ __noinline__
#endif

namespace melodia::cuda::decode {

constexpr int kThreads = 256;

using Kernel = void (*)(Args);
template <class W>
Kernel kernel_of();  // W: float, Bf16 or Int8
template <>
Kernel kernel_of<float>();
template <>
Kernel kernel_of<Bf16>();
template <>
Kernel kernel_of<Int8>();

inline int64_t blocks_of(const Args& a) { return a.net.blocks + (a.joint ? 0 : a.samplers); }
const char* blocks_at_once(int weights, int threads, int64_t shared_bytes, int64_t* blocks);
const char* clusters_at_once(int weights, int64_t blocks, int threads, int64_t shared_bytes,
                             int64_t* clusters);
const char* start(int weights, const Args& args, int threads, int64_t shared_bytes, Together together,
                  Stream stream);

}  // namespace melodia::cuda::decode
