// Sixteen floats in an AVX-512 register, with the operations that cells.h and kernels_impl.h need.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vector {
    static constexpr int64_t width = 16;
    static constexpr int lstm_rows = 6, lstm_split = 1, gru_rows = 8, backward_rows = 6, backward_vectors = 4;
    static constexpr const char* name = "avx512";
    __m512 v;

    static inline Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static inline Vector load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
    static inline Vector zero() { return {_mm512_setzero_ps()}; }
    static inline Vector broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
    inline void store(float* p) const { _mm512_storeu_ps(p, v); }
    inline void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
    inline float sum() const { return _mm512_reduce_add_ps(v); }

  private:
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

}  // namespace
