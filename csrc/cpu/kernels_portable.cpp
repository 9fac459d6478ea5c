// The kernels for any processor.
#include "cpu/vector_portable.h"
// the vector comes first
#include "cpu/kernels_impl.h"

namespace melodia::cpu {
constexpr Kernels kernels_portable = table();
}  // namespace melodia::cpu
