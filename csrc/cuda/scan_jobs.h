// Scans as jobs: checks, allocation, and the plain structs of scan.h that point at the tensors.
#pragma once

#include "cuda/tensors.h"

namespace melodia::cuda {

inline Extent extent_of(const Tensor& time_major, const char* name, int64_t gates, const Tensor& weight_hh) {
    MELODIA_CHECK(time_major.dim() == 3, "`", name, "` must have the shape [T, B, ", gates, "H] (received ",
                  text(sizes_of(time_major)), ")");
    MELODIA_CHECK(weight_hh.dim() == 2 && weight_hh.size(1) > 0,
                  "`weight_hh` must have the shape [GH, H] (received ", text(sizes_of(weight_hh)), ")");
    return {time_major.size(0), time_major.size(1), weight_hh.size(1)};
}

// The tensors of one cell's forward scan and the plain struct that points at them.
struct ForwardJob {
    Extent e;
    Tensor gates_x, h, weight_hh, bias_hh, output, h_n, gates;
    Maybe c, c_n, cells, lengths;
    ScalarType h_type, c_type = ScalarType::Float;
    ScanCell cell;

    ForwardJob(const Where& where, const Tensor& gates_x_, const Tensor& h_, const Maybe& c_,
               const Tensor& weight_hh_, const Tensor& bias_hh_, const Maybe& lengths_, int64_t keep)
        : e(extent_of(gates_x_, "gates_x", c_ ? 4 : 3, weight_hh_)),
          gates_x(gates_x_),
          h(h_),
          weight_hh(weight_hh_),
          bias_hh(bias_hh_),
          output(gates_x_),
          h_n(h_),
          gates(h_),
          h_type(h_.scalar_type()) {
        const int64_t G = c_ ? 4 : 3, T = e.T, B = e.B, H = e.H;
        const ScalarType type = gates_x.scalar_type();
        gates_x = checked(where, gates_x, "gates_x", {T, B, G * H}, type);
        h = checked_floats(where, h, "h", {B, H});
        weight_hh = checked(where, weight_hh, "weight_hh", {G * H, H}, type);
        bias_hh = checked_floats(where, bias_hh, "bias_hh", {G * H});
        lengths = checked(where, lengths_, "lengths", {B}, ScalarType::Long);
        output = made(gates_x, {T, B, H}, type);
        h_n = made(gates_x, {B, H}, ScalarType::Float);
        gates = made(gates_x, keep == kGates ? Sizes{T, B, 4 * H} : Sizes{0}, type);
        if (c_) {
            c_type = c_->scalar_type();
            c = checked_floats(where, c_, "c", {B, H});
            c_n = made(gates_x, {B, H}, ScalarType::Float);
            cells = made(gates_x, keep != kNothing ? Sizes{T, B, H} : Sizes{0}, ScalarType::Float);
        }
        cell = {c_.has_value(),
                T,
                H,
                integers(lengths),
                data(gates_x),
                floats(h),
                floats(c),
                data(weight_hh),
                floats(bias_hh),
                mutable_data(output),
                mutable_floats(h_n),
                c_n ? mutable_floats(*c_n) : nullptr,
                keep == kGates ? mutable_data(gates) : nullptr,
                keep != kNothing && cells ? mutable_floats(*cells) : nullptr};
    }
    Tensor last_h() const { return converted(h_n, h_type); }
    Tensor last_c() const { return converted(*c_n, c_type); }
};

struct BackwardJob {
    Extent e;
    Tensor gates, weight_hh_t, grad_gates_h, grad_h;
    Maybe grad_output, grad_h_n, grad_c_n, cells, c, output, h, lengths, grad_gates_x, grad_c;
    ScanCellBackward cell;

    // An LSTM has cells and c, a GRU output and h.
    BackwardJob(const Where& where, const Maybe& grad_output_, const Maybe& grad_h_n_, const Maybe& grad_c_n_,
                const Tensor& gates_, const Maybe& cells_, const Maybe& c_, const Maybe& output_,
                const Maybe& h_, const Tensor& weight_hh, const Maybe& lengths_)
        : e(extent_of(gates_, "gates", 4, weight_hh)),
          gates(gates_),
          weight_hh_t(weight_hh),
          grad_gates_h(gates_),
          grad_h(gates_) {
        const bool lstm = cells_.has_value();
        const int64_t G = lstm ? 4 : 3, T = e.T, B = e.B, H = e.H;
        const ScalarType type = gates.scalar_type(), real = ScalarType::Float;
        gates = checked(where, gates, "gates", {T, B, 4 * H}, type);
        weight_hh_t = torch::stable::contiguous(
            torch::stable::transpose(checked(where, weight_hh, "weight_hh", {G * H, H}, type), 0, 1));
        grad_output = checked(where, grad_output_, "grad_output", {T, B, H}, type);
        grad_h_n = checked_floats(where, grad_h_n_, "grad_h_n", {B, H});
        grad_c_n = checked_floats(where, grad_c_n_, "grad_c_n", {B, H});
        cells = checked(where, cells_, "cells", {T, B, H}, real);
        c = checked_floats(where, c_, "c", {B, H});
        output = checked(where, output_, "output", {T, B, H}, type);
        h = checked_floats(where, h_, "h", {B, H});
        lengths = checked(where, lengths_, "lengths", {B}, ScalarType::Long);
        grad_gates_h = made(gates, {T, B, G * H}, type);
        grad_h = made(gates, {B, H}, real);
        if (lstm) grad_c = made(gates, {B, H}, real);
        if (!lstm) grad_gates_x = made(gates, {T, B, G * H}, type);
        cell = {lstm,
                T,
                H,
                integers(lengths),
                data(grad_output),
                floats(grad_h_n),
                floats(grad_c_n),
                data(gates),
                floats(cells),
                floats(c),
                data(output),
                floats(h),
                data(weight_hh_t),
                grad_gates_x ? mutable_data(*grad_gates_x) : nullptr,
                mutable_data(grad_gates_h),
                mutable_floats(grad_h),
                grad_c ? mutable_floats(*grad_c) : nullptr};
    }
};

// Runs jobs of one batch side by side, as many at once as a launch takes. `per_unit`: the numbers that a step
// hands on, in H.
template <class Cell, class Job>
void run(const Where& where,
         const char* (*scan)(Type, int64_t, const Cell*, int, const ScanOptions&, void*, void*, Path*),
         const Tensor& like, const char* name, int64_t per_unit, const std::vector<const Job*>& jobs) {
    const Type type = type_of(like, name);
    const int64_t B = jobs[0]->e.B;
    for (const Job* job : jobs)
        MELODIA_CHECK(job->e.B == B, "scans side by side must have the same batch (received ", B, " and ",
                      job->e.B, ")");
    if (B == 0) return;
    for (size_t first = 0; first < jobs.size(); first += kMaxCells) {
        Cell cells[kMaxCells];
        int64_t numbers[kMaxCells];
        int count = 0;
        for (size_t k = first; k < jobs.size() && count < kMaxCells; ++k, ++count) {
            cells[count] = jobs[k]->cell;
            numbers[count] = per_unit * jobs[k]->e.H;
        }
        const Tensor workspace = made(like, {scan_workspace(B, numbers, count)}, ScalarType::Byte);
        const char* error =
            scan(type, B, cells, count, options, mutable_data(workspace), where.stream(), &chosen);
        MELODIA_CHECK(error == nullptr, error ? error : "");
    }
}

inline void run_forward(const Where& where, const std::vector<const ForwardJob*>& jobs) {
    run<ScanCell>(where, scan_forward, jobs[0]->gates_x, "gates_x", 1, jobs);
}
inline void run_backward(const Where& where, const std::vector<const BackwardJob*>& jobs) {
    run<ScanCellBackward>(where, scan_backward, jobs[0]->gates, "gates", 4, jobs);
}

}  // namespace melodia::cuda
