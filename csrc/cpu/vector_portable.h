// Four floats in whatever the compiler makes of them (SSE2, NEON, plain scalars).
#pragma once

#include <stdint.h>

#include "cpu/bf16.h"

namespace {

using melodia::cpu::bf16;

inline float widen(bf16 x) {
    const uint32_t bits = uint32_t{x.bits} << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest bf16, ties to even; a NaN stays a NaN.
inline bf16 narrow(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    if (x != x) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

struct Vector {
    static constexpr int64_t width = 4;
    static constexpr int batch_rows = 2;  // sessions that a weight serves from a register
    static constexpr int lstm_rows = 4, lstm_split = 2, gru_rows = 3, backward_rows = 4, backward_vectors = 2;
    static constexpr int64_t depth_block = 512;  // rows of a panel that stay in a cache together
    static constexpr const char* name = "portable";
#if defined(__GNUC__)
    typedef float Lanes __attribute__((vector_size(16)));
#else
    struct Lanes {
        float lane[4];
        inline float& operator[](int64_t k) { return lane[k]; }
        inline float operator[](int64_t k) const { return lane[k]; }
    };
#endif
    Lanes v;

    static inline Vector load(const float* p) { return {Lanes{p[0], p[1], p[2], p[3]}}; }
    static inline Vector load(const float* p, int64_t n) {
        Vector x = zero();
        for (int64_t k = 0; k < n; ++k) x.v[k] = p[k];
        return x;
    }
    static inline Vector zero() { return {Lanes{0.0f, 0.0f, 0.0f, 0.0f}}; }
    static inline Vector broadcast(const float* p) { return {Lanes{*p, *p, *p, *p}}; }
    inline void store(float* p) const { store(p, width); }
    inline void store(float* p, int64_t n) const {
        for (int64_t k = 0; k < n; ++k) p[k] = v[k];
    }
    static inline Vector load(const bf16* p) { return load(p, width); }
    static inline Vector load(const bf16* p, int64_t n) {
        Vector x = zero();
        for (int64_t k = 0; k < n; ++k) x.v[k] = widen(p[k]);
        return x;
    }
    static inline Vector broadcast(const bf16* p) {
        const float x = widen(*p);
        return {Lanes{x, x, x, x}};
    }
    inline void store(bf16* p) const { store(p, width); }
    inline void store(bf16* p, int64_t n) const {
        for (int64_t k = 0; k < n; ++k) p[k] = narrow(v[k]);
    }
    inline float sum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
};

#if defined(__GNUC__)
inline Vector operator+(Vector a, Vector b) { return {a.v + b.v}; }
inline Vector operator-(Vector a, Vector b) { return {a.v - b.v}; }
inline Vector operator*(Vector a, Vector b) { return {a.v * b.v}; }
inline Vector operator/(Vector a, Vector b) { return {a.v / b.v}; }
#else
template <class F>
inline Vector lanes(Vector a, Vector b, F f) {
    return {Vector::Lanes{f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])}};
}
inline Vector operator+(Vector a, Vector b) {
    return lanes(a, b, [](float x, float y) { return x + y; });
}
inline Vector operator-(Vector a, Vector b) {
    return lanes(a, b, [](float x, float y) { return x - y; });
}
inline Vector operator*(Vector a, Vector b) {
    return lanes(a, b, [](float x, float y) { return x * y; });
}
inline Vector operator/(Vector a, Vector b) {
    return lanes(a, b, [](float x, float y) { return x / y; });
}
#endif
inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
template <class T>
inline T splat(float x) {
    return {Vector::Lanes{x, x, x, x}};
}
// A NaN stays a NaN: no comparison with it is true.
inline Vector clamp(Vector x, float low, float high) {
    for (int64_t k = 0; k < Vector::width; ++k) x.v[k] = x.v[k] < low ? low : x.v[k] > high ? high : x.v[k];
    return x;
}
inline Vector power_of_two(Vector low_bits) {
    uint32_t bits[Vector::width];
    __builtin_memcpy(bits, &low_bits.v, sizeof bits);
    for (uint32_t& lane : bits) lane <<= 23;
    __builtin_memcpy(&low_bits.v, bits, sizeof bits);
    return low_bits;
}

}  // namespace
