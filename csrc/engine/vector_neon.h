// Four floats in a NEON register, with the operations that cells.h and kernels_impl.h need.
#pragma once

#include <arm_neon.h>
#include <stdint.h>

#define MELODIA_NEON 1  // the portable kernels, which GCC compiles for NEON as well, go another way

namespace {

struct Vector {
    static constexpr int64_t width = 4;
    static constexpr int batch_rows = 6;  // sessions that a weight serves from a register
#if defined(__ARM_FEATURE_DOTPROD)
    static constexpr const char* name = "neondot";
#else
    static constexpr const char* name = "neon";
#endif
    float32x4_t v;

    static inline Vector load(const float* p) { return {vld1q_f32(p)}; }
    static inline Vector zero() { return {vdupq_n_f32(0.0f)}; }
    static inline Vector broadcast(const float* p) { return {vld1q_dup_f32(p)}; }
    inline void store(float* p) const { vst1q_f32(p, v); }
};

inline Vector operator+(Vector a, Vector b) { return {vaddq_f32(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {vsubq_f32(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {vmulq_f32(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {vdivq_f32(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
template <class T>
inline T splat(float x) {
    return {vdupq_n_f32(x)};
}
// A NaN stays a NaN.
inline Vector clamp(Vector x, float low, float high) {
    return {vminq_f32(vdupq_n_f32(high), vmaxq_f32(vdupq_n_f32(low), x.v))};
}
inline Vector power_of_two(Vector low_bits) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(low_bits.v), 23))};
}

}  // namespace
