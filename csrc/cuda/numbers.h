// The words of CUDA for both compilers, and the number types of the kernels: float, Tf32, Bf16, Half.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "host_device.h"

#if defined(MELODIA_EMULATOR)
#include <cmath>

#include "cuda/emulator.h"
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define MELODIA_DEVICE inline
#define MELODIA_UNROLL
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MELODIA_DEVICE __device__ __forceinline__
#define MELODIA_UNROLL _Pragma("unroll")
#endif

namespace melodia::cuda {

struct Bf16 {
    uint16_t bits;
};
struct Half {
    uint16_t bits;
};
// A float32 whose products keep 10 bits of its fraction, on tensor cores; in memory and in sums it is a
// float.
struct Tf32 {
    float value;
};

MELODIA_DEVICE uint32_t bits_of(float x) {
#if defined(MELODIA_EMULATOR)
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
#else
    return __float_as_uint(x);
#endif
}
MELODIA_DEVICE float float_of(uint32_t bits) {
#if defined(MELODIA_EMULATOR)
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
#else
    return __uint_as_float(bits);
#endif
}

MELODIA_DEVICE float to_float(float x) { return x; }
MELODIA_DEVICE float to_float(Tf32 x) { return x.value; }
MELODIA_DEVICE float to_float(Bf16 x) { return float_of(uint32_t{x.bits} << 16); }
MELODIA_DEVICE float to_float(Half x) {
#if defined(MELODIA_EMULATOR)
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                            : exponent == 0 ? std::ldexp(float(fraction), -24)
                                            : std::ldexp(float(1024 + fraction), exponent - 25);
    return x.bits & 0x8000 ? -magnitude : magnitude;
#else
    return __half2float(__ushort_as_half(x.bits));
#endif
}

template <class S>
struct Rounding;  // float to S, to nearest, ties to even
template <>
struct Rounding<float> {
    MELODIA_DEVICE static float of(float x) { return x; }
};
template <>
struct Rounding<Tf32> {
    MELODIA_DEVICE static Tf32 of(float x) { return {x}; }
};
template <>
struct Rounding<Bf16> {
    MELODIA_DEVICE static Bf16 of(float x) {
#if defined(MELODIA_EMULATOR)
        const uint32_t bits = bits_of(x);
        if (x != x) return {0x7FC0};
        return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
#else
        return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
    }
};
template <>
struct Rounding<Half> {
    MELODIA_DEVICE static Half of(float x) {
#if defined(MELODIA_EMULATOR)
        const auto sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000);
        const float magnitude = std::fabs(x);
        if (x != x) return {0x7E00};
        if (magnitude == 0.0f) return {sign};
        if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};
        int exponent;
        std::frexp(magnitude, &exponent);
        exponent = std::max(exponent - 11, -24);  // of the last place
        const auto places = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -exponent)));
        // A subnormal number is its places; otherwise the hidden bit adds one to the exponent field.
        return {static_cast<uint16_t>(sign | (places + (uint32_t(exponent + 24) << 10)))};
#else
        return {__half_as_ushort(__float2half_rn(x))};
#endif
    }
};
template <class S>
MELODIA_DEVICE S from_float(float x) {
    return Rounding<S>::of(x);
}

template <class S>
MELODIA_DEVICE uint32_t payload_of(S x) {  // 16 bits or 32, as they are
    return x.bits;
}
template <>
MELODIA_DEVICE uint32_t payload_of<float>(float x) {
    return bits_of(x);
}
template <>
MELODIA_DEVICE uint32_t payload_of<Tf32>(Tf32 x) {
    return bits_of(x.value);
}
template <class S>
MELODIA_DEVICE S from_payload(uint32_t payload) {
    return {static_cast<uint16_t>(payload)};
}
template <>
MELODIA_DEVICE float from_payload<float>(uint32_t payload) {
    return float_of(payload);
}

template <>
MELODIA_DEVICE Tf32 from_payload<Tf32>(uint32_t payload) {
    return {float_of(payload)};
}

template <class A, class B>
struct same_type {
    static constexpr bool value = false;
};
template <class A>
struct same_type<A, A> {
    static constexpr bool value = true;
};

struct alignas(16) Words {  // 16 bytes, the widest access
    uint32_t x[4];
};

}  // namespace melodia::cuda
