// wave_scan and its backward pass on the CPU: one cell after the other, since each fills all threads.
#include "lists.h"

#include "cpu/scan_jobs.h"

namespace melodia::cpu {
namespace {

std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors> wave_scan(Tensors gates_x, Tensors h, Tensors c,
                                                                  Tensors weight_hh, Tensors bias_hh,
                                                                  Tensors lengths, int64_t keep) {
    const size_t count = count_of(gates_x, {&h, &weight_hh, &bias_hh}, lengths);
    return for_type_of(gates_x[0], "gates_x", [&](auto element) {
        using E = decltype(element);
        Taker cs(c, "c");
        Tensors output, h_n, c_n, gates, cells;
        const auto keep_job = [&](const auto& job) {
            run(job.scan.B, gates_x[0], job);
            output.push_back(job.output);
            h_n.push_back(job.last_h());
            gates.push_back(job.gates);
        };
        for (size_t k = 0; k < count; ++k) {
            check_type(gates_x[k], gates_x[0]);
            const auto length = length_of(lengths, k);
            if (is_lstm(weight_hh[k])) {
                const LstmJob<E> job(gates_x[k], h[k], cs.next(), weight_hh[k], bias_hh[k], length, keep);
                keep_job(job);
                c_n.push_back(job.last_c());
                cells.push_back(job.cells);
            } else {
                keep_job(GruJob<E>(gates_x[k], h[k], weight_hh[k], bias_hh[k], length, keep));
            }
        }
        cs.finish();
        return std::tuple(output, h_n, c_n, gates, cells);
    });
}

std::tuple<Tensors, Tensors, Tensors, Tensors> wave_scan_backward(Tensors grad_output, Tensors grad_h_n,
                                                                  Tensors grad_c_n, Tensors gates,
                                                                  Tensors cells, Tensors c, Tensors output,
                                                                  Tensors h, Tensors weight_hh,
                                                                  Tensors lengths) {
    const size_t count = count_of(gates, {&grad_output, &grad_h_n, &output, &h, &weight_hh}, lengths);
    return for_type_of(gates[0], "gates", [&](auto element) {
        using E = decltype(element);
        Taker grads_c(grad_c_n, "grad_c_n"), all_cells(cells, "cells"), cs(c, "c");
        Tensors grad_gates_x, grad_gates_h, grad_h, grad_c;
        for (size_t k = 0; k < count; ++k) {
            check_type(gates[k], gates[0]);
            const auto length = length_of(lengths, k);
            if (is_lstm(weight_hh[k])) {
                const LstmBackwardJob<E> job(grad_output[k], grad_h_n[k], grads_c.next(), gates[k],
                                             all_cells.next(), cs.next(), weight_hh[k], length);
                run(job.scan.B, gates[k], job);
                grad_gates_h.push_back(job.grad_gates);
                grad_h.push_back(job.h_gradient());
                grad_c.push_back(job.grad_c);
            } else {
                const GruBackwardJob<E> job(grad_output[k], grad_h_n[k], gates[k], output[k], h[k],
                                            weight_hh[k], length);
                run(job.scan.B, gates[k], job);
                grad_gates_x.push_back(job.grad_gates_x);
                grad_gates_h.push_back(job.grad_gates_h);
                grad_h.push_back(job.h_gradient());
            }
        }
        for (const Taker* taker : {&grads_c, &all_cells, &cs}) taker->finish();
        return std::tuple(grad_gates_x, grad_gates_h, grad_h, grad_c);
    });
}

STABLE_TORCH_LIBRARY_IMPL(melodia, CPU, m) {
    m.impl("wave_scan", TORCH_BOX(&wave_scan));
    m.impl("wave_scan_backward", TORCH_BOX(&wave_scan_backward));
}

}  // namespace
}  // namespace melodia::cpu
