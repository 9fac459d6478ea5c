// lstm_scan, gru_scan, pair_scan, lookup and their backward passes, lstm_gates and gru_gates on the CPU: from
// tensors to the kernel table.
//
// A pair is two jobs in one parallel region.
#include <tuple>

#include "cpu/scan_jobs.h"

namespace melodia::cpu {
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_scan(Tensor gates_x, Tensor h, Tensor c,
                                                             Tensor weight_hh, Tensor bias_hh, Maybe lengths,
                                                             int64_t keep) {
    return for_type_of(gates_x, "gates_x", [&](auto element) {
        const LstmJob<decltype(element)> job(gates_x, h, c, weight_hh, bias_hh, lengths, keep);
        run(job.scan.B, gates_x, job);
        return std::tuple(job.output, job.last_h(), job.last_c(), job.gates, job.cells);
    });
}

std::tuple<Tensor, Tensor, Tensor> lstm_scan_backward(Maybe grad_output, Maybe grad_h_n, Maybe grad_c_n,
                                                      Tensor gates, Tensor cells, Tensor c, Tensor weight_hh,
                                                      Maybe lengths) {
    return for_type_of(gates, "gates", [&](auto element) {
        const LstmBackwardJob<decltype(element)> job(grad_output, grad_h_n, grad_c_n, gates, cells, c,
                                                     weight_hh, lengths);
        run(job.scan.B, gates, job);
        return std::tuple(job.grad_gates, job.h_gradient(), job.grad_c);
    });
}

std::tuple<Tensor, Tensor, Tensor> gru_scan(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh,
                                            Maybe lengths, int64_t keep) {
    return for_type_of(gates_x, "gates_x", [&](auto element) {
        const GruJob<decltype(element)> job(gates_x, h, weight_hh, bias_hh, lengths, keep);
        run(job.scan.B, gates_x, job);
        return std::tuple(job.output, job.last_h(), job.gates);
    });
}

std::tuple<Tensor, Tensor, Tensor> gru_scan_backward(Maybe grad_output, Maybe grad_h_n, Tensor gates,
                                                     Tensor output, Tensor h, Tensor weight_hh,
                                                     Maybe lengths) {
    return for_type_of(gates, "gates", [&](auto element) {
        const GruBackwardJob<decltype(element)> job(grad_output, grad_h_n, gates, output, h, weight_hh,
                                                    lengths);
        run(job.scan.B, gates, job);
        return std::tuple(job.grad_gates_x, job.grad_gates_h, job.h_gradient());
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scan(
    Tensor lstm_gates_x, Tensor gru_gates_x, Tensor h_lstm, Tensor c_lstm, Tensor h_gru,
    Tensor weight_hh_lstm, Tensor bias_hh_lstm, Tensor weight_hh_gru, Tensor bias_hh_gru, Maybe lengths,
    int64_t keep) {
    return for_type_of(lstm_gates_x, "lstm_gates_x", [&](auto element) {
        using E = decltype(element);
        const LstmJob<E> lstm(lstm_gates_x, h_lstm, c_lstm, weight_hh_lstm, bias_hh_lstm, lengths, keep);
        const GruJob<E> gru(gru_gates_x, h_gru, weight_hh_gru, bias_hh_gru, lengths, keep);
        MELODIA_CHECK(lstm.scan.B == gru.scan.B, "both halves of a pair must have the same batch (received ",
                      lstm.scan.B, " and ", gru.scan.B, ")");
        run(lstm.scan.B, lstm_gates_x, lstm, gru);
        return std::tuple(lstm.output, gru.output, lstm.last_h(), lstm.last_c(), gru.last_h(), lstm.gates,
                          lstm.cells, gru.gates);
    });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scan_backward(
    Maybe grad_out_lstm, Maybe grad_out_gru, Maybe grad_h_lstm_n, Maybe grad_c_lstm_n, Maybe grad_h_gru_n,
    Tensor lstm_gates, Tensor cells, Tensor gru_gates, Tensor out_gru, Tensor c_lstm, Tensor h_gru,
    Tensor weight_hh_lstm, Tensor weight_hh_gru, Maybe lengths) {
    return for_type_of(lstm_gates, "lstm_gates", [&](auto element) {
        using E = decltype(element);
        const LstmBackwardJob<E> lstm(grad_out_lstm, grad_h_lstm_n, grad_c_lstm_n, lstm_gates, cells, c_lstm,
                                      weight_hh_lstm, lengths);
        const GruBackwardJob<E> gru(grad_out_gru, grad_h_gru_n, gru_gates, out_gru, h_gru, weight_hh_gru,
                                    lengths);
        MELODIA_CHECK(lstm.scan.B == gru.scan.B, "both halves of a pair must have the same batch (received ",
                      lstm.scan.B, " and ", gru.scan.B, ")");
        run(lstm.scan.B, lstm_gates, lstm, gru);
        return std::tuple(lstm.grad_gates, gru.grad_gates_x, gru.grad_gates_h, lstm.h_gradient(), lstm.grad_c,
                          gru.h_gradient());
    });
}

Tensor lstm_gates(Tensor sums, Tensor bias_hh) {
    return for_type_of(sums, "sums", [&](auto element) {
        using E = decltype(element);
        MELODIA_CHECK(sums.dim() == 3 && bias_hh.dim() == 1,
                      "`sums` must have the shape [T, B, 4H] and `bias_hh` [4H] (received ",
                      text(sizes_of(sums)), " and ", text(sizes_of(bias_hh)), ")");
        const int64_t H = bias_hh.size(0) / 4, T = sums.size(0), B = sums.size(1);
        const Tensor from = checked(sums, "sums", {T, B, 4 * H}, type_of<E>);
        const Tensor bias = checked_floats(bias_hh, "bias_hh", {4 * H});
        Tensor gates = empty_like(from, {T, B, 4 * H}, type_of<E>);
        in_parallel(T * B, 16, [&](int64_t begin, int64_t end) {
            scan_kernels<E>().lstm_gates(H, elements<E>(from), floats(bias), mutable_elements<E>(gates),
                                         begin, end);
        });
        return gates;
    });
}

Tensor gru_gates(Tensor gates_x, Tensor gates_h) {
    return for_type_of(gates_x, "gates_x", [&](auto element) {
        using E = decltype(element);
        MELODIA_CHECK(gates_x.dim() == 3, "`gates_x` must have the shape [T, B, 3H] (received ",
                      text(sizes_of(gates_x)), ")");
        const int64_t T = gates_x.size(0), B = gates_x.size(1), H = gates_x.size(2) / 3;
        const Tensor x = checked(gates_x, "gates_x", {T, B, 3 * H}, type_of<E>);
        const Tensor h = checked(gates_h, "gates_h", {T, B, 3 * H}, type_of<E>);
        Tensor gates = empty_like(x, {T, B, 4 * H}, type_of<E>);
        in_parallel(T * B, 16, [&](int64_t begin, int64_t end) {
            scan_kernels<E>().gru_gates(H, elements<E>(x), elements<E>(h), mutable_elements<E>(gates), begin,
                                        end);
        });
        return gates;
    });
}

namespace {

// index [T, B, K] with every number inside 0..rows, contiguous.
Tensor checked_index(const Tensor& index, int64_t rows) {
    MELODIA_CHECK(index.dim() == 3, "`index` must have the shape [T, B, K] (received ", text(sizes_of(index)),
                  ")");
    const Tensor plain = checked(index, "index", sizes_of(index), ScalarType::Long);
    const int64_t* numbers = plain.const_data_ptr<int64_t>();
    for (int64_t k = 0; k < plain.numel(); ++k) {
        MELODIA_CHECK(numbers[k] >= 0 && numbers[k] < rows, "`index` must be within 0 and ", rows - 1,
                      ", the rows of the table (received ", numbers[k], ")");
    }
    return plain;
}

}  // namespace

Tensor lookup(Tensor index, Tensor table) {
    return for_type_of(table, "table", [&](auto element) {
        using E = decltype(element);
        MELODIA_CHECK(table.dim() == 2, "`table` must have the shape [R, G] (received ",
                      text(sizes_of(table)), ")");
        const Tensor rows = checked(table, "table", sizes_of(table), type_of<E>);
        const Tensor numbers = checked_index(index, table.size(0));
        const int64_t T = index.size(0), B = index.size(1), K = index.size(2), G = table.size(1);
        Tensor out = empty_like(rows, {T, B, G}, type_of<E>);
        const Lookup<E> a{T * B,
                          K,
                          G,
                          numbers.const_data_ptr<int64_t>(),
                          elements<E>(rows),
                          mutable_elements<E>(out),
                          nullptr,
                          nullptr};
        in_parallel(a.N, 64, [&](int64_t begin, int64_t end) { scan_kernels<E>().lookup(a, begin, end); });
        return out;
    });
}

Tensor lookup_backward(Tensor grad_out, Tensor index, int64_t rows) {
    return for_type_of(grad_out, "grad_out", [&](auto element) {
        using E = decltype(element);
        const Tensor numbers = checked_index(index, rows);
        MELODIA_CHECK(grad_out.dim() == 3, "`grad_out` must have the shape [T, B, G] (received ",
                      text(sizes_of(grad_out)), ")");
        const int64_t T = index.size(0), B = index.size(1), K = index.size(2), G = grad_out.size(2);
        const Tensor grad = checked(grad_out, "grad_out", {T, B, G}, type_of<E>);
        Tensor grad_table = empty_like(grad, {rows, G});
        grad_table = torch::stable::zero_(grad_table);
        const Lookup<E> a{T * B,
                          K,
                          G,
                          numbers.const_data_ptr<int64_t>(),
                          nullptr,
                          nullptr,
                          elements<E>(grad),
                          mutable_floats(grad_table)};
        constexpr int64_t line = 16;  // columns that threads do not share
        in_parallel(round_up(G, line) / line, 1, [&](int64_t begin, int64_t end) {
            scan_kernels<E>().lookup_backward(a, begin * line, std::min(end * line, G));
        });
        return grad_table;
    });
}

STABLE_TORCH_LIBRARY_IMPL(melodia, CPU, m) {
    m.impl("lstm_scan", TORCH_BOX(&lstm_scan));
    m.impl("lstm_scan_backward", TORCH_BOX(&lstm_scan_backward));
    m.impl("gru_scan", TORCH_BOX(&gru_scan));
    m.impl("gru_scan_backward", TORCH_BOX(&gru_scan_backward));
    m.impl("pair_scan", TORCH_BOX(&pair_scan));
    m.impl("pair_scan_backward", TORCH_BOX(&pair_scan_backward));
    m.impl("lstm_gates", TORCH_BOX(&lstm_gates));
    m.impl("gru_gates", TORCH_BOX(&gru_gates));
    m.impl("lookup", TORCH_BOX(&lookup));
    m.impl("lookup_backward", TORCH_BOX(&lookup_backward));
}

}  // namespace melodia::cpu
