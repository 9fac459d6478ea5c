// The scans on CUDA, for whoever calls them: plain pointers, no torch. Meanings as in csrc/ops.cpp.
//
// B batch, T time, H hidden, G gates (4 for LSTM, 3 for GRU). S is the type of `type`; arrays are contiguous.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace melodia::cuda {

enum class Type : int32_t { float32, bfloat16, float16 };
inline int bytes_of(Type type) { return type == Type::float32 ? 4 : 2; }

struct ScanCell {
    bool lstm;
    int64_t T, H;
    const int64_t* lengths;  // [B], or null
    const void* gates_x;     // S [T, B, GH]
    const float* h;          // [B, H]
    const float* c;          // [B, H]; LSTM
    const void* weight_hh;   // S [GH, H]
    const float* bias_hh;    // [GH]
    void* output;            // S [T, B, H]
    float* h_n;              // [B, H]
    float* c_n;              // [B, H]; LSTM
    void* gates;             // S [T, B, 4H] for the backward pass, or null
    float* cells;            // [T, B, H]; LSTM, or null
};

struct ScanCellBackward {
    bool lstm;
    int64_t T, H;
    const int64_t* lengths;   // [B], or null
    const void* grad_output;  // S [T, B, H], or null: zero
    const float* grad_h_n;    // [B, H], or null: zero
    const float* grad_c_n;    // [B, H], or null: zero; LSTM
    const void* gates;        // S [T, B, 4H]
    const float* cells;       // [T, B, H]; LSTM
    const float* c;           // [B, H]; LSTM
    const void* output;       // S [T, B, H]; GRU
    const float* h;           // [B, H]; GRU
    const void* weight_hh_t;  // S [H, GH]: the weights transposed
    void* grad_gates_x;       // S [T, B, GH]; GRU
    void* grad_gates_h;       // S [T, B, GH]; the gradient of the sums of an LSTM
    float* grad_h;            // [B, H]
    float* grad_c;            // [B, H]; LSTM
};

// Where a scan runs; `chosen` says it afterwards.
enum class Path : int32_t {
    automatic,
    resident,  // one launch, the weights stay on chip; blocks exchange the state
    steps,     // a launch per step
    rows       // a block per row of the batch, no exchange: what the resident launch falls back on
};
enum class Exchange : int32_t { automatic, counter, in_band };

struct ScanOptions {
    Path path = Path::automatic;
    Exchange exchange = Exchange::automatic;
    uint64_t spin_limit_ns = 2000000000;  // before a wait gives up
    bool tf32 = false;                    // products of float32 may round their operands to tf32
};

constexpr int kMaxCells = 4;  // side by side in a launch

// Why nothing can run here at all: no driver, one that is too old, no device, one that is too old; or null.
const char* device_problem();

// Up to kMaxCells scans of one batch side by side, each of its own T. Return null, or a sentence that says
// what went wrong. `workspace` has scan_workspace bytes, aligned to 256; its contents do not matter.
// `numbers` are what a step hands on per row: H forward, GH backward.
int64_t scan_workspace(int64_t B, const int64_t* numbers, int count);
const char* scan_forward(Type type, int64_t B, const ScanCell* cells, int count, const ScanOptions& options,
                         void* workspace, void* stream, Path* chosen);
const char* scan_backward(Type type, int64_t B, const ScanCellBackward* cells, int count,
                          const ScanOptions& options, void* workspace, void* stream, Path* chosen);

// Launches that gave up waiting, after which rows of their own made the result; waits for the device.
int64_t scan_rescues();

// The gates that a forward scan keeps, S [N, 4H], again: of an LSTM from the sums S [N, 4H] without `bias`
// [4H], of a GRU from gates_x S [N, 3H] and `from_h` = W_hh h + b_hh S [N, 3H].
const char* gates_again(Type type, bool lstm, int64_t N, int64_t H, const void* from, const void* from_h,
                        const float* bias, void* to, void* stream);

// index [N, K], every one a row of `table` [rows, G] -> out [N, G]: sums of K rows.
const char* lookup_forward(Type type, int64_t N, int64_t K, int64_t G, const int64_t* index,
                           const void* table, void* out, void* stream);
// The places of an index [N, K], `count` of them, in the order of the rows they name.
struct LookupPlaces {
    int64_t count, rows;
    const int32_t* sorted;  // [count], the row that each names
    const int64_t* order;   // [count], the places, those of a row as they come
    int64_t* starts;        // [rows + 1], where a row's begin; lookup_backward fills it
};
// The gradient of the table, float [rows, G], of grad_out [N, G].
const char* lookup_backward(Type type, const LookupPlaces& places, int64_t K, int64_t G, const void* grad_out,
                            float* grad_table, void* stream);

}  // namespace melodia::cuda
