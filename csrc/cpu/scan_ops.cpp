// lstm_scan, gru_scan, pair_scan and their backward passes on the CPU: from tensors to the kernel table.
//
// Each scan is prepared as a job that any thread may run for a range of rows; a pair is two jobs in one
// parallel region.
#include <tuple>

#include "cpu/tensors.h"

namespace melodia::cpu {
namespace {

// Runs the jobs over all rows, the rows shared among torch's threads. Rows do not depend on each other.
template <class... Job>
void run(int64_t B, const Tensor& like, const Job&... jobs) {
    Tensor live = torch::stable::new_empty(like, Shape{B}, ScalarType::Long);
    int64_t* scratch = live.mutable_data_ptr<int64_t>();
    in_parallel(B, 1, [&](int64_t begin, int64_t end) { (jobs.run(begin, end, scratch + begin), ...); });
}

Tensor pack_forward(const Tensor& weight_hh, int64_t G, int64_t H) {
    const Kernels& table = kernels();
    const int64_t panel = table.unit_panel, panels = round_up(H, panel) / panel;
    Tensor packed = empty_like(weight_hh, {panels, H, G, panel});
    in_parallel(panels, 1, [&](int64_t begin, int64_t end) {
        table.pack_forward(floats(weight_hh), G, H, mutable_floats(packed), begin, end);
    });
    return packed;
}

Tensor pack_backward(const Tensor& weight_hh, int64_t G, int64_t H) {
    const Kernels& table = kernels();
    const int64_t panel = table.backward_panel, panels = round_up(H, panel) / panel;
    Tensor packed = empty_like(weight_hh, {panels, G * H, panel});
    in_parallel(panels, 1, [&](int64_t begin, int64_t end) {
        table.pack_backward(floats(weight_hh), G, H, mutable_floats(packed), begin, end);
    });
    return packed;
}

// A gradient [B, H] as the kernels want it: rows padded with zeros to `width`; zero where there is none.
Tensor working_gradient(const std::optional<Tensor>& grad, const char* name, const Tensor& like, int64_t B,
                        int64_t H, int64_t width) {
    Tensor work = torch::stable::new_zeros(like, Shape{B, width});
    if (grad.has_value()) {
        const Tensor from = checked(*grad, name, {B, H});
        for (int64_t b = 0; b < B; ++b)
            std::copy_n(floats(from) + b * H, H, mutable_floats(work) + b * width);
    }
    return work;
}

Tensor without_padding(const Tensor& work, int64_t B, int64_t H) {
    const int64_t width = work.size(1);
    if (width == H) return work;
    Tensor out = empty_like(work, {B, H});
    for (int64_t b = 0; b < B; ++b) std::copy_n(floats(work) + b * width, H, mutable_floats(out) + b * H);
    return out;
}

struct Sizes {
    int64_t T, B, H;
};

Sizes sizes_of(const Tensor& time_major, const char* name, int64_t gates, const Tensor& weight_hh) {
    STD_TORCH_CHECK(time_major.dim() == 3, "`", name, "` must have the shape [T, B, ", gates, "H] (received ",
                    text(shape_of(time_major)), ")");
    STD_TORCH_CHECK(weight_hh.dim() == 2, "`weight_hh` must have the shape [GH, H] (received ",
                    text(shape_of(weight_hh)), ")");
    return {time_major.size(0), time_major.size(1), weight_hh.size(1)};
}

struct LstmJob {
    Tensor gates_x, h, c, bias_hh, packed, output, h_n, c_n, gates, cells;
    std::optional<Tensor> lengths;
    LstmScan scan;

    LstmJob(const Tensor& gates_x_, const Tensor& h_, const Tensor& c_, const Tensor& weight_hh,
            const Tensor& bias_hh_, const std::optional<Tensor>& lengths_, bool keep) {
        const auto [T, B, H] = sizes_of(gates_x_, "gates_x", 4, weight_hh);
        gates_x = checked(gates_x_, "gates_x", {T, B, 4 * H});
        h = checked(h_, "h", {B, H});
        c = checked(c_, "c", {B, H});
        packed = pack_forward(checked(weight_hh, "weight_hh", {4 * H, H}), 4, H);
        bias_hh = checked(bias_hh_, "bias_hh", {4 * H});
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        output = empty_like(gates_x, {T, B, H});
        h_n = empty_like(gates_x, {B, H});
        c_n = empty_like(gates_x, {B, H});
        gates = empty_like(gates_x, keep ? Shape{T, B, 4 * H} : Shape{0});
        cells = empty_like(gates_x, keep ? Shape{T, B, H} : Shape{0});
        scan = {T,
                B,
                H,
                floats(gates_x),
                floats(h),
                floats(c),
                floats(packed),
                floats(bias_hh),
                integers(lengths),
                mutable_floats(output),
                mutable_floats(h_n),
                mutable_floats(c_n),
                keep ? mutable_floats(gates) : nullptr,
                keep ? mutable_floats(cells) : nullptr};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const { kernels().lstm_scan(scan, begin, end, live); }
};

struct GruJob {
    Tensor gates_x, h, bias_hh, packed, output, h_n, gates;
    std::optional<Tensor> lengths;
    GruScan scan;

    GruJob(const Tensor& gates_x_, const Tensor& h_, const Tensor& weight_hh, const Tensor& bias_hh_,
           const std::optional<Tensor>& lengths_, bool keep) {
        const auto [T, B, H] = sizes_of(gates_x_, "gates_x", 3, weight_hh);
        gates_x = checked(gates_x_, "gates_x", {T, B, 3 * H});
        h = checked(h_, "h", {B, H});
        packed = pack_forward(checked(weight_hh, "weight_hh", {3 * H, H}), 3, H);
        bias_hh = checked(bias_hh_, "bias_hh", {3 * H});
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        output = empty_like(gates_x, {T, B, H});
        h_n = empty_like(gates_x, {B, H});
        gates = empty_like(gates_x, keep ? Shape{T, B, 4 * H} : Shape{0});
        scan = {T,
                B,
                H,
                floats(gates_x),
                floats(h),
                floats(packed),
                floats(bias_hh),
                integers(lengths),
                mutable_floats(output),
                mutable_floats(h_n),
                keep ? mutable_floats(gates) : nullptr};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const { kernels().gru_scan(scan, begin, end, live); }
};

struct LstmBackwardJob {
    Tensor gates, cells, c, packed, grad_gates, grad_h, grad_c;
    std::optional<Tensor> grad_output, lengths;
    LstmScanBackward scan;

    LstmBackwardJob(const std::optional<Tensor>& grad_output_, const std::optional<Tensor>& grad_h_n,
                    const std::optional<Tensor>& grad_c_n, const Tensor& gates_, const Tensor& cells_,
                    const Tensor& c_, const Tensor& weight_hh, const std::optional<Tensor>& lengths_) {
        const auto [T, B, H] = sizes_of(gates_, "gates", 4, weight_hh);
        gates = checked(gates_, "gates", {T, B, 4 * H});
        cells = checked(cells_, "cells", {T, B, H});
        c = checked(c_, "c", {B, H});
        packed = pack_backward(checked(weight_hh, "weight_hh", {4 * H, H}), 4, H);
        grad_output = checked(grad_output_, "grad_output", {T, B, H});
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        grad_gates = empty_like(gates, {T, B, 4 * H});
        grad_h = working_gradient(grad_h_n, "grad_h_n", gates, B, H, round_up(H, kernels().backward_panel));
        grad_c = working_gradient(grad_c_n, "grad_c_n", gates, B, H, H);
        scan = {T,
                B,
                H,
                floats(grad_output),
                floats(gates),
                floats(cells),
                floats(c),
                floats(packed),
                integers(lengths),
                mutable_floats(grad_gates),
                mutable_floats(grad_h),
                mutable_floats(grad_c)};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const {
        kernels().lstm_scan_backward(scan, begin, end, live);
    }
    Tensor h_gradient() const { return without_padding(grad_h, scan.B, scan.H); }
};

struct GruBackwardJob {
    Tensor gates, output, h, packed, grad_gates_x, grad_gates_h, grad_h;
    std::optional<Tensor> grad_output, lengths;
    GruScanBackward scan;

    GruBackwardJob(const std::optional<Tensor>& grad_output_, const std::optional<Tensor>& grad_h_n,
                   const Tensor& gates_, const Tensor& output_, const Tensor& h_, const Tensor& weight_hh,
                   const std::optional<Tensor>& lengths_) {
        const auto [T, B, H] = sizes_of(gates_, "gates", 4, weight_hh);
        gates = checked(gates_, "gates", {T, B, 4 * H});
        output = checked(output_, "output", {T, B, H});
        h = checked(h_, "h", {B, H});
        packed = pack_backward(checked(weight_hh, "weight_hh", {3 * H, H}), 3, H);
        grad_output = checked(grad_output_, "grad_output", {T, B, H});
        lengths = checked(lengths_, "lengths", {B}, ScalarType::Long);
        grad_gates_x = empty_like(gates, {T, B, 3 * H});
        grad_gates_h = empty_like(gates, {T, B, 3 * H});
        grad_h = working_gradient(grad_h_n, "grad_h_n", gates, B, H, round_up(H, kernels().backward_panel));
        scan = {T,
                B,
                H,
                floats(grad_output),
                floats(gates),
                floats(output),
                floats(h),
                floats(packed),
                integers(lengths),
                mutable_floats(grad_gates_x),
                mutable_floats(grad_gates_h),
                mutable_floats(grad_h)};
    }
    void run(int64_t begin, int64_t end, int64_t* live) const {
        kernels().gru_scan_backward(scan, begin, end, live);
    }
    Tensor h_gradient() const { return without_padding(grad_h, scan.B, scan.H); }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_scan(Tensor gates_x, Tensor h, Tensor c,
                                                             Tensor weight_hh, Tensor bias_hh,
                                                             std::optional<Tensor> lengths, bool keep) {
    const LstmJob job(gates_x, h, c, weight_hh, bias_hh, lengths, keep);
    run(job.scan.B, gates_x, job);
    return {job.output, job.h_n, job.c_n, job.gates, job.cells};
}

std::tuple<Tensor, Tensor, Tensor> lstm_scan_backward(std::optional<Tensor> grad_output,
                                                      std::optional<Tensor> grad_h_n,
                                                      std::optional<Tensor> grad_c_n, Tensor gates,
                                                      Tensor cells, Tensor c, Tensor weight_hh,
                                                      std::optional<Tensor> lengths) {
    const LstmBackwardJob job(grad_output, grad_h_n, grad_c_n, gates, cells, c, weight_hh, lengths);
    run(job.scan.B, gates, job);
    return {job.grad_gates, job.h_gradient(), job.grad_c};
}

std::tuple<Tensor, Tensor, Tensor> gru_scan(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh,
                                            std::optional<Tensor> lengths, bool keep) {
    const GruJob job(gates_x, h, weight_hh, bias_hh, lengths, keep);
    run(job.scan.B, gates_x, job);
    return {job.output, job.h_n, job.gates};
}

std::tuple<Tensor, Tensor, Tensor> gru_scan_backward(std::optional<Tensor> grad_output,
                                                     std::optional<Tensor> grad_h_n, Tensor gates,
                                                     Tensor output, Tensor h, Tensor weight_hh,
                                                     std::optional<Tensor> lengths) {
    const GruBackwardJob job(grad_output, grad_h_n, gates, output, h, weight_hh, lengths);
    run(job.scan.B, gates, job);
    return {job.grad_gates_x, job.grad_gates_h, job.h_gradient()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scan(
    Tensor lstm_gates_x, Tensor gru_gates_x, Tensor h_lstm, Tensor c_lstm, Tensor h_gru,
    Tensor weight_hh_lstm, Tensor bias_hh_lstm, Tensor weight_hh_gru, Tensor bias_hh_gru,
    std::optional<Tensor> lengths, bool keep) {
    const LstmJob lstm(lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths, keep);
    const GruJob gru(gru_gates_x, h_gru, weight_hh_gru, bias_hh_gru, lengths, keep);
    STD_TORCH_CHECK(lstm.scan.B == gru.scan.B, "both halves of a pair must have the same batch (received ",
                    lstm.scan.B, " and ", gru.scan.B, ")");
    run(lstm.scan.B, lstm_gates_x, lstm, gru);
    return {lstm.output, gru.output, lstm.h_n, lstm.c_n, gru.h_n, lstm.gates, lstm.cells, gru.gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scan_backward(
    std::optional<Tensor> grad_out_lstm, std::optional<Tensor> grad_out_gru,
    std::optional<Tensor> grad_h_lstm_n, std::optional<Tensor> grad_c_lstm_n,
    std::optional<Tensor> grad_h_gru_n, Tensor lstm_gates, Tensor cells, Tensor gru_gates, Tensor out_gru,
    Tensor c_lstm, Tensor h_gru, Tensor weight_hh_lstm, Tensor weight_hh_gru, std::optional<Tensor> lengths) {
    const LstmBackwardJob lstm(grad_out_lstm, grad_h_lstm_n, grad_c_lstm_n, lstm_gates, cells, c_lstm,
                               weight_hh_lstm, lengths);
    const GruBackwardJob gru(grad_out_gru, grad_h_gru_n, gru_gates, out_gru, h_gru, weight_hh_gru, lengths);
    STD_TORCH_CHECK(lstm.scan.B == gru.scan.B, "both halves of a pair must have the same batch (received ",
                    lstm.scan.B, " and ", gru.scan.B, ")");
    run(lstm.scan.B, lstm_gates, lstm, gru);
    return {lstm.grad_gates,   gru.grad_gates_x, gru.grad_gates_h,
            lstm.h_gradient(), lstm.grad_c,      gru.h_gradient()};
}

STABLE_TORCH_LIBRARY_IMPL(melodia, CPU, m) {
    m.impl("lstm_scan", TORCH_BOX(&lstm_scan));
    m.impl("lstm_scan_backward", TORCH_BOX(&lstm_scan_backward));
    m.impl("gru_scan", TORCH_BOX(&gru_scan));
    m.impl("gru_scan_backward", TORCH_BOX(&gru_scan_backward));
    m.impl("pair_scan", TORCH_BOX(&pair_scan));
    m.impl("pair_scan_backward", TORCH_BOX(&pair_scan_backward));
}

}  // namespace melodia::cpu
