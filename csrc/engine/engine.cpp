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
    if (count < 1 || count > (1 << 16)) throw std::invalid_argument("sessions must be 1 to 65536");
    for (const Level& level : plan_.levels) {
        const auto cells = static_cast<int64_t>(level.cells.size());
        layers_.push_back({cells, arena_.take<float>(B_ * cells * plan_.Hp), nullptr});
        if (level.cells[0].lstm) layers_.back().c = arena_.take<float>(B_ * plan_.Hp);
    }
    if (plan_.context > 0)
        context_ = arena_.take<float>(B_ * static_cast<int64_t>(plan_.levels[0].cells.size()) * 4 * plan_.Hp);
}

void Lanes::advance(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all) {
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    if (T < 1) throw std::invalid_argument("at least one step is needed");
    for (int64_t r = 0; r < T * B_; ++r) {
        if (tokens[r] < 0 || tokens[r] >= plan_.V)
            throw std::invalid_argument("token " + std::to_string(tokens[r]) + " is not in a vocabulary of " +
                                        std::to_string(plan_.V));
    }
    for (int64_t r = 0; r < T * B_ * S; ++r) {
        if (sides[r] < 0 || sides[r] >= plan_.side_sizes[r % S])
            throw std::invalid_argument("side input " + std::to_string(r % S) + " must lie from 0 to " +
                                        std::to_string(plan_.side_sizes[r % S] - 1) + " (received " +
                                        std::to_string(sides[r]) + ")");
    }
    std::unique_lock<std::mutex> lock(engine_.team.mutex(), std::try_to_lock);
    alone_ = !lock.owns_lock();
    const int64_t steps = std::max<int64_t>(1, kChunkRows / B_);
    for (int64_t t = 0; t < T; t += steps) {
        const int64_t n = std::min(steps, T - t);
        float* out = logits == nullptr ? nullptr
                     : all             ? logits + t * B_ * plan_.V
                     : t + n == T      ? logits
                                       : nullptr;
        chunk(n, tokens + t * B_, sides + t * B_ * S, out, all);
    }
}

void Lanes::chunk(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all) {
    const int64_t rows = T * B_, Hp = plan_.Hp;
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    const float* x = nullptr;
    if (!plan_.folded) {
        float* sum = normed_.get(rows * std::max(plan_.Dp, Hp));
        for (int64_t r = 0; r < rows; ++r) {
            float* out = sum + r * plan_.Dp;
            std::copy_n(plan_.embeddings[0] + tokens[r] * plan_.Dp, plan_.Dp, out);
            for (int64_t s = 0; s < S; ++s)
                kernels().add(plan_.embeddings[1 + s] + sides[r * S + s] * plan_.Dp, plan_.Dp, out);
        }
        x = sum;
    }
    const float* below = nullptr;
    for (size_t i = 0; i < plan_.levels.size(); ++i) {
        float* y = outputs_[i % 2].get(rows * Hp);
        level(i, T, tokens, sides, x, below, y);
        below = y;
        const bool last = i + 1 == plan_.levels.size();
        x = last && logits == nullptr ? y : normalise(plan_.levels[i].norm, y, rows, normed_);
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

void Lanes::level(size_t index, int64_t T, const int32_t* tokens, const int32_t* sides, const float* x,
                  const float* below, float* y) {
    const Level& level = plan_.levels[index];
    const Layer& layer = layers_[index];
    const int64_t B = B_, rows = T * B, Hp = plan_.Hp, tiles = Hp / kTile, width = layer.cells * Hp;
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    const int64_t x_stride = index == 0 ? plan_.Dp : Hp;
    const bool joins = level.projection.count > 0;
    const bool bottom_context = index == 0 && plan_.context > 0;
    const Kernels& table = kernels();

    Codes x_codes;
    if (level.cells[0].input.count > 0)
        x_codes = quantise(codes_x_, scales_x_, x, x_stride, level.cells[0].input.K, rows);
    float* gates[2];
    for (size_t k = 0; k < level.cells.size(); ++k)
        gates[k] = gates_[k].get(rows * level.cells[k].gates * Hp);
    float* steps = steps_.get((T + 1) * B * width);  // h before the first step, then behind each
    std::memcpy(steps, layer.h, sizeof(float) * B * width);

    // What the input says of a tile's gates, for all rows.
    auto inputs = [&](int64_t tile) {
        for (size_t k = 0; k < level.cells.size(); ++k) {
            const Cell& cell = level.cells[k];
            const int64_t span = cell.width(), whole = cell.gates * Hp;
            for (int64_t r = 0; r < rows; ++r) {
                float* out = gates[k] + r * whole + tile * span;
                std::memcpy(out, cell.bias + tile * span, sizeof(float) * span);
                if (!cell.tables.empty()) {
                    table.add(cell.tables[0] + tokens[r] * whole + tile * span, span, out);
                    for (int64_t s = 0; s < S; ++s)
                        table.add(cell.tables[1 + s] + sides[r * S + s] * whole + tile * span, span, out);
                }
                if (bottom_context)
                    table.add(
                        context_ + ((r % B) * layer.cells + static_cast<int64_t>(k)) * 4 * Hp + tile * span,
                        span, out);
            }
            if (cell.input.count == 0) continue;
            for (int64_t r = 0; r < rows; r += kMaxRows) {
                float* out[kMaxRows];
                const int64_t M = std::min(kMaxRows, rows - r);
                for (int64_t m = 0; m < M; ++m) out[m] = gates[k] + (r + m) * whole + tile * span;
                product(cell.input, tile, x, x_stride, x_codes, r, M, out);
            }
        }
    };

    Codes h_codes;
    // The recurrence of step t in a tile.
    auto recur = [&](int64_t tile, int64_t t) {
        for (size_t k = 0; k < level.cells.size(); ++k) {
            const Cell& cell = level.cells[k];
            const int64_t span = cell.width(), whole = cell.gates * Hp;
            const float* before = steps + t * B * width + static_cast<int64_t>(k) * Hp;
            float* after = steps + (t + 1) * B * width + static_cast<int64_t>(k) * Hp;
            // The codes of h are [cells][B][Hp].
            Codes codes = h_codes;
            if (codes.data != nullptr) {
                codes.data += static_cast<int64_t>(k) * B * Hp;
                codes.scale += static_cast<int64_t>(k) * B;
            }
            for (int64_t b = 0; b < B; b += kMaxRows) {
                const int64_t M = std::min(kMaxRows, B - b);
                alignas(64) float inside[kMaxRows][3 * kTile];
                float* out[kMaxRows];
                for (int64_t m = 0; m < M; ++m) {
                    out[m] = gates[k] + (t * B + b + m) * whole + tile * span;
                    if (!cell.lstm) {
                        std::memcpy(inside[m], cell.bias_n + tile * span, sizeof(float) * span);
                        out[m] = inside[m];
                    }
                }
                product(cell.recurrent, tile, before, width, codes, b, M, out);
                for (int64_t m = 0; m < M; ++m) {
                    const int64_t unit = tile * kTile;
                    float* h = after + (b + m) * width + unit;
                    if (cell.lstm) {
                        float* c = layer.c + (b + m) * Hp + unit;
                        table.lstm(out[m], c, c, h);
                    } else {
                        table.gru(gates[k] + (t * B + b + m) * whole + tile * span, inside[m],
                                  before + (b + m) * width + unit, h);
                    }
                }
            }
        }
        if (joins) return;
        for (int64_t b = 0; b < B; ++b) {
            const float* h = steps + ((t + 1) * B + b) * width + tile * kTile;
            const int64_t at = (t * B + b) * Hp + tile * kTile;
            for (int64_t j = 0; j < kTile; ++j) y[at + j] = layer.cells == 2 ? h[j] + h[Hp + j] : h[j];
            if (level.residual) table.add(below + at, kTile, y + at);
        }
    };

    int64_t input_bytes = 0, recurrent_bytes = 0;
    for (const Cell& cell : level.cells) {
        input_bytes += cell.input.stride * tiles * padded(rows, kMaxRows) / kMaxRows;
        recurrent_bytes += cell.recurrent.stride * tiles * padded(B, kMaxRows) / kMaxRows;
    }
    if (T > 1) run(tiles, input_bytes + 64 * rows * tiles, inputs);
    for (int64_t t = 0; t < T; ++t) {
        if (plan_.weights == Weights::int8) {
            uint8_t* codes = codes_h_.get(layer.cells * B * Hp);
            float* scale = scales_h_.get(layer.cells * B);
            for (int64_t k = 0; k < layer.cells; ++k)
                for (int64_t b = 0; b < B; ++b)
                    scale[k * B + b] =
                        table.quantise(steps + (t * B + b) * width + k * Hp, Hp, codes + (k * B + b) * Hp);
            h_codes = {codes, scale};
        }
        run(tiles, recurrent_bytes + (T > 1 ? 0 : input_bytes), [&](int64_t tile) {
            if (T == 1) inputs(tile);
            recur(tile, t);
        });
    }
    std::memcpy(layer.h, steps + T * B * width, sizeof(float) * B * width);
    if (!joins) return;

    const float* pairs = steps + B * width;  // [rows][2 Hp]
    float* mixed = joined_.get(rows * Hp);
    project(level.projection, level.projection_bias, pairs, width, rows, mixed, Hp, plan_.H);
    for (int64_t r = 0; r < rows; ++r) {
        const float *h = pairs + r * width, *m = mixed + r * Hp;
        float* out = y + r * Hp;
        if (level.combine == Combine::concat) {
            std::copy_n(m, Hp, out);
        } else {
            for (int64_t j = 0; j < Hp; ++j) {
                const float gate = 1.0f / (1.0f + std::exp(-m[j]));
                out[j] = h[Hp + j] + gate * (h[j] - h[Hp + j]);
            }
        }
        if (level.residual) table.add(below + r * Hp, Hp, out);
    }
}

// out [rows][columns of out_stride] = panels x + bias; what lies behind `columns` is left at 0.
void Lanes::project(const Panels& panels, const float* bias, const float* x, int64_t stride, int64_t rows,
                    float* out, int64_t out_stride, int64_t columns) {
    const Codes codes = quantise(codes_x_, scales_x_, x, stride, panels.K, rows);
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
            product(panels, p, x, stride, codes, r, M, at);
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

void Lanes::product(const Panels& panels, int64_t panel, const float* x, int64_t stride, const Codes& codes,
                    int64_t row, int64_t M, float* const* out) const {
    const float* rows[kMaxRows];
    const uint8_t* bytes[kMaxRows];
    for (int64_t m = 0; m < M; ++m) {
        rows[m] = x + (row + m) * stride;
        bytes[m] = codes.data + (row + m) * panels.K;
    }
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
        p.x_u8 = bytes;
        p.x_scale = codes.scale + row;
    }
    kernels().product(panels.weights, p);
}

Lanes::Codes Lanes::quantise(Buffer<uint8_t>& codes, Buffer<float>& scales, const float* x, int64_t stride,
                             int64_t K, int64_t rows) const {
    if (plan_.weights != Weights::int8) return {};
    Codes made{codes.get(rows * K), scales.get(rows)};
    for (int64_t r = 0; r < rows; ++r)
        made.scale[r] = kernels().quantise(x + r * stride, K, made.data + r * K);
    return made;
}

const float* Lanes::normalise(const Norm& norm, const float* x, int64_t rows, Buffer<float>& out) const {
    if (norm.weight == nullptr) return x;
    const int64_t H = plan_.H, Hp = plan_.Hp;
    float* y = out.get(rows * std::max(plan_.Dp, Hp));
    for (int64_t r = 0; r < rows; ++r, x += Hp) {
        const float mean = sum_of(H, [&](int64_t i) { return x[i]; }) / static_cast<float>(H);
        const float variance =
            sum_of(H, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / static_cast<float>(H);
        const float scale = 1.0f / std::sqrt(variance + norm.eps);
        for (int64_t i = 0; i < Hp; ++i)
            y[r * Hp + i] = (x[i] - mean) * scale * norm.weight[i] + norm.bias[i];
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
}

void Lanes::write(int64_t lane, const float* state) {
    const int64_t H = plan_.H, Hp = plan_.Hp;
    for (int64_t i = 0; i < plan_.state_size; ++i) {
        if (!std::isfinite(state[i])) throw std::invalid_argument("a state's numbers must be finite");
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
        for (int64_t k = 0; k < layers_[i].cells; ++k, state += H) {
            std::copy_n(state, H, layers_[i].h + (lane * layers_[i].cells + k) * Hp);
            if (plan_.levels[i].cells[k].lstm) std::copy_n(state += H, H, layers_[i].c + lane * Hp);
        }
    }
}

void Lanes::condition(int64_t lane, const float* summary) {
    if (plan_.context == 0) throw std::invalid_argument("this network reads no summary");
    const int64_t K = plan_.context_padded, Hp = plan_.Hp;
    const Level& bottom = plan_.levels[0];
    float* x = normed_.get(std::max(K, std::max(plan_.Dp, Hp)));
    std::fill_n(x, K, 0.0f);
    std::copy_n(summary, plan_.context, x);
    const Codes codes = quantise(codes_x_, scales_x_, x, K, K, 1);
    for (size_t k = 0; k < bottom.cells.size(); ++k) {
        const Cell& cell = bottom.cells[k];
        float* gates =
            context_ + (lane * static_cast<int64_t>(bottom.cells.size()) + static_cast<int64_t>(k)) * 4 * Hp;
        std::fill_n(gates, cell.gates * Hp, 0.0f);
        for (int64_t tile = 0; tile < Hp / kTile; ++tile) {
            float* out = gates + tile * cell.width();
            product(cell.context, tile, x, K, codes, 0, 1, &out);
        }
    }
}

}  // namespace melodia::engine
