#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace melodia::engine {
namespace {

constexpr int64_t kChunkRows = 256;  // rows that `advance` takes at once
constexpr int64_t kShareFrom =
    96 << 10;  // bytes of weights in a phase from which threads are worth their trouble

// A sum in a fixed order that compilers can vectorise.
template <class F>
float sum_of(int64_t n, F&& f) {
    float parts[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int64_t j = 0; j < 16; ++j) parts[j] += f(i + j);
    for (; i < n; ++i) parts[i % 16] += f(i);
    for (int64_t half = 8; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) parts[j] += parts[j + half];
    return parts[0];
}

}  // namespace

Lanes::Lanes(Engine& engine, int64_t count) : engine_(engine), plan_(engine.plan), B_(count) {
    if (count < 1 || count > (1 << 16))
        throw std::invalid_argument("sessions must be 1 to 65536 (received " + std::to_string(count) + ")");
    for (const Level& level : plan_.levels) {
        const auto cells = static_cast<int64_t>(level.cells.size());
        layers_.push_back({cells, arena_.take<float>(B_ * cells * plan_.Hp), nullptr});
        if (level.cells[0].lstm) layers_.back().c = arena_.take<float>(B_ * plan_.Hp);
    }
    if (plan_.context > 0)
        context_ = arena_.take<float>(B_ * static_cast<int64_t>(plan_.levels[0].cells.size()) * 4 * plan_.Hp);
    const Encoder& encoder = plan_.encoder;
    for (const Encoder::Level& level : encoder.levels) {
        encoder_.push_back({1, arena_.take<float>(B_ * encoder.Ep), nullptr});
        if (level.cells[0].lstm) encoder_.back().c = arena_.take<float>(B_ * encoder.Ep);
    }
    if (!encoder.reads()) return;
    blocks_.resize(static_cast<size_t>(B_));
    for (int64_t b = 0; b < B_; ++b) {
        blocks_[b].summary.resize(static_cast<size_t>(2 * encoder.E));
        share(b, encoder.start);
    }
}

void Lanes::advance(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all) {
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    if (T < 1) throw std::invalid_argument("at least one step is needed");
    plan_.check_steps(T * B_, tokens, sides);
    std::unique_lock<std::mutex> lock(engine_.team.mutex(), std::try_to_lock);
    alone_ = !lock.owns_lock();
    const int64_t steps = std::max<int64_t>(1, kChunkRows / B_);
    for (int64_t t = 0, n; t < T; t += n) {
        n = std::min(steps, T - t);
        if (plan_.encoder.reads()) n = listen(n, tokens + t * B_, sides + t * B_ * S);
        float* out = logits == nullptr ? nullptr
                     : all             ? logits + t * B_ * plan_.V
                     : t + n == T      ? logits
                                       : nullptr;
        chunk(n, tokens + t * B_, sides + t * B_ * S, out, all);
    }
}

void Lanes::chunk(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all) {
    const int64_t rows = T * B_, Hp = plan_.Hp;
    const float* x = plan_.folded ? nullptr : embed(rows, tokens, sides, embedded_);
    const float* below = nullptr;
    for (size_t i = 0; i < plan_.levels.size(); ++i) {
        float* y = outputs_[i % 2].get(rows * Hp);
        level(i, T, tokens, sides, x, below, y);
        below = y;
        const bool last = i + 1 == plan_.levels.size();
        x = last && logits == nullptr ? y : normalise(plan_.levels[i].norm, plan_.H, y, Hp, rows, normed_);
    }
    if (logits == nullptr) return;
    const int64_t first = all ? 0 : rows - B_, wanted = rows - first;
    x += first * Hp;
    int64_t stride = Hp;
    if (plan_.head_projection.count > 0) {
        float* z = joined_.get(wanted * plan_.Dp);
        project(plan_.head_projection, nullptr, x, stride, wanted, z, plan_.Dp, plan_.Dp);
        x = z;
        stride = plan_.Dp;
    }
    project(plan_.head, plan_.head_bias, x, stride, wanted, logits, plan_.V, plan_.V);
}

// The sum of the embeddings of each row, [rows][Dp].
const float* Lanes::embed(int64_t rows, const int32_t* tokens, const int32_t* sides,
                          Buffer<float>& out) const {
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    float* sum = out.get(rows * plan_.Dp);
    for (int64_t r = 0; r < rows; ++r) {
        float* row = sum + r * plan_.Dp;
        std::copy_n(plan_.embeddings[0] + tokens[r] * plan_.Dp, plan_.Dp, row);
        for (int64_t s = 0; s < S; ++s)
            kernels().add(plan_.embeddings[1 + s] + sides[r * S + s] * plan_.Dp, plan_.Dp, row);
    }
    return sum;
}

// A scan under way: `scan`'s arguments, and what its parts hand to each other.
struct Lanes::Scan {
    const std::vector<Cell>& cells;
    const Source* sources;
    int64_t T, B;
    float* steps;
    float* const* c;
    float* gates[2] = {};   // of each cell [T, B][tiles][G][16]
    Codes x_codes[2] = {};  // of all rows
    Codes h_codes[2] = {};  // of the rows of one step

    int64_t count() const { return static_cast<int64_t>(cells.size()); }
    int64_t Hp() const { return cells[0].Hp; }
    int64_t width() const { return count() * Hp(); }
};

// What the input says of a tile's gates, for all rows.
void Lanes::input_gates(const Scan& a, int64_t tile) const {
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    const Kernels& table = kernels();
    const int64_t rows = a.T * a.B;
    for (int64_t k = 0; k < a.count(); ++k) {
        const Cell& cell = a.cells[k];
        const Source& from = a.sources[k];
        const int64_t span = cell.width(), whole = cell.gates * a.Hp();
        for (int64_t r = 0; r < rows; ++r) {
            float* out = a.gates[k] + r * whole + tile * span;
            std::memcpy(out, cell.bias + tile * span, sizeof(float) * span);
            if (!cell.tables.empty()) {
                table.add(cell.tables[0] + from.tokens[r] * whole + tile * span, span, out);
                for (int64_t s = 0; s < S; ++s)
                    table.add(cell.tables[1 + s] + from.sides[r * S + s] * whole + tile * span, span, out);
            }
            if (from.share != nullptr)
                table.add(from.share + r % a.B * from.share_stride + tile * span, span, out);
        }
        if (cell.input.count == 0) continue;
        for (int64_t r = 0; r < rows; r += kMaxRows) {
            float* out[kMaxRows];
            const int64_t M = std::min(kMaxRows, rows - r);
            for (int64_t m = 0; m < M; ++m) out[m] = a.gates[k] + (r + m) * whole + tile * span;
            product(cell.input, tile, a.x_codes[k].from(r), M, out);
        }
    }
}

// The recurrence of step t in a tile, of the first n rows.
void Lanes::recur(const Scan& a, int64_t tile, int64_t t, int64_t n) const {
    const Kernels& table = kernels();
    const int64_t Hp = a.Hp(), width = a.width(), unit = tile * kTile;
    for (int64_t k = 0; k < a.count(); ++k) {
        const Cell& cell = a.cells[k];
        const int64_t span = cell.width(), whole = cell.gates * Hp;
        const float* before = a.steps + t * a.B * width + k * Hp + unit;
        float* after = a.steps + (t + 1) * a.B * width + k * Hp + unit;
        float* gates = a.gates[k] + t * a.B * whole + tile * span;
        for (int64_t b = 0; b < n; b += kMaxRows) {
            const int64_t M = std::min(kMaxRows, n - b);
            alignas(64) float inside[kMaxRows][3 * kTile];
            float* out[kMaxRows];
            for (int64_t m = 0; m < M; ++m) {
                out[m] = cell.lstm ? gates + (b + m) * whole : inside[m];
                if (!cell.lstm) std::memcpy(inside[m], cell.bias_n + tile * span, sizeof(float) * span);
            }
            product(cell.recurrent, tile, a.h_codes[k].from(b), M, out);
            for (int64_t m = 0; m < M; ++m) {
                float* h = after + (b + m) * width;
                if (cell.lstm) {
                    float* kept = a.c[k] + (b + m) * Hp + unit;
                    table.lstm(out[m], kept, kept, h);
                } else {
                    table.gru(gates + (b + m) * whole, inside[m], before + (b + m) * width, h);
                }
            }
        }
    }
}

// Runs cells of one size, independent of one another, over T steps of B rows.
//
// steps [T + 1][B][cells][Hp]: h before the first step, which the caller fills in, then behind each. c: for
// each cell [B][Hp], or null of a GRU; in place. live: null, or [T] falling numbers; of step t only the first
// live[t] rows are run, the others' c stays and their h is not made.
void Lanes::scan(const std::vector<Cell>& cells, const Source* sources, int64_t T, int64_t B,
                 const int64_t* live, float* steps, float* const* c) {
    Scan a{cells, sources, T, B, steps, c};
    const int64_t Hp = a.Hp(), tiles = Hp / kTile, rows = T * B, width = a.width();
    int64_t input_bytes = 0, recurrent_bytes = 0;
    for (int64_t k = 0; k < a.count(); ++k) {
        const Cell& cell = cells[k];
        const Source& from = sources[k];
        input_bytes += cell.input.stride * tiles * padded(rows, kMaxRows) / kMaxRows;
        recurrent_bytes += cell.recurrent.stride * tiles * padded(B, kMaxRows) / kMaxRows;
        a.gates[k] = gates_[k].get(rows * cell.gates * Hp);
        if (cell.input.count == 0) continue;
        a.x_codes[k] = k > 0 && from.x == sources[0].x
                           ? a.x_codes[0]
                           : encode(codes_x_[k], from.x, from.stride, cell.input.K, rows);
    }
    if (T > 1) run(tiles, input_bytes + 64 * rows * tiles, [&](int64_t tile) { input_gates(a, tile); });
    for (int64_t t = 0; t < T; ++t) {
        const int64_t n = live == nullptr ? B : live[t];
        for (int64_t k = 0; k < a.count(); ++k)
            a.h_codes[k] = encode(codes_h_[k], steps + t * B * width + k * Hp, width, Hp, n);
        run(tiles, recurrent_bytes + (T > 1 ? 0 : input_bytes), [&](int64_t tile) {
            if (T == 1) input_gates(a, tile);
            recur(a, tile, t, n);
        });
    }
}

void Lanes::level(size_t index, int64_t T, const int32_t* tokens, const int32_t* sides, const float* x,
                  const float* below, float* y) {
    const Level& level = plan_.levels[index];
    const Layer& layer = layers_[index];
    const int64_t B = B_, rows = T * B, Hp = plan_.Hp, width = layer.cells * Hp;
    float* steps = steps_.get((T + 1) * B * width);
    std::memcpy(steps, layer.h, sizeof(float) * B * width);
    Source sources[2];
    for (int64_t k = 0; k < layer.cells; ++k) {
        sources[k] = {tokens, sides, x, index == 0 ? plan_.Dp : Hp, nullptr, layer.cells * 4 * Hp};
        if (index == 0 && plan_.context > 0) sources[k].share = context_ + k * 4 * Hp;
    }
    float* const c[2] = {layer.c, nullptr};  // a pair's LSTM comes first
    scan(level.cells, sources, T, B, nullptr, steps, c);
    std::memcpy(layer.h, steps + T * B * width, sizeof(float) * B * width);

    const float* out = steps + B * width;  // [rows][cells Hp]
    const bool joins = level.projection.count > 0;
    float* mixed = nullptr;
    if (joins) {
        mixed = joined_.get(rows * Hp);
        project(level.projection, level.projection_bias, out, width, rows, mixed, Hp, plan_.H);
    }
    for (int64_t r = 0; r < rows; ++r) {
        const float *h = out + r * width, *m = joins ? mixed + r * Hp : nullptr;
        float* to = y + r * Hp;
        if (level.combine == Combine::single) {
            std::memcpy(to, h, sizeof(float) * Hp);
        } else if (level.combine == Combine::sum) {
            for (int64_t j = 0; j < Hp; ++j) to[j] = h[j] + h[Hp + j];
        } else if (level.combine == Combine::concat) {
            std::memcpy(to, m, sizeof(float) * Hp);
        } else {
            for (int64_t j = 0; j < Hp; ++j) {
                const float gate = 1.0f / (1.0f + std::exp(-m[j]));
                to[j] = h[Hp + j] + gate * (h[j] - h[Hp + j]);
            }
        }
        if (level.residual) kernels().add(below + r * Hp, Hp, to);
    }
}

// out [rows][columns of out_stride] = panels x + bias; what lies behind `columns` is left at 0.
void Lanes::project(const Panels& panels, const float* bias, const float* x, int64_t stride, int64_t rows,
                    float* out, int64_t out_stride, int64_t columns) {
    const Codes codes = encode(codes_x_[0], x, stride, panels.K, rows);
    const int64_t span = panels.rows();
    run(panels.count, panels.stride * panels.count * padded(rows, kMaxRows) / kMaxRows, [&](int64_t p) {
        for (int64_t r = 0; r < rows; r += kMaxRows) {
            const int64_t M = std::min(kMaxRows, rows - r);
            alignas(64) float sums[kMaxRows][kMaxGroups * kTile] = {};
            float* at[kMaxRows];
            for (int64_t m = 0; m < M; ++m) {
                if (bias != nullptr) std::memcpy(sums[m], bias + p * span, sizeof(float) * span);
                at[m] = sums[m];
            }
            product(panels, p, codes.from(r), M, at);
            for (int64_t m = 0; m < M; ++m) {
                const int64_t n = std::min(span, std::min(columns, out_stride) - p * span);
                float* to = out + (r + m) * out_stride + p * span;
                std::memcpy(to, sums[m], sizeof(float) * n);
                if (p + 1 == panels.count) std::fill(to + n, out + (r + m + 1) * out_stride, 0.0f);
            }
        }
    });
}

template <class Work>
void Lanes::run(int64_t tiles, int64_t bytes, Work&& work) {
    if (alone_ || bytes < kShareFrom) {
        for (int64_t tile = 0; tile < tiles; ++tile) work(tile);
    } else {
        engine_.team.run(tiles, work);
    }
}

void Lanes::product(const Panels& panels, int64_t panel, const Codes& codes, int64_t M,
                    float* const* out) const {
    const void* rows[kMaxRows];
    for (int64_t m = 0; m < M; ++m) rows[m] = codes.data + m * codes.stride;
    Product p{};
    p.K = panels.K;
    p.M = M;
    p.NV = panels.NV;
    p.panel = panels.data + panel * panels.stride;
    p.x = rows;
    p.out = out;
    p.add = true;
    if (panels.weights == Weights::int8) {
        p.scale = panels.scale + panel * panels.rows();
        p.offset = panels.offset + panel * panels.rows();
        p.x_scale = codes.scale;
    }
    kernels().product(panels.weights, p);
}

// Rows x [rows][stride], of which K numbers count, in the form of the weights.
Lanes::Codes Lanes::encode(CodeBuffer& buffer, const float* x, int64_t stride, int64_t K,
                           int64_t rows) const {
    const Kernels& table = kernels();
    if (plan_.weights == Weights::fp32)
        return {reinterpret_cast<const char*>(x), stride * static_cast<int64_t>(sizeof(float)), nullptr};
    if (plan_.weights == Weights::bf16) {
        const int64_t bytes = 2 * K;
        char* data = buffer.data.get(rows * bytes);
        for (int64_t r = 0; r < rows; ++r)
            table.halve(x + r * stride, K, reinterpret_cast<uint16_t*>(data + r * bytes));
        return {data, bytes, nullptr};
    }
    char* data = buffer.data.get(rows * K);
    float* scale = buffer.scale.get(rows);
    for (int64_t r = 0; r < rows; ++r)
        scale[r] = table.quantise(x + r * stride, K, reinterpret_cast<uint8_t*>(data + r * K));
    return {data, K, scale};
}

// Rows [stride] of `units` numbers, normalised.
const float* Lanes::normalise(const Norm& norm, int64_t units, const float* x, int64_t stride, int64_t rows,
                              Buffer<float>& out) const {
    if (norm.weight == nullptr) return x;
    float* y = out.get(rows * stride);
    for (int64_t r = 0; r < rows; ++r, x += stride) {
        const auto n = static_cast<float>(units);
        const float mean = sum_of(units, [&](int64_t i) { return x[i]; }) / n;
        const float variance = sum_of(units, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / n;
        const float scale = 1.0f / std::sqrt(variance + norm.eps);
        for (int64_t i = 0; i < stride; ++i)
            y[r * stride + i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
    }
    return y;
}

void Lanes::read(int64_t lane, float* state) const {
    const int64_t H = plan_.H, Hp = plan_.Hp;
    for (size_t i = 0; i < layers_.size(); ++i) {
        for (int64_t k = 0; k < layers_[i].cells; ++k) {
            state = std::copy_n(layers_[i].h + (lane * layers_[i].cells + k) * Hp, H, state);
            if (plan_.levels[i].cells[k].lstm) state = std::copy_n(layers_[i].c + lane * Hp, H, state);
        }
    }
    if (plan_.encoder.reads()) read_block_state(lane, state);
}

void Lanes::write(int64_t lane, const float* state) {
    const int64_t H = plan_.H, Hp = plan_.Hp;
    plan_.check_state(state);
    for (size_t i = 0; i < layers_.size(); ++i) {
        for (int64_t k = 0; k < layers_[i].cells; ++k, state += H) {
            std::copy_n(state, H, layers_[i].h + (lane * layers_[i].cells + k) * Hp);
            if (plan_.levels[i].cells[k].lstm) std::copy_n(state += H, H, layers_[i].c + lane * Hp);
        }
    }
    if (plan_.encoder.reads()) write_block_state(lane, state);
}

}  // namespace melodia::engine
