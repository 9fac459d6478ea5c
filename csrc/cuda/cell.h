// cells.h for single numbers on a GPU.
#pragma once

#include "cuda/device.h"

namespace melodia {

MELODIA_DEVICE float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
#if defined(MELODIA_EMULATOR)
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
#else
MELODIA_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#endif
MELODIA_DEVICE float power_of_two(float low_bits) { return cuda::float_of(cuda::bits_of(low_bits) << 23); }
template <class T>
MELODIA_DEVICE T splat(float x) {
    return x;
}

}  // namespace melodia

#include "cells.h"
