// The decode kernel with fp32 weights.
#include "cuda/decode_entry.h"

namespace melodia::cuda::decode {

template <>
Kernel kernel_of<float>() {
    return decode<float>;
}

}  // namespace melodia::cuda::decode
