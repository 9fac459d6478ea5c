// The decode kernels for x86-64 with AVX2 and FMA; runs only behind the check in dispatch.cpp.
#include "cpu/vector_avx2.h"
// the vector comes first
#include "engine/kernels_impl.h"

namespace melodia::engine {
constexpr Kernels kernels_avx2 = table();
}  // namespace melodia::engine
