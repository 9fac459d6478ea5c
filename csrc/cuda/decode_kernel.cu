// Which decode kernel, and its launch; the kernels stand in sources of their own (decode_entry.h).
#include "cuda/decode_kernel.h"

namespace melodia::cuda::decode {

namespace {

Kernel kernel_with(int weights) {
    return weights == 0 ? kernel_of<float>() : weights == 1 ? kernel_of<Bf16>() : kernel_of<Int8>();
}

}  // namespace

const char* blocks_at_once(int weights, int threads, int64_t shared_bytes, int64_t* blocks) {
    return resident_blocks(kernel_with(weights), static_cast<unsigned>(threads),
                           static_cast<size_t>(shared_bytes), blocks);
}

const char* clusters_at_once(int weights, int64_t blocks, int threads, int64_t shared_bytes,
                             int64_t* clusters) {
    return resident_clusters(kernel_with(weights), static_cast<unsigned>(blocks),
                             static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes), clusters);
}

const char* start(int weights, const Args& args, int threads, int64_t shared_bytes, Together together,
                  Stream stream) {
    const Shape shape = {static_cast<unsigned>(blocks_of(args)), static_cast<unsigned>(threads),
                         static_cast<size_t>(shared_bytes), together};
    return launch("decode", kernel_with(weights), shape, stream, args);
}

}  // namespace melodia::cuda::decode
