// The formulas of the LSTM and GRU cells, forward and backward, once for every device.
//
// T is float or a vector of floats that has + - * /, and the free functions fma(a, b, c) = a * b + c,
// clamp(x, low, high), splat<T>(float) and power_of_two(x), whose exponent field is the low bits of x.
// Everything here is per hidden unit; the matrix products are made outside.
//
// Gates follow torch: LSTM i, f, g, o and GRU r, z, n with the reset gate applied after the matrix product.
#pragma once

#if defined(__CUDACC__)
#define MELODIA_CELL __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MELODIA_CELL inline __attribute__((always_inline))
#else
#define MELODIA_CELL inline
#endif

namespace melodia {

// tanh as x * P(x^2) / Q(x^2), fitted on [-8, 8]; the relative error stays below 4e-7 everywhere and |tanh|
// below 1.
template <class T>
MELODIA_CELL T fast_tanh(T x) {
    x = clamp(x, -8.0f, 8.0f);
    const T u = x * x;
    T p = fma(splat<T>(1.5230430250312565e-08f), u, splat<T>(2.1894671590416692e-05f));
    p = fma(p, u, splat<T>(0.003571598557755351f));
    p = fma(p, u, splat<T>(0.1344449818134308f));
    p = fma(p, u, splat<T>(1.0f));
    T q = fma(splat<T>(8.522451935277786e-07f), u, splat<T>(0.0003411293146200478f));
    q = fma(q, u, splat<T>(0.026164446026086807f));
    q = fma(q, u, splat<T>(0.4677782654762268f));
    q = fma(q, u, splat<T>(1.0f));
    return x * p / q;
}

// 1 / (1 + exp(-x)), off by at most 1.5e-7 of itself and near 1 to either side alike: a unit that forgets
// little adds up what its gate is off. exp(-x) = 2^n exp(r) with |r| <= log(2) / 2; below -87 and above 87 as
// there.
template <class T>
MELODIA_CELL T fast_sigmoid(T x) {
    const T one = splat<T>(1.0f), minus_x = clamp(splat<T>(0.0f) - x, -87.0f, 87.0f);
    const T shift = splat<T>(0x1.8p23f + 127.0f);  // the low bits of n + shift are the exponent field of 2^n
    const T low_bits = fma(minus_x, splat<T>(1.44269504f), shift);
    const T n = low_bits - shift;
    T r = fma(n, splat<T>(-0.693359375f), minus_x);
    r = fma(n, splat<T>(2.12194440e-4f), r);
    T p = fma(splat<T>(0.001381459878757596f), r, splat<T>(0.008368716575205326f));
    p = fma(p, r, splat<T>(0.04166838899254799f));
    p = fma(p, r, splat<T>(0.1666652113199234f));
    p = fma(p, r, splat<T>(0.4999999403953552f));
    p = fma(p, r, one);
    p = fma(p, r, one);
    return one / fma(p, power_of_two(low_bits), one);
}

// What one step of an LSTM unit makes; the gates are kept for the backward pass.
template <class T>
struct LstmUnit {
    T i, f, g, o;  // after their nonlinearity
    T c, h;
};

// i, f, g, o: the sums W_ih x + b_ih + W_hh h + b_hh of one unit.
template <class T>
MELODIA_CELL LstmUnit<T> lstm_forward(T i, T f, T g, T o, T c) {
    LstmUnit<T> unit;
    unit.i = fast_sigmoid(i);
    unit.f = fast_sigmoid(f);
    unit.g = fast_tanh(g);
    unit.o = fast_sigmoid(o);
    unit.c = fma(unit.f, c, unit.i * unit.g);
    unit.h = unit.o * fast_tanh(unit.c);
    return unit;
}

template <class T>
struct LstmGrad {
    T i, f, g, o;  // with respect to the sums
    T c;           // with respect to the cell state before the step
};

// c: the cell state after the step, c_before: the one before; dh, dc: gradients of the state after the step.
template <class T>
MELODIA_CELL LstmGrad<T> lstm_backward(T i, T f, T g, T o, T c, T c_before, T dh, T dc) {
    const T one = splat<T>(1.0f);
    const T tanh_c = fast_tanh(c);
    dc = fma(dh * o, one - tanh_c * tanh_c, dc);
    LstmGrad<T> grad;
    grad.i = dc * g * i * (one - i);
    grad.f = dc * c_before * f * (one - f);
    grad.g = dc * i * (one - g * g);
    grad.o = dh * tanh_c * o * (one - o);
    grad.c = dc * f;
    return grad;
}

template <class T>
struct GruUnit {
    T r, z, n;  // after their nonlinearity
    T h;
};

// r, z: the whole sums of one unit; n_x = W_in x + b_in; n_h = W_hn h + b_hn.
template <class T>
MELODIA_CELL GruUnit<T> gru_forward(T r, T z, T n_x, T n_h, T h) {
    GruUnit<T> unit;
    unit.r = fast_sigmoid(r);
    unit.z = fast_sigmoid(z);
    unit.n = fast_tanh(fma(unit.r, n_h, n_x));
    unit.h = fma(unit.z, h - unit.n, unit.n);
    return unit;
}

template <class T>
struct GruGrad {
    T r, z, n_x, n_h;  // with respect to the sums
    T h;  // with respect to the state before the step, without the way through the matrix product
};

template <class T>
MELODIA_CELL GruGrad<T> gru_backward(T r, T z, T n, T n_h, T h_before, T dh) {
    const T one = splat<T>(1.0f);
    GruGrad<T> grad;
    grad.n_x = dh * (one - z) * (one - n * n);
    grad.n_h = grad.n_x * r;
    grad.r = grad.n_x * n_h * r * (one - r);
    grad.z = dh * (h_before - n) * z * (one - z);
    grad.h = dh * z;
    return grad;
}

}  // namespace melodia
