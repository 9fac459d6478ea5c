// The decode kernels for x86-64 with AVX-512, VNNI and the bf16 dot product; runs only behind the check in
// dispatch.cpp.
#include "cpu/vector_avx512.h"
// the vector comes first
#include "engine/kernels_impl.h"

namespace melodia::engine {
constexpr Kernels kernels_avx512bf16 = table();
}  // namespace melodia::engine
