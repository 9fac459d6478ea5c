// Sixteen floats in an AVX-512 register, with the operations that cells.h and kernels_impl.h need.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/bf16.h"

namespace {

using melodia::cpu::bf16;

struct Vector {
    static constexpr int64_t width = 16;
    static constexpr int lstm_rows = 6, lstm_split = 1, gru_rows = 8, backward_rows = 6, backward_vectors = 4;
    static constexpr int64_t depth_block = 512;  // rows of a panel that stay in a cache together
#if defined(__AMX_BF16__)
    static constexpr const char* name = "amx";
#elif defined(__AVX512BF16__)
    static constexpr const char* name = "avx512bf16";
#else
    static constexpr const char* name = "avx512";
#endif
    __m512 v;

    static inline Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static inline Vector load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
    static inline Vector zero() { return {_mm512_setzero_ps()}; }
    static inline Vector broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
    inline void store(float* p) const { _mm512_storeu_ps(p, v); }
    inline void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
    static inline Vector load(const bf16* p) {
        return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    static inline Vector load(const bf16* p, int64_t n) {
        return {widen(_mm256_maskz_loadu_epi16(mask(n), p))};
    }
    static inline Vector broadcast(const bf16* p) {
        return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(uint32_t{p->bits} << 16)))};
    }
    inline void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
    inline void store(bf16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, mask(n), narrow()); }
    inline float sum() const { return _mm512_reduce_add_ps(v); }

  private:
    static inline __m512 widen(__m256i bits) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    // To the nearest bf16, ties to even; a NaN stays a NaN.
    inline __m256i narrow() const {
#if defined(__AVX512BF16__)
        return (__m256i)_mm512_cvtneps_pbh(v);
#else
        const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i rounded = _mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
    }
    static inline __mmask16 mask(int64_t n) {
        return static_cast<__mmask16>((1u << n) - 1u);
    }  // 0 <= n <= 16
};

inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
template <class T>
inline T splat(float x) {
    return {_mm512_set1_ps(x)};
}
// A NaN stays a NaN: min and max return their second operand then.
inline Vector clamp(Vector x, float low, float high) {
    return {_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x.v))};
}
inline Vector power_of_two(Vector low_bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(low_bits.v), 23))};
}

#if defined(__AVX512BF16__)
// Pairs of bf16, two in each lane: sums[lane] += a[lane][0] * b[lane][0] + a[lane][1] * b[lane][1].
struct Pairs {
    __m512bh v;
    static inline Pairs load(const bf16* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
    static inline Pairs broadcast(const bf16* p) {
        int32_t both;
        __builtin_memcpy(&both, p, sizeof both);
        return {(__m512bh)_mm512_set1_epi32(both)};
    }
    static inline Pairs broadcast_one(const bf16* p) {
        return {(__m512bh)_mm512_set1_epi32(static_cast<int>(p->bits))};
    }
};
inline Vector fma(Pairs a, Pairs b, Vector c) { return {_mm512_dpbf16_ps(c.v, a.v, b.v)}; }
#endif

}  // namespace
