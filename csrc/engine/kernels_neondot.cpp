// The decode kernels for 64-bit ARM with dot products of bytes; runs only behind the check in dispatch.cpp.
#include "engine/vector_neon.h"
// the vector comes first
#include "engine/kernels_impl.h"

namespace melodia::engine {
constexpr Kernels kernels_neondot = table();
}  // namespace melodia::engine
