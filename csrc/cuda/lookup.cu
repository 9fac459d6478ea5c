// lookup: sums of rows of a table, and the table's gradient, in a fixed order.
#include "cuda/launch.h"
#include "cuda/scan.h"

namespace melodia::cuda {
namespace {

constexpr int kThreads = 256;

struct Lookup {
    int64_t N, K, G;
    const int64_t* index;
    const void* from;  // S: the table [rows, G], or grad_out [N, G]
    void* to;          // S out [N, G], or float grad_table [rows, G]
};

// A block per row of the output.
template <class S>
__global__ void __launch_bounds__(kThreads) lookup_kernel(const Lookup a) {
    const auto* table = static_cast<const S*>(a.from);
    auto* out = static_cast<S*>(a.to);
    const int64_t n = block();
    for (int64_t g = thread(); g < a.G; g += kThreads) {
        float sum = 0.0f;
        for (int64_t k = 0; k < a.K; ++k) sum += to_float(table[a.index[n * a.K + k] * a.G + g]);
        out[n * a.G + g] = from_float<S>(sum);
    }
}

// A block per row of the table: it looks for its number through all of `index`, a window of kThreads at a
// time, and adds what it finds in the order of the index. No atomics.
template <class S>
__global__ void __launch_bounds__(kThreads) lookup_backward_kernel(const Lookup a) {
    MELODIA_SHARED(shared);
    auto* found = reinterpret_cast<uint32_t*>(shared);  // a bit per place of the window
    const auto* grad_out = static_cast<const S*>(a.from);
    auto* grad_table = static_cast<float*>(a.to);
    const int64_t row = block(), places = a.N * a.K;
    const int64_t first = thread();
    for (int64_t g0 = 0; g0 < a.G; g0 += int64_t{kThreads} * 4) {
        float sums[4] = {};
        for (int64_t window = 0; window < places; window += kThreads) {
            const int64_t at = window + first;
            const uint32_t bits = warp_ballot(at < places && a.index[at] == row);
            if (lane() == 0) found[warp()] = bits;
            MELODIA_SYNC("lookup: found");
            for (int w = 0; w < kThreads / 32; ++w) {
                for (uint32_t left = found[w]; left != 0; left &= left - 1) {
                    const int64_t place = window + w * 32 + lowest_bit(left);
                    const S* from = grad_out + place / a.K * a.G;
                    MELODIA_UNROLL
                    for (int j = 0; j < 4; ++j) {
                        const int64_t g = g0 + first + j * kThreads;
                        if (g < a.G) sums[j] += to_float(from[g]);
                    }
                }
            }
            MELODIA_SYNC("lookup: added");
        }
        MELODIA_UNROLL
        for (int j = 0; j < 4; ++j) {
            const int64_t g = g0 + first + j * kThreads;
            if (g < a.G) grad_table[row * a.G + g] = sums[j];
        }
    }
}

template <class S>
const char* forward(const Lookup& a, Stream stream) {
    return launch("lookup", lookup_kernel<S>, {static_cast<unsigned>(a.N), kThreads, 0, Together::no}, stream,
                  a);
}
template <class S>
const char* backward(const Lookup& a, int64_t rows, Stream stream) {
    return launch("lookup_backward", lookup_backward_kernel<S>,
                  {static_cast<unsigned>(rows), kThreads, kThreads / 8, Together::no}, stream, a);
}

}  // namespace

const char* lookup_forward(Type type, int64_t N, int64_t K, int64_t G, const int64_t* index,
                           const void* table, void* out, void* stream) {
    const Lookup a{N, K, G, index, table, out};
    const auto s = static_cast<Stream>(stream);
    if (N == 0) return nullptr;
    return type == Type::float32    ? forward<float>(a, s)
           : type == Type::bfloat16 ? forward<Bf16>(a, s)
                                    : forward<Half>(a, s);
}

const char* lookup_backward(Type type, int64_t N, int64_t K, int64_t G, int64_t rows, const int64_t* index,
                            const void* grad_out, float* grad_table, void* stream) {
    const Lookup a{N, K, G, index, grad_out, grad_table};
    const auto s = static_cast<Stream>(stream);
    if (rows == 0) return nullptr;
    return type == Type::float32    ? backward<float>(a, rows, s)
           : type == Type::bfloat16 ? backward<Bf16>(a, rows, s)
                                    : backward<Half>(a, rows, s);
}

}  // namespace melodia::cuda
