// lstm_gates and gru_gates: the gates of all steps again, from sums that are known for all of them. Element
// by element.
#include "cuda/cell.h"
#include "cuda/launch.h"
#include "cuda/scan.h"

namespace melodia::cuda {
namespace {

constexpr int kThreads = 256;

struct Gates {
    int64_t N, H;        // N rows
    const void* from;    // S [N, 4H] sums of an LSTM without bias, or gates_x [N, 3H] of a GRU
    const void* from_h;  // S [N, 3H]; GRU
    const float* bias;   // [4H]; LSTM
    void* to;            // S [N, 4H]
};

// A thread per unit of a row.
template <class S, bool Lstm>
__global__ void __launch_bounds__(kThreads) gates_kernel(const Gates a) {
    const int64_t at = int64_t{block()} * kThreads + thread(), n = at / a.H, unit = at % a.H;
    if (n >= a.N) return;
    constexpr int G = Lstm ? 4 : 3;
    const S* from = static_cast<const S*>(a.from) + n * G * a.H + unit;
    S* to = static_cast<S*>(a.to) + n * 4 * a.H + unit;
    float s[4], made[4];
    for (int gate = 0; gate < G; ++gate) s[gate] = to_float(from[gate * a.H]);
    if constexpr (Lstm) {
        for (int gate = 0; gate < G; ++gate) s[gate] += a.bias[gate * a.H + unit];
        const auto unit_made = melodia::lstm_forward(s[0], s[1], s[2], s[3], 0.0f);
        made[0] = unit_made.i, made[1] = unit_made.f, made[2] = unit_made.g, made[3] = unit_made.o;
    } else {
        const S* from_h = static_cast<const S*>(a.from_h) + n * G * a.H + unit;
        made[3] = to_float(from_h[2 * a.H]);
        const auto unit_made = melodia::gru_forward(s[0] + to_float(from_h[0]), s[1] + to_float(from_h[a.H]),
                                                    s[2], made[3], 0.0f);
        made[0] = unit_made.r, made[1] = unit_made.z, made[2] = unit_made.n;
    }
    for (int gate = 0; gate < 4; ++gate) to[gate * a.H] = from_float<S>(made[gate]);
}

template <class S>
const char* run(bool lstm, const Gates& a, Stream stream) {
    const auto blocks = static_cast<unsigned>((a.N * a.H + kThreads - 1) / kThreads);
    return launch("gates", lstm ? gates_kernel<S, true> : gates_kernel<S, false>,
                  {blocks, kThreads, 0, Together::no}, stream, a);
}

}  // namespace

const char* gates_again(Type type, bool lstm, int64_t N, int64_t H, const void* from, const void* from_h,
                        const float* bias, void* to, void* stream) {
    const Gates a{N, H, from, from_h, bias, to};
    const auto s = static_cast<Stream>(stream);
    if (N * H == 0) return nullptr;
    return type == Type::float32    ? run<float>(lstm, a, s)
           : type == Type::bfloat16 ? run<Bf16>(lstm, a, s)
                                    : run<Half>(lstm, a, s);
}

}  // namespace melodia::cuda
