// Single steps, shared out to threads: for step_ops.cpp and hybrid_ops.cpp.
#pragma once

#include "cpu/tensors.h"

namespace melodia::cpu {

// in_parallel over pieces of so many multiplications each. For fewer than 2^17 a second thread costs more
// than it brings.
template <class F>
void share_out(int64_t count, int64_t multiplications, const F& f) {
    constexpr int64_t least = 1 << 17;
    const int64_t each = std::max<int64_t>(1, multiplications);
    in_parallel(count, (least + each - 1) / each, f);
}

// One step of a cell with G gates: 4 of an LSTM, 3 of a GRU.
inline void run_step(const Step& step, int64_t G) {
    const int64_t panel = kernels().unit_panel;
    share_out(round_up(step.H, panel) / panel, step.B * G * step.H * panel, [&](int64_t begin, int64_t end) {
        (G == 4 ? kernels().lstm_step : kernels().gru_step)(step, begin, end);
    });
}

}  // namespace melodia::cpu
