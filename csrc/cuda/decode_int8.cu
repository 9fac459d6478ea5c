// The decode kernel with int8 weights.
#include "cuda/decode_entry.h"

namespace melodia::cuda::decode {

template <>
Kernel kernel_of<Int8>() {
    return decode<Int8>;
}

}  // namespace melodia::cuda::decode
