// Eight floats in an AVX register, with the operations that cells.h and kernels_impl.h need.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "cpu/bf16.h"

namespace {

using melodia::cpu::bf16;

struct Vector {
    static constexpr int64_t width = 8;
    static constexpr int lstm_rows = 6, lstm_split = 2, gru_rows = 4, backward_rows = 6, backward_vectors = 2;
    static constexpr int batch_rows = 6;         // sessions that a weight serves from a register
    static constexpr int64_t depth_block = 256;  // rows of a panel that stay in a cache together
    static constexpr const char* name = "avx2";
    __m256 v;

    static inline Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static inline Vector load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, mask(n))}; }
    static inline Vector zero() { return {_mm256_setzero_ps()}; }
    static inline Vector broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
    inline void store(float* p) const { _mm256_storeu_ps(p, v); }
    inline void store(float* p, int64_t n) const { _mm256_maskstore_ps(p, mask(n), v); }
    static inline Vector load(const bf16* p) {
        return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    static inline Vector load(const bf16* p, int64_t n) {
        bf16 some[width] = {};
        for (int64_t k = 0; k < n; ++k) some[k] = p[k];
        return load(some);
    }
    static inline Vector broadcast(const bf16* p) {
        return {_mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(uint32_t{p->bits} << 16)))};
    }
    inline void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
    inline void store(bf16* p, int64_t n) const {
        bf16 all[width];
        store(all);
        for (int64_t k = 0; k < n; ++k) p[k] = all[k];
    }
    inline float sum() const {
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }

  private:
    static inline __m256 widen(__m128i bits) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    // To the nearest bf16, ties to even; a NaN stays a NaN.
    inline __m128i narrow() const {
        const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
        const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i rounded = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), nan);
        const __m256i high = _mm256_srli_epi32(rounded, 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    }
    static inline __m256i mask(int64_t n) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
    }
};

inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
template <class T>
inline T splat(float x) {
    return {_mm256_set1_ps(x)};
}
// A NaN stays a NaN: min and max return their second operand then.
inline Vector clamp(Vector x, float low, float high) {
    return {_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), x.v))};
}
inline Vector power_of_two(Vector low_bits) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(low_bits.v), 23))};
}

}  // namespace
