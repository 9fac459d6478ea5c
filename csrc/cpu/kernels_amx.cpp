// The kernels for x86-64 with AVX-512 and the matrix unit for bf16; runs only behind the check in
// dispatch.cpp.
#include "cpu/vector_avx512.h"
// the vector comes first
#include "cpu/kernels_impl.h"

namespace melodia::cpu {
constexpr Kernels kernels_amx = table();
}  // namespace melodia::cpu
