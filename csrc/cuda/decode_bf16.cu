// The decode kernel with bf16 weights.
#include "cuda/decode_entry.h"

namespace melodia::cuda::decode {

template <>
Kernel kernel_of<Bf16>() {
    return decode<Bf16>;
}

}  // namespace melodia::cuda::decode
