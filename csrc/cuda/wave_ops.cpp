// wave_scan and its backward pass for CUDA tensors: from lists of tensors to scans in one launch.
#include "cuda/scan_jobs.h"
#include "lists.h"

namespace melodia::cuda {
namespace {

template <class Job>
std::vector<const Job*> pointers(const std::vector<Job>& jobs) {
    std::vector<const Job*> out;
    for (const Job& job : jobs) out.push_back(&job);
    return out;
}

std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> wave_scan(Tensors gates_x, Tensors h, Tensors c,
                                                                  Tensors weight_hh, Tensors bias_hh,
                                                                  Tensors lengths, int64_t keep) {
    const size_t count = count_of(gates_x, {&h, &weight_hh, &bias_hh}, lengths);
    const Where where(gates_x[0]);
    Taker cs(c, "c");
    std::vector<ForwardJob> jobs;
    jobs.reserve(count);
    for (size_t k = 0; k < count; ++k) {
        check_type(gates_x[k], gates_x[0]);
        const Maybe own = is_lstm(weight_hh[k]) ? Maybe(cs.next()) : std::nullopt;
        jobs.emplace_back(where, gates_x[k], h[k], own, weight_hh[k], bias_hh[k], length_of(lengths, k),
                          keep);
    }
    cs.finish();
    run_forward(where, pointers(jobs));
    Tensors output, h_n, c_n, gates, cells;
    for (const ForwardJob& job : jobs) {
        output.push_back(job.output);
        h_n.push_back(job.last_h());
        gates.push_back(job.gates);
        if (!job.c) continue;
        c_n.push_back(job.last_c());
        cells.push_back(*job.cells);
    }
    return {output, h_n, c_n, gates, cells};
}

std::tuple<Tensors, Tensors, Tensors, Tensors> wave_scan_backward(Tensors grad_output, Tensors grad_h_n,
                                                                  Tensors grad_c_n, Tensors gates,
                                                                  Tensors cells, Tensors c, Tensors output,
                                                                  Tensors h, Tensors weight_hh,
                                                                  Tensors lengths) {
    const size_t count = count_of(gates, {&grad_output, &grad_h_n, &output, &h, &weight_hh}, lengths);
    const Where where(gates[0]);
    Taker grads_c(grad_c_n, "grad_c_n"), all_cells(cells, "cells"), cs(c, "c");
    std::vector<BackwardJob> jobs;
    jobs.reserve(count);
    for (size_t k = 0; k < count; ++k) {
        check_type(gates[k], gates[0]);
        const Maybe length = length_of(lengths, k);
        if (is_lstm(weight_hh[k]))
            jobs.emplace_back(where, grad_output[k], grad_h_n[k], grads_c.next(), gates[k], all_cells.next(),
                              cs.next(), std::nullopt, std::nullopt, weight_hh[k], length);
        else
            jobs.emplace_back(where, grad_output[k], grad_h_n[k], std::nullopt, gates[k], std::nullopt,
                              std::nullopt, output[k], h[k], weight_hh[k], length);
    }
    for (const Taker* taker : {&grads_c, &all_cells, &cs}) taker->finish();
    run_backward(where, pointers(jobs));
    Tensors grad_gates_x, grad_gates_h, grad_h, grad_c;
    for (const BackwardJob& job : jobs) {
        if (job.grad_gates_x) grad_gates_x.push_back(*job.grad_gates_x);
        grad_gates_h.push_back(job.grad_gates_h);
        grad_h.push_back(job.grad_h);
        if (job.grad_c) grad_c.push_back(*job.grad_c);
    }
    return {grad_gates_x, grad_gates_h, grad_h, grad_c};
}

MELODIA_OPERATORS(m) {
    m.impl("wave_scan", TORCH_BOX(&wave_scan));
    m.impl("wave_scan_backward", TORCH_BOX(&wave_scan_backward));
}

}  // namespace
}  // namespace melodia::cuda
