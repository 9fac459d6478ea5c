// The decode kernels in plain C++.
#include "cpu/vector_portable.h"
// the vector comes first
#include "engine/kernels_impl.h"

namespace melodia::engine {
constexpr Kernels kernels_portable = table();
}  // namespace melodia::engine
