// The operators of melodia: a table of contents.
//
// B batch, T time, H hidden, G a layer's gates; everything is time-major. Gates follow torch (LSTM i f g o,
// GRU r z n with the reset gate after the product). gates_x = x W_ih^T + b_ih is made outside, for all steps
// at once. At t >= lengths[b] a state stays and the output is 0. What `keep` asks for is what the backward
// pass needs: 0 nothing, 1 cells (gates will be recomputed), 2 gates and cells; without it those outputs are
// empty. Scans and lookups are float32 or bfloat16 by the type of gates_x, which weight_hh shares; states and
// biases may be either, are float32 inside, and come back in the type they came in. The gradients of states
// are float32, and so are cells. The reference with the same names is melodia/kernels/reference.py; fake
// kernels are in shapes.py there, and autograd is in gradients.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(melodia, m) {
    // gates_x [B, 4H], h [B, H], c [B, H], weight_hh [4H, H], bias_hh [4H] -> h, c
    m.def(
        "lstm_step(Tensor gates_x, Tensor h, Tensor c, Tensor weight_hh, Tensor bias_hh) -> (Tensor, "
        "Tensor)");

    // gates_x [B, 3H], h [B, H], weight_hh [3H, H], bias_hh [3H] -> h
    m.def("gru_step(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh) -> Tensor");

    // A whole stack by one token. levels: 0 LSTM, 1 GRU, or a pair joined by 2 concat, 3 sum, 4 gated.
    // gates_x: of the first level's cells, [B, GH] each; state: h, c of an LSTM, h of a GRU, level after
    // level, [B, H] each. weights, level after level: of each cell weight_ih, bias_ih (not of the first
    // level), weight_hh, bias_hh; weight [H, 2H] and bias of concat and gated; weight and bias of LayerNorm,
    // where layer_norm -> what the head reads [B, H], state
    m.def(
        "hybrid_step(Tensor[] gates_x, Tensor[] state, Tensor[] weights, int[] levels, bool layer_norm, bool "
        "residual)"
        " -> (Tensor output, Tensor[] state_n)");

    // gates_x [T, B, 4H], lengths [B] int64 -> output [T, B, H], h_n, c_n; kept: gates [T, B, 4H], cells [T,
    // B, H]
    m.def(
        "lstm_scan(Tensor gates_x, Tensor h, Tensor c, Tensor weight_hh, Tensor bias_hh, Tensor? lengths, "
        "int keep)"
        " -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
    // -> the gradients of gates_x [T, B, 4H], h [B, H], c [B, H]; those of the weights are products made
    // outside
    m.def(
        "lstm_scan_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor gates, Tensor "
        "cells,"
        " Tensor c, Tensor weight_hh, Tensor? lengths) -> (Tensor grad_gates, Tensor grad_h, Tensor grad_c)");

    // gates_x [T, B, 3H] -> output [T, B, H], h_n; kept: gates [T, B, 4H] = r, z, n and W_hn h + b_hn
    m.def(
        "gru_scan(Tensor gates_x, Tensor h, Tensor weight_hh, Tensor bias_hh, Tensor? lengths, int keep)"
        " -> (Tensor output, Tensor h_n, Tensor gates)");
    // -> the gradients of gates_x and of W_hh h + b_hh (they differ in n, behind the reset gate), and of h
    m.def(
        "gru_scan_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor gates, Tensor output, Tensor h,"
        " Tensor weight_hh, Tensor? lengths) -> (Tensor grad_gates_x, Tensor grad_gates_h, Tensor grad_h)");

    // lstm_scan and gru_scan side by side; neither sees the other
    m.def(
        "pair_scan(Tensor lstm_gates_x, Tensor gru_gates_x, Tensor h_lstm, Tensor c_lstm, Tensor h_gru,"
        " Tensor weight_hh_lstm, Tensor bias_hh_lstm, Tensor weight_hh_gru, Tensor bias_hh_gru, Tensor? "
        "lengths,"
        " int keep) -> (Tensor out_lstm, Tensor out_gru, Tensor h_lstm_n, Tensor c_lstm_n, Tensor h_gru_n,"
        " Tensor lstm_gates, Tensor cells, Tensor gru_gates)");
    m.def(
        "pair_scan_backward(Tensor? grad_out_lstm, Tensor? grad_out_gru, Tensor? grad_h_lstm_n,"
        " Tensor? grad_c_lstm_n, Tensor? grad_h_gru_n, Tensor lstm_gates, Tensor cells, Tensor gru_gates,"
        " Tensor out_gru, Tensor c_lstm, Tensor h_gru, Tensor weight_hh_lstm, Tensor weight_hh_gru, Tensor? "
        "lengths)"
        " -> (Tensor grad_lstm_gates, Tensor grad_gru_gates_x, Tensor grad_gru_gates_h, Tensor grad_h_lstm,"
        " Tensor grad_c_lstm, Tensor grad_h_gru)");

    // Scans of several cells side by side, each of its own T: what a wavefront over a stack has under way. An
    // LSTM's weight_hh is [4H, H], a GRU's [3H, H]. c, c_n and cells: of the LSTMs; lengths: none, or one per
    // cell
    m.def(
        "wave_scan(Tensor[] gates_x, Tensor[] h, Tensor[] c, Tensor[] weight_hh, Tensor[] bias_hh, Tensor[] "
        "lengths, int keep)"
        " -> (Tensor[] output, Tensor[] h_n, Tensor[] c_n, Tensor[] gates, Tensor[] cells)");
    // grad_gates_x: of the GRUs; an LSTM's equals its grad_gates_h
    m.def(
        "wave_scan_backward(Tensor[] grad_output, Tensor[] grad_h_n, Tensor[] grad_c_n, Tensor[] gates,"
        " Tensor[] cells, Tensor[] c, Tensor[] output, Tensor[] h, Tensor[] weight_hh, Tensor[] lengths)"
        " -> (Tensor[] grad_gates_x, Tensor[] grad_gates_h, Tensor[] grad_h, Tensor[] grad_c)");

    // The kept gates [T, B, 4H] again, from all steps' sums: gates_x + W_hh h of an LSTM (bias_hh is added
    // here), gates_x and W_hh h + b_hh of a GRU
    m.def("lstm_gates(Tensor sums, Tensor bias_hh) -> Tensor");
    m.def("gru_gates(Tensor gates_x, Tensor gates_h) -> Tensor");

    // index [T, B, K] int64, table [R, G] -> [T, B, G]: the sum of K rows, the first layer's gates from
    // tokens
    m.def("lookup(Tensor index, Tensor table) -> Tensor");
    // -> the gradient of the table [rows, G], float32
    m.def("lookup_backward(Tensor grad_out, Tensor index, int rows) -> Tensor");
}
