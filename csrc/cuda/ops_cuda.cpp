// The operators for CUDA tensors: from tensors to the launches of scan.h, through torch's stable ABI (2.10).
//
// The schemas stand in csrc/ops.cpp. Everything runs on the current stream, memory comes from torch's
// allocator and nothing waits for the GPU, so that a call may be captured into a graph. With MELODIA_EMULATOR
// the same code registers operators for CPU tensors in the namespace melodia_emulator
// (tests/test_cuda_scans.py). hybrid_step stands in hybrid_ops.cpp, wave_scan in wave_ops.cpp.
#include <array>
#include <utility>

#include "cuda/hybrid.h"
#include "cuda/scan_jobs.h"

#if defined(MELODIA_EMULATOR)
#include "cuda/emulator.h"
#endif

namespace melodia::cuda {

ScanOptions options;
Path chosen = Path::automatic;

namespace {

// ---- The operators

std::tuple<Tensor, Tensor> lstm_step(Tensor gates_x, Tensor h, Tensor c, Tensor weight_hh, Tensor bias_hh) {
    const Where where(gates_x);
    MELODIA_CHECK(h.dim() == 2, "`h` must have the shape [B, H] (received ", text(sizes_of(h)), ")");
    const ForwardJob job(where, torch::stable::unsqueeze(gates_x, 0), h, c, weight_hh, bias_hh, std::nullopt,
                         kNothing);
    run_forward(where, {&job});
    return {job.last_h(), job.last_c()};
}

Tensor gru_step(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh) {
    const Where where(gates_x);
    MELODIA_CHECK(h.dim() == 2, "`h` must have the shape [B, H] (received ", text(sizes_of(h)), ")");
    const ForwardJob job(where, torch::stable::unsqueeze(gates_x, 0), h, std::nullopt, weight_hh, bias_hh,
                         std::nullopt, kNothing);
    run_forward(where, {&job});
    return job.last_h();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_scan(Tensor gates_x, Tensor h, Tensor c,
                                                             Tensor weight_hh, Tensor bias_hh, Maybe lengths,
                                                             int64_t keep) {
    const Where where(gates_x);
    const ForwardJob job(where, gates_x, h, c, weight_hh, bias_hh, lengths, keep);
    run_forward(where, {&job});
    return {job.output, job.last_h(), job.last_c(), job.gates, *job.cells};
}

std::tuple<Tensor, Tensor, Tensor> lstm_scan_backward(Maybe grad_output, Maybe grad_h_n, Maybe grad_c_n,
                                                      Tensor gates, Tensor cells, Tensor c, Tensor weight_hh,
                                                      Maybe lengths) {
    const Where where(gates);
    const BackwardJob job(where, grad_output, grad_h_n, grad_c_n, gates, cells, c, std::nullopt, std::nullopt,
                          weight_hh, lengths);
    run_backward(where, {&job});
    return {job.grad_gates_h, job.grad_h, *job.grad_c};
}

std::tuple<Tensor, Tensor, Tensor> gru_scan(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh,
                                            Maybe lengths, int64_t keep) {
    const Where where(gates_x);
    const ForwardJob job(where, gates_x, h, std::nullopt, weight_hh, bias_hh, lengths, keep);
    run_forward(where, {&job});
    return {job.output, job.last_h(), job.gates};
}

std::tuple<Tensor, Tensor, Tensor> gru_scan_backward(Maybe grad_output, Maybe grad_h_n, Tensor gates,
                                                     Tensor output, Tensor h, Tensor weight_hh,
                                                     Maybe lengths) {
    const Where where(gates);
    const BackwardJob job(where, grad_output, grad_h_n, std::nullopt, gates, std::nullopt, std::nullopt,
                          output, h, weight_hh, lengths);
    run_backward(where, {&job});
    return {*job.grad_gates_x, job.grad_gates_h, job.grad_h};
}

template <class Job>
void check_pair(const Job& lstm, const Job& gru) {
    MELODIA_CHECK(lstm.e.T == gru.e.T && lstm.e.B == gru.e.B,
                  "both halves of a pair must have the same steps and batch (received ", lstm.e.T, " x ",
                  lstm.e.B, " and ", gru.e.T, " x ", gru.e.B, ")");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scan(
    Tensor lstm_gates_x, Tensor gru_gates_x, Tensor h_lstm, Tensor c_lstm, Tensor h_gru,
    Tensor weight_hh_lstm, Tensor bias_hh_lstm, Tensor weight_hh_gru, Tensor bias_hh_gru, Maybe lengths,
    int64_t keep) {
    const Where where(lstm_gates_x);
    const ForwardJob lstm(where, lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths, keep);
    const ForwardJob gru(where, gru_gates_x, h_gru, std::nullopt, weight_hh_gru, bias_hh_gru, lengths, keep);
    MELODIA_CHECK(lstm_gates_x.scalar_type() == gru_gates_x.scalar_type(),
                  "both halves of a pair must have the same type");
    check_pair(lstm, gru);
    run_forward(where, {&lstm, &gru});
    return {lstm.output,  gru.output, lstm.last_h(), lstm.last_c(),
            gru.last_h(), lstm.gates, *lstm.cells,   gru.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scan_backward(
    Maybe grad_out_lstm, Maybe grad_out_gru, Maybe grad_h_lstm_n, Maybe grad_c_lstm_n, Maybe grad_h_gru_n,
    Tensor lstm_gates, Tensor cells, Tensor gru_gates, Tensor out_gru, Tensor c_lstm, Tensor h_gru,
    Tensor weight_hh_lstm, Tensor weight_hh_gru, Maybe lengths) {
    const Where where(lstm_gates);
    const BackwardJob lstm(where, grad_out_lstm, grad_h_lstm_n, grad_c_lstm_n, lstm_gates, cells, c_lstm,
                           std::nullopt, std::nullopt, weight_hh_lstm, lengths);
    const BackwardJob gru(where, grad_out_gru, grad_h_gru_n, std::nullopt, gru_gates, std::nullopt,
                          std::nullopt, out_gru, h_gru, weight_hh_gru, lengths);
    MELODIA_CHECK(lstm_gates.scalar_type() == gru_gates.scalar_type(),
                  "both halves of a pair must have the same type");
    check_pair(lstm, gru);
    run_backward(where, {&lstm, &gru});
    return {lstm.grad_gates_h, *gru.grad_gates_x, gru.grad_gates_h, lstm.grad_h, *lstm.grad_c, gru.grad_h};
}

Tensor lstm_gates(Tensor sums, Tensor bias_hh) {
    const Where where(sums);
    MELODIA_CHECK(sums.dim() == 3 && bias_hh.dim() == 1,
                  "`sums` must have the shape [T, B, 4H] and `bias_hh` [4H] "
                  "(received ",
                  text(sizes_of(sums)), " and ", text(sizes_of(bias_hh)), ")");
    const int64_t H = bias_hh.size(0) / 4, T = sums.size(0), B = sums.size(1);
    sums = checked(where, sums, "sums", {T, B, 4 * H}, sums.scalar_type());
    bias_hh = checked_floats(where, bias_hh, "bias_hh", {4 * H});
    const Tensor gates = made(sums, {T, B, 4 * H}, sums.scalar_type());
    const char* error = gates_again(type_of(sums, "sums"), true, T * B, H, data(sums), nullptr,
                                    floats(bias_hh), mutable_data(gates), where.stream());
    MELODIA_CHECK(error == nullptr, error ? error : "");
    return gates;
}

Tensor gru_gates(Tensor gates_x, Tensor gates_h) {
    const Where where(gates_x);
    MELODIA_CHECK(gates_x.dim() == 3, "`gates_x` must have the shape [T, B, 3H] (received ",
                  text(sizes_of(gates_x)), ")");
    const int64_t T = gates_x.size(0), B = gates_x.size(1), H = gates_x.size(2) / 3;
    const ScalarType type = gates_x.scalar_type();
    gates_x = checked(where, gates_x, "gates_x", {T, B, 3 * H}, type);
    gates_h = checked(where, gates_h, "gates_h", {T, B, 3 * H}, type);
    const Tensor gates = made(gates_x, {T, B, 4 * H}, type);
    const char* error = gates_again(type_of(gates_x, "gates_x"), false, T * B, H, data(gates_x),
                                    data(gates_h), nullptr, mutable_data(gates), where.stream());
    MELODIA_CHECK(error == nullptr, error ? error : "");
    return gates;
}

Tensor lookup(Tensor index, Tensor table) {
    const Where where(table);
    MELODIA_CHECK(index.dim() == 3, "`index` must have the shape [T, B, K] (received ", text(sizes_of(index)),
                  ")");
    MELODIA_CHECK(table.dim() == 2, "`table` must have the shape [R, G] (received ", text(sizes_of(table)),
                  ")");
    const int64_t T = index.size(0), B = index.size(1), G = table.size(1);
    index = checked(where, index, "index", sizes_of(index), ScalarType::Long);
    table = checked(where, table, "table", sizes_of(table), table.scalar_type());
    const Tensor out = made(table, {T, B, G}, table.scalar_type());
    const char* error = lookup_forward(type_of(table, "table"), T * B, index.size(2), G,
                                       static_cast<const int64_t*>(data(index)), data(table),
                                       mutable_data(out), where.stream());
    MELODIA_CHECK(error == nullptr, error ? error : "");
    return out;
}

// A vector's values in rising order and where they stood, those of equal values as they come.
std::pair<Tensor, Tensor> stable_sort(const Tensor& x) {
    std::array<StableIValue, 4> stack{
        torch::stable::detail::from(x), torch::stable::detail::from(std::optional<bool>(true)),
        torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
    return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

Tensor lookup_backward(Tensor grad_out, Tensor index, int64_t rows) {
    const Where where(grad_out);
    MELODIA_CHECK(index.dim() == 3, "`index` must have the shape [T, B, K] (received ", text(sizes_of(index)),
                  ")");
    MELODIA_CHECK(grad_out.dim() == 3, "`grad_out` must have the shape [T, B, G] (received ",
                  text(sizes_of(grad_out)), ")");
    const int64_t T = index.size(0), B = index.size(1), G = grad_out.size(2);
    index = checked(where, index, "index", sizes_of(index), ScalarType::Long);
    grad_out = checked(where, grad_out, "grad_out", {T, B, G}, grad_out.scalar_type());
    const Tensor grad = made(grad_out, {rows, G}, ScalarType::Float);
    const Tensor starts = made(index, {rows + 1}, ScalarType::Long);
    const auto [sorted, order] =
        stable_sort(torch::stable::to(torch::stable::flatten(index), ScalarType::Int));
    const LookupPlaces places{order.size(0), rows, static_cast<const int32_t*>(data(sorted)),
                              static_cast<const int64_t*>(data(order)),
                              static_cast<int64_t*>(mutable_data(starts))};
    const char* error = lookup_backward(type_of(grad_out, "grad_out"), places, index.size(2), G,
                                        data(grad_out), mutable_floats(grad), where.stream());
    MELODIA_CHECK(error == nullptr, error ? error : "");
    return grad;
}

MELODIA_OPERATORS(m) {
    m.impl("lstm_step", TORCH_BOX(&lstm_step));
    m.impl("gru_step", TORCH_BOX(&gru_step));
    m.impl("lstm_scan", TORCH_BOX(&lstm_scan));
    m.impl("lstm_scan_backward", TORCH_BOX(&lstm_scan_backward));
    m.impl("gru_scan", TORCH_BOX(&gru_scan));
    m.impl("gru_scan_backward", TORCH_BOX(&gru_scan_backward));
    m.impl("pair_scan", TORCH_BOX(&pair_scan));
    m.impl("pair_scan_backward", TORCH_BOX(&pair_scan_backward));
    m.impl("lstm_gates", TORCH_BOX(&lstm_gates));
    m.impl("gru_gates", TORCH_BOX(&gru_gates));
    m.impl("lookup", TORCH_BOX(&lookup));
    m.impl("lookup_backward", TORCH_BOX(static_cast<Tensor (*)(Tensor, Tensor, int64_t)>(&lookup_backward)));
}

}  // namespace
}  // namespace melodia::cuda

#define MELODIA_EXPORT extern "C" __attribute__((visibility("default")))

// How scans run from now on: the numbers of Path and Exchange. For tests and comparisons.
MELODIA_EXPORT void melodia_cuda_configure(int32_t path, int32_t exchange, uint64_t spin_limit_ns) {
    using namespace melodia::cuda;
    options = {static_cast<Path>(path), static_cast<Exchange>(exchange), spin_limit_ns, options.tf32};
}

// Whether products of float32 scans may round their operands to tf32 from now on.
MELODIA_EXPORT void melodia_cuda_allow_tf32(int32_t allowed) { melodia::cuda::options.tf32 = allowed != 0; }

// Why nothing can run here, or null.
MELODIA_EXPORT const char* melodia_cuda_problem() { return melodia::cuda::device_problem(); }

// The path that the last scan took.
MELODIA_EXPORT int32_t melodia_cuda_chosen() { return static_cast<int32_t>(melodia::cuda::chosen); }

// How many launches on the current device gave up waiting and were made again the slow way; -1: no answer.
MELODIA_EXPORT int64_t melodia_cuda_rescues() {
    const int64_t scans = melodia::cuda::scan_rescues(), stacks = melodia::cuda::stack_rescues();
    return scans < 0 || stacks < 0 ? -1 : scans + stacks;
}

#if defined(MELODIA_EMULATOR)
MELODIA_EXPORT void melodia_emulator_configure(uint64_t schedule, int64_t resident_blocks,
                                               int64_t shared_bytes, int32_t expire) {
    melodia::emulator::machine.setup = {schedule, resident_blocks, shared_bytes, expire != 0};
}
#endif
