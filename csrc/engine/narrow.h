// Products of narrow numbers over the Vector of the header included before this one: pairs of bf16, and quads
// of bytes.
#pragma once

#include <stdint.h>

#define MELODIA_INLINE inline __attribute__((always_inline))

namespace {

// The two bf16 that stand there.
MELODIA_INLINE int32_t two(const uint16_t* p) {
    int32_t both;
    __builtin_memcpy(&both, p, sizeof both);
    return both;
}

// Two consecutive k of `Vector::width` rows, [width][2] bf16, and the same two of x in every lane:
// dot(sum, x, w) = sum + x[0] w[0] + x[1] w[1].
#if defined(__AVX512BF16__)
struct Pair {
    __m512bh v;
    static MELODIA_INLINE Pair load(const uint16_t* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
    static MELODIA_INLINE Pair broadcast(const uint16_t* p) { return {(__m512bh)_mm512_set1_epi32(two(p))}; }
};
MELODIA_INLINE Vector dot(Vector sum, Pair x, Pair w) { return {_mm512_dpbf16_ps(sum.v, x.v, w.v)}; }
#else
struct Pair {
    Vector even, odd;
#if defined(__AVX512F__)
    static MELODIA_INLINE Pair of(__m512i both) {
        return {
            {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))}};
    }
    static MELODIA_INLINE Pair load(const uint16_t* p) { return of(_mm512_loadu_si512(p)); }
    static MELODIA_INLINE Pair broadcast(const uint16_t* p) { return of(_mm512_set1_epi32(two(p))); }
#elif defined(__AVX2__)
    static MELODIA_INLINE Pair of(__m256i both) {
        return {
            {_mm256_castsi256_ps(_mm256_slli_epi32(both, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))))}};
    }
    static MELODIA_INLINE Pair load(const uint16_t* p) {
        return of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    }
    static MELODIA_INLINE Pair broadcast(const uint16_t* p) { return of(_mm256_set1_epi32(two(p))); }
#elif defined(MELODIA_NEON)
    static MELODIA_INLINE Pair of(uint32x4_t both) {
        return {{vreinterpretq_f32_u32(vshlq_n_u32(both, 16))},
                {vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xFFFF0000u)))}};
    }
    static MELODIA_INLINE Pair load(const uint16_t* p) { return of(vreinterpretq_u32_u16(vld1q_u16(p))); }
    static MELODIA_INLINE Pair broadcast(const uint16_t* p) {
        return of(vdupq_n_u32(static_cast<uint32_t>(two(p))));
    }
#else
    static MELODIA_INLINE float widen(uint16_t bits) {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float x;
        __builtin_memcpy(&x, &wide, 4);
        return x;
    }
    static MELODIA_INLINE Pair load(const uint16_t* p) {
        float a[Vector::width], b[Vector::width];
        for (int64_t k = 0; k < Vector::width; ++k) {
            a[k] = widen(p[2 * k]);
            b[k] = widen(p[2 * k + 1]);
        }
        return {Vector::load(a), Vector::load(b)};
    }
    static MELODIA_INLINE Pair broadcast(const uint16_t* p) {
        const float a = widen(p[0]), b = widen(p[1]);
        return {Vector::broadcast(&a), Vector::broadcast(&b)};
    }
#endif
};
MELODIA_INLINE Vector dot(Vector sum, Pair x, Pair w) { return fma(x.odd, w.odd, fma(x.even, w.even, sum)); }
#endif

// Sums of four products of unsigned by signed bytes, per 32-bit lane: acc[lane] += sum over j of x[j]
// w[lane][j]. `begin` gives them their first value: 0, or 128 times the sum of the row where x is read as a
// signed number, x - 128.
#if defined(__AVX512VNNI__)
struct Sums {
    __m512i v;
    static constexpr int64_t width = 16;
    static MELODIA_INLINE Sums begin(const int32_t*) { return {_mm512_setzero_si512()}; }
    MELODIA_INLINE void add(uint32_t x, const int8_t* w) {
        v = _mm512_dpbusd_epi32(v, _mm512_set1_epi32(static_cast<int>(x)), _mm512_loadu_si512(w));
    }
    MELODIA_INLINE void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
};
#elif defined(__AVX2__)
struct Sums {
    __m256i v;
    static constexpr int64_t width = 8;
    static MELODIA_INLINE Sums begin(const int32_t* offset) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset))};
    }
    // The product of bytes wants one of them unsigned: |x| by w with x's sign. Neither is below -127, so that
    // a sum of two products fits in 16 bits.
    MELODIA_INLINE void add(uint32_t x, const int8_t* w) {
        const __m256i xs = _mm256_set1_epi32(static_cast<int>(x ^ 0x80808080u));
        const __m256i signs = _mm256_sign_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)), xs);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(xs), signs);
        v = _mm256_add_epi32(v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    MELODIA_INLINE void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
#elif defined(MELODIA_NEON)
struct Sums {
    int32x4_t v;
    static constexpr int64_t width = 4;
    static MELODIA_INLINE Sums begin(const int32_t* offset) { return {vld1q_s32(offset)}; }
    MELODIA_INLINE void add(uint32_t x, const int8_t* w) {
        const int8x16_t xs = vreinterpretq_s8_u32(vdupq_n_u32(x ^ 0x80808080u)), ws = vld1q_s8(w);
#if defined(__ARM_FEATURE_DOTPROD)
        v = vdotq_s32(v, xs, ws);
#else
        const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(xs), vget_low_s8(ws)));  // lanes 0 0 1 1
        const int32x4_t high = vpaddlq_s16(vmull_high_s8(xs, ws));
        v = vaddq_s32(v, vpaddq_s32(low, high));
#endif
    }
    MELODIA_INLINE void store(int32_t* p) const { vst1q_s32(p, v); }
};
#endif

}  // namespace
