// The element type of half precision, shared by all instruction sets; plain data.
#pragma once

#include <stdint.h>

namespace melodia::cpu {

// The upper half of a float.
struct bf16 {
    uint16_t bits;
};

}  // namespace melodia::cpu
