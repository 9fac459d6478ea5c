// The decode kernels for 64-bit ARM, all of which have NEON.
#include "engine/vector_neon.h"
// the vector comes first
#include "engine/kernels_impl.h"

namespace melodia::engine {
constexpr Kernels kernels_neon = table();
}  // namespace melodia::engine
