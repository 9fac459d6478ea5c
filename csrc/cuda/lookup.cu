// lookup: sums of rows of a table, and the table's gradient, in a fixed order.
#include "cuda/launch.h"
#include "cuda/scan.h"

namespace melodia::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSumThreads = 512, kSumWarps = kSumThreads / 32;
constexpr int kAhead = 8;  // rows of grad_out that a warp asks for before it needs the first

constexpr int kNumbers = 4;  // that a thread reads at once
constexpr int kWidth = 32 * kNumbers;

template <class S>
struct alignas(kNumbers * sizeof(S)) Numbers {
    S x[kNumbers];

    // Those from `column` on of a row of G, zeros behind its end; whole: see whole_rows.
    MELODIA_DEVICE void read(const S* row, int64_t column, int64_t G, bool whole) {
        if (whole) {
            *this = *reinterpret_cast<const Numbers*>(row + column);
            return;
        }
        MELODIA_UNROLL
        for (int j = 0; j < kNumbers; ++j) x[j] = column + j < G ? row[column + j] : S{};
    }
};

// Whether every row of G numbers consists of Numbers.
template <class S>
bool whole_rows(const void* first, int64_t G) {
    return G % kNumbers == 0 && reinterpret_cast<uintptr_t>(first) % sizeof(Numbers<S>) == 0;
}

struct Lookup {
    int64_t K, G;
    const int64_t* index;
    const void* table;  // S [rows, G]
    void* out;          // S [N, G]
    bool whole;
};

// A block per row of the output.
template <class S>
__global__ void __launch_bounds__(kThreads) lookup_kernel(const Lookup a) {
    const auto* table = static_cast<const S*>(a.table);
    const int64_t n = block();
    auto* out = static_cast<S*>(a.out) + n * a.G;
    for (int64_t g = int64_t{thread()} * kNumbers; g < a.G; g += int64_t{kThreads} * kNumbers) {
        float sums[kNumbers] = {};
        for (int64_t k = 0; k < a.K; ++k) {
            Numbers<S> row;
            row.read(table + a.index[n * a.K + k] * a.G, g, a.G, a.whole);
            MELODIA_UNROLL
            for (int j = 0; j < kNumbers; ++j) sums[j] += to_float(row.x[j]);
        }
        Numbers<S> rounded;
        MELODIA_UNROLL
        for (int j = 0; j < kNumbers; ++j) rounded.x[j] = from_float<S>(sums[j]);
        if (a.whole) {
            *reinterpret_cast<Numbers<S>*>(out + g) = rounded;
            continue;
        }
        MELODIA_UNROLL
        for (int j = 0; j < kNumbers; ++j)
            if (g + j < a.G) out[g + j] = rounded.x[j];
    }
}

// A thread per place of the sorted index: where its row is another than the place's before it, the places of
// all rows from there on begin here. Numbers that are no rows are left out.
__global__ void __launch_bounds__(kThreads) lookup_starts_kernel(const LookupPlaces a) {
    const int64_t at = int64_t{block()} * kThreads + thread();
    if (at >= a.count) return;
    const auto row_at = [&](int64_t place) -> int64_t {
        const int64_t row = place < 0 ? -1 : a.sorted[place];
        return row < -1 ? -1 : row > a.rows ? a.rows : row;
    };
    for (int64_t row = row_at(at - 1) + 1; row <= row_at(at); ++row) a.starts[row] = at;
    if (at + 1 == a.count)
        for (int64_t row = row_at(at) + 1; row <= a.rows; ++row) a.starts[row] = a.count;
}

struct LookupSum {
    int64_t G;
    unsigned K, parts;
    const int64_t *order, *starts;
    const void* grad_out;  // S [N, G]
    float* grad_table;     // [rows, G]
    bool whole;
};

// A block per row of the table and part of its columns. Its warps take the row's places in turn, eight each
// time; their sums are added in the order of the warps. No atomics: the same bits every time.
template <class S>
__global__ void __launch_bounds__(kSumThreads, 2) lookup_backward_kernel(const LookupSum a) {
    MELODIA_SHARED(shared);
    const unsigned row = block() / a.parts, first = block() % a.parts * kWidth;
    const int64_t column = first + int64_t{lane()} * kNumbers, end = a.starts[row + 1];
    const auto* grad_out = static_cast<const S*>(a.grad_out);
    float sums[kNumbers] = {};
    for (int64_t at = a.starts[row] + warp() * kAhead; at < end; at += int64_t{kSumWarps} * kAhead) {
        const int64_t mine = at + lane() % kAhead;  // the lanes share the division
        const int step = mine < end ? static_cast<int>(static_cast<uint32_t>(a.order[mine]) / a.K) : -1;
        Numbers<S> rows[kAhead];
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            const int n = shuffle(step, j);
            rows[j] = {};
            if (n >= 0 && column < a.G) rows[j].read(grad_out + int64_t{n} * a.G, column, a.G, a.whole);
        }
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            MELODIA_UNROLL
            for (int i = 0; i < kNumbers; ++i) sums[i] += to_float(rows[j].x[i]);
        }
    }
    auto* by_warp = reinterpret_cast<float*>(shared);  // [kSumWarps, kWidth]
    MELODIA_UNROLL
    for (int i = 0; i < kNumbers; ++i) by_warp[warp() * kWidth + lane() * kNumbers + i] = sums[i];
    MELODIA_SYNC("lookup: sums of the warps");
    for (int k = static_cast<int>(thread()); k < kWidth && first + k < a.G; k += kSumThreads) {
        float sum = 0.0f;
        for (int w = 0; w < kSumWarps; ++w) sum += by_warp[w * kWidth + k];
        a.grad_table[int64_t{row} * a.G + first + k] = sum;
    }
}

template <class S>
const char* forward(int64_t N, Lookup a, Stream stream) {
    a.whole = whole_rows<S>(a.table, a.G) && whole_rows<S>(a.out, a.G);
    return launch("lookup", lookup_kernel<S>, {static_cast<unsigned>(N), kThreads, 0, Together::no}, stream,
                  a);
}
template <class S>
const char* backward(int64_t rows, LookupSum a, Stream stream) {
    a.whole = whole_rows<S>(a.grad_out, a.G);
    a.parts = static_cast<unsigned>((a.G + kWidth - 1) / kWidth);
    return launch("lookup_backward", lookup_backward_kernel<S>,
                  {static_cast<unsigned>(rows * a.parts), kSumThreads, kSumWarps * kWidth * sizeof(float),
                   Together::no},
                  stream, a);
}

}  // namespace

const char* lookup_forward(Type type, int64_t N, int64_t K, int64_t G, const int64_t* index,
                           const void* table, void* out, void* stream) {
    const Lookup a{K, G, index, table, out, false};
    const auto s = static_cast<Stream>(stream);
    if (N == 0) return nullptr;
    return type == Type::float32    ? forward<float>(N, a, s)
           : type == Type::bfloat16 ? forward<Bf16>(N, a, s)
                                    : forward<Half>(N, a, s);
}

const char* lookup_backward(Type type, const LookupPlaces& places, int64_t K, int64_t G, const void* grad_out,
                            float* grad_table, void* stream) {
    const auto s = static_cast<Stream>(stream);
    const int64_t rows = places.rows;
    if (rows == 0 || G == 0) return nullptr;
    if (places.count == 0) return clear(grad_table, rows * G * sizeof(float), s);
    if (places.count > INT32_MAX) return "a lookup must have fewer than 2^31 places";
    const auto blocks = static_cast<unsigned>((places.count + kThreads - 1) / kThreads);
    const char* error =
        launch("lookup_starts", lookup_starts_kernel, {blocks, kThreads, 0, Together::no}, s, places);
    if (error != nullptr) return error;
    const LookupSum a{G,    static_cast<unsigned>(K), 0, places.order, places.starts, grad_out, grad_table,
                      false};
    return type == Type::float32    ? backward<float>(rows, a, s)
           : type == Type::bfloat16 ? backward<Bf16>(rows, a, s)
                                    : backward<Half>(rows, a, s);
}

}  // namespace melodia::cuda
