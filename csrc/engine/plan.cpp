// Reads a description and packs the weights.
//
// Whole numbers: magic, version, weights (0 fp32, 1 bf16, 2 int8), V, H, D, context columns, folded, S, the S
// sizes, levels, and for each level: combine (0 single, 1 concat, 2 sum, 3 gated), its cell if single (0
// LSTM, 1 GRU; else 0), residual, norm; at last whether the head has a projection.
//
// Floats: folded, for each cell of the bottom: token table [V, G H] = E W_ih^T, then one [size, G H] per side
// input; else the embeddings [V, D] and [size, D]. For each level and cell: W_ih [G H, D or H] (unless the
// bottom's is folded), the bottom's W_context [G H, context] if there is a context, W_hh [G H, H], b_ih [G
// H], b_hh [G H]; then the projection [H, 2H] and its bias [H] of concat and gated; then the norm's weight
// [H], bias [H] and epsilon. At last the head's projection [D, H], weight [V, D or H] and bias [V].
#include "engine/plan.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace melodia::engine {

void Arena::Free::operator()(void* memory) const { std::free(memory); }

void* Arena::bytes(int64_t count) {
    constexpr int64_t line = 64, huge = int64_t{2} << 20;
    const int64_t unit = count >= huge / 2 ? huge : line;
    const int64_t size = std::max(line, padded(count, unit));
    void* memory = std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(size));
    if (memory == nullptr) throw std::bad_alloc();
    blocks_.emplace_back(memory);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (unit == huge) madvise(memory, static_cast<size_t>(size), MADV_HUGEPAGE);  // a hint only
#endif
    std::memset(memory, 0, static_cast<size_t>(size));
    size_ += size;
    return memory;
}

namespace {

constexpr int64_t kMagic = 0x4D454C4F44494131, kVersion = 1;
constexpr int64_t kMaxVocabulary = 1 << 20, kMaxHidden = 1 << 14, kMaxLevels = 128, kMaxSides = 16;
constexpr int64_t kHeadGroups = kMaxGroups;  // NV of projections and the head

struct Matrix {
    const float* data;
    int64_t rows, columns;
};

// What is left of the two rows.
class Reader {
  public:
    Reader(const int64_t* ints, int64_t int_count, const float* floats, int64_t float_count)
        : ints_(ints), ints_end_(ints + int_count), floats_(floats), floats_end_(floats + float_count) {}

    int64_t number(const char* name, int64_t low, int64_t high) {
        if (ints_ == ints_end_) throw PlanError(std::string("the plan ends before ") + name);
        const int64_t value = *ints_++;
        if (value < low || value > high) {
            throw PlanError(std::string(name) + " must lie from " + std::to_string(low) + " to " +
                            std::to_string(high) + " (received " + std::to_string(value) + ")");
        }
        return value;
    }

    Matrix matrix(const char* name, int64_t rows, int64_t columns) {
        const int64_t count = rows * columns;  // at most 2^20 * 2^16
        if (count > floats_end_ - floats_)
            throw PlanError(std::string("the plan's numbers end before ") + name);
        const Matrix found{floats_, rows, columns};
        for (int64_t i = 0; i < count; ++i) {
            if (!std::isfinite(floats_[i])) throw PlanError(std::string(name) + " is not finite");
        }
        floats_ += count;
        return found;
    }

    const float* row(const char* name, int64_t count) { return matrix(name, 1, count).data; }

    void finish() const {
        if (ints_ != ints_end_ || floats_ != floats_end_) throw PlanError("the plan goes on behind its end");
    }

  private:
    const int64_t *ints_, *ints_end_;
    const float *floats_, *floats_end_;
};

uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // to the nearest, ties to even
}

// Packs a matrix. source_row(panel, lane): its row, or -1 for padding; place(column): where it stands in K.
template <class SourceRow, class Place>
Panels pack(Arena& arena, Weights weights, const Matrix& from, int64_t K, int64_t NV, int64_t count,
            SourceRow source_row, Place place) {
    Panels panels;
    panels.weights = weights;
    panels.K = K;
    panels.NV = NV;
    panels.count = count;
    const int64_t rows = NV * kTile;
    const int64_t size = weights == Weights::fp32 ? 4 : weights == Weights::bf16 ? 2 : 1;
    panels.stride = padded(K * rows * size, 64);
    char* data = arena.take<char>(count * panels.stride);
    float* scale = weights == Weights::int8 ? arena.take<float>(count * rows) : nullptr;
    int32_t* offset = weights == Weights::int8 ? arena.take<int32_t>(count * rows) : nullptr;
    panels.data = data;
    panels.scale = scale;
    panels.offset = offset;
    for (int64_t p = 0; p < count; ++p, data += panels.stride) {
        for (int64_t n = 0; n < rows; ++n) {
            const int64_t row = source_row(p, n);
            if (row < 0) continue;
            const float* w = from.data + row * from.columns;
            if (weights == Weights::fp32) {
                for (int64_t c = 0; c < from.columns; ++c)
                    reinterpret_cast<float*>(data)[place(c) * rows + n] = w[c];
            } else if (weights == Weights::bf16) {
                for (int64_t c = 0; c < from.columns; ++c) {
                    const int64_t k = place(c);
                    reinterpret_cast<uint16_t*>(data)[(k / 2 * rows + n) * 2 + k % 2] = to_bf16(w[c]);
                }
            } else {
                float top = 0.0f;
                for (int64_t c = 0; c < from.columns; ++c) top = std::max(top, std::fabs(w[c]));
                const float unit = top > 0.0f ? top / 127.0f : 1.0f;
                int32_t sum = 0;
                for (int64_t c = 0; c < from.columns; ++c) {
                    const int64_t k = place(c);
                    const float whole = std::max(-127.0f, std::min(127.0f, std::nearbyint(w[c] / unit)));
                    reinterpret_cast<int8_t*>(data)[(k / 4 * rows + n) * 4 + k % 4] =
                        static_cast<int8_t>(whole);
                    sum += static_cast<int32_t>(whole);
                }
                scale[p * rows + n] = unit;
                offset[p * rows + n] = 128 * sum;
            }
        }
    }
    return panels;
}

// Rows of a cell's gates [G H] stand in tiles [Hp / 16][G][16].
struct GateRows {
    int64_t H;
    int64_t operator()(int64_t tile, int64_t lane) const {
        const int64_t unit = tile * kTile + lane % kTile;
        return unit < H ? lane / kTile * H + unit : -1;
    }
};

constexpr auto same = [](int64_t c) { return c; };

Panels pack_gates(Plan& plan, const Matrix& from, int64_t K, int64_t gates) {
    return pack(plan.arena, plan.weights, from, K, gates, plan.Hp / kTile, GateRows{plan.H}, same);
}

template <class Place>
Panels pack_rows(Plan& plan, const Matrix& from, int64_t K, Place place) {
    const int64_t rows = kHeadGroups * kTile, total = from.rows;
    auto source = [=](int64_t p, int64_t n) { return p * rows + n < total ? p * rows + n : -1; };
    return pack(plan.arena, plan.weights, from, K, kHeadGroups, padded(total, rows) / rows, source, place);
}

const float* pack_vector(Arena& arena, const float* from, int64_t count, int64_t space) {
    float* out = arena.take<float>(space);
    std::copy_n(from, count, out);
    return out;
}

// Rows of gates [rows, G H] -> [rows][Hp / 16][G][16].
float* tile_gates(Plan& plan, const Matrix& from, int64_t gates) {
    const int64_t width = gates * plan.Hp;
    float* out = plan.arena.take<float>(from.rows * width);
    for (int64_t r = 0; r < from.rows; ++r)
        for (int64_t g = 0; g < gates; ++g)
            for (int64_t unit = 0; unit < plan.H; ++unit)
                out[r * width + (unit / kTile * gates + g) * kTile + unit % kTile] =
                    from.data[r * from.columns + g * plan.H + unit];
    return out;
}

void read_tables(Plan& plan, Reader& reader, Cell& cell) {
    const int64_t columns = cell.gates * plan.H;
    cell.tables.push_back(tile_gates(plan, reader.matrix("the token table", plan.V, columns), cell.gates));
    for (int64_t size : plan.side_sizes)
        cell.tables.push_back(
            tile_gates(plan, reader.matrix("a side input's table", size, columns), cell.gates));
}

void read_cell(Plan& plan, Reader& reader, Cell& cell, bool bottom) {
    const int64_t G = cell.gates, H = plan.H;
    if (!bottom || !plan.folded) {
        const int64_t columns = bottom ? plan.D : H;
        cell.input = pack_gates(plan, reader.matrix("W_ih", G * H, columns), padded(columns), G);
    }
    if (bottom && plan.context > 0)
        cell.context =
            pack_gates(plan, reader.matrix("W_context", G * H, plan.context), plan.context_padded, G);
    cell.recurrent = pack_gates(plan, reader.matrix("W_hh", G * H, H), plan.Hp, G);
    const float* b_ih = reader.row("b_ih", G * H);
    const float* b_hh = reader.row("b_hh", G * H);
    std::vector<float> before(b_ih, b_ih + G * H), inside(static_cast<size_t>(G * H));
    for (int64_t i = 0; i < G * H; ++i) {
        if (cell.lstm || i < 2 * H)
            before[i] += b_hh[i];
        else
            inside[i] = b_hh[i];  // the reset gate scales it
    }
    cell.bias = tile_gates(plan, {before.data(), 1, G * H}, G);
    if (!cell.lstm) cell.bias_n = tile_gates(plan, {inside.data(), 1, G * H}, G);
    plan.step_bytes += (cell.input.stride + cell.recurrent.stride) * (plan.Hp / kTile);
}

Level read_level(Plan& plan, Reader& reader, Combine combine, bool gru, bool residual, bool norm,
                 std::vector<Cell> cells, bool bottom) {
    const int64_t H = plan.H, Hp = plan.Hp;
    Level level;
    level.combine = combine;
    level.cells = std::move(cells);
    if (level.cells.empty()) {
        level.cells.resize(combine == Combine::single ? 1 : 2);
        level.cells.back().lstm = combine == Combine::single && !gru;
        level.cells.back().gates = level.cells.back().lstm ? 4 : 3;
    }
    for (Cell& cell : level.cells) {
        read_cell(plan, reader, cell, bottom);
        plan.state_size += cell.lstm ? 2 * H : H;
    }
    if (combine == Combine::concat || combine == Combine::gated) {
        auto place = [=](int64_t c) { return c < H ? c : c - H + Hp; };
        level.projection = pack_rows(plan, reader.matrix("a projection", H, 2 * H), 2 * Hp, place);
        level.projection_bias = pack_vector(plan.arena, reader.row("a projection's bias", H), H,
                                            level.projection.count * level.projection.rows());
        plan.step_bytes += level.projection.stride * level.projection.count;
    }
    level.residual = residual;
    if (norm) {
        level.norm.weight = pack_vector(plan.arena, reader.row("a norm's weight", H), H, Hp);
        level.norm.bias = pack_vector(plan.arena, reader.row("a norm's bias", H), H, Hp);
        level.norm.eps = *reader.row("a norm's epsilon", 1);
        if (!(level.norm.eps > 0.0f)) throw PlanError("a norm's epsilon must be positive");
    }
    return level;
}

}  // namespace

Plan::Plan(const int64_t* ints, int64_t int_count, const float* floats, int64_t float_count) {
    if (ints == nullptr || int_count < 0 || float_count < 0 || (floats == nullptr && float_count > 0))
        throw PlanError("the plan is empty");
    Reader reader(ints, int_count, floats, float_count);
    if (int_count < 2 || ints[0] != kMagic || ints[1] != kVersion)
        throw PlanError("not a plan of this version of the engine");
    reader.number("the magic number", kMagic, kMagic);
    reader.number("the version", kVersion, kVersion);
    weights = static_cast<Weights>(reader.number("the kind of weights", 0, 2));
    V = reader.number("the vocabulary size", 1, kMaxVocabulary);
    H = reader.number("the hidden size", 1, kMaxHidden);
    D = reader.number("the embedding size", 1, kMaxHidden);
    Hp = padded(H);
    Dp = padded(D);
    context = reader.number("the size of the context", 0, 2 * kMaxHidden);
    context_padded = padded(context);
    folded = reader.number("folded", 0, 1) == 1;
    side_sizes.resize(reader.number("the number of side inputs", 0, kMaxSides));
    for (int64_t& size : side_sizes) size = reader.number("the size of a side input", 1, kMaxVocabulary);

    struct Shape {
        Combine combine;
        bool gru, residual, norm;
    };
    std::vector<Shape> shapes(reader.number("the number of levels", 1, kMaxLevels));
    for (Shape& shape : shapes) {
        shape.combine = static_cast<Combine>(reader.number("how a level combines", 0, 3));
        shape.gru = reader.number("the cell of a level", 0, 1) == 1;
        shape.residual = reader.number("residual", 0, 1) == 1;
        shape.norm = reader.number("norm", 0, 1) == 1;
    }
    if (shapes[0].residual) throw PlanError("the bottom level has no input that a residual could add");
    const bool projected = reader.number("the head's projection", 0, 1) == 1;

    std::vector<Cell> bottom(shapes[0].combine == Combine::single ? 1 : 2);
    bottom.back().lstm = shapes[0].combine == Combine::single && !shapes[0].gru;
    bottom.back().gates = bottom.back().lstm ? 4 : 3;
    if (folded) {
        for (Cell& cell : bottom) read_tables(*this, reader, cell);
    } else {
        auto embedding = [&](int64_t rows) {
            const Matrix from = reader.matrix("an embedding", rows, D);
            float* out = arena.take<float>(rows * Dp);
            for (int64_t r = 0; r < rows; ++r) std::copy_n(from.data + r * D, D, out + r * Dp);
            embeddings.push_back(out);
        };
        embedding(V);
        for (int64_t size : side_sizes) embedding(size);
    }
    for (size_t i = 0; i < shapes.size(); ++i) {
        const Shape& s = shapes[i];
        levels.push_back(read_level(*this, reader, s.combine, s.gru, s.residual, s.norm,
                                    i == 0 ? std::move(bottom) : std::vector<Cell>(), i == 0));
    }
    if (projected) {
        head_projection = pack_rows(*this, reader.matrix("the head's projection", D, H), Hp, same);
        step_bytes += head_projection.stride * head_projection.count;
    }
    const int64_t columns = projected ? D : H;
    head = pack_rows(*this, reader.matrix("the head", V, columns), padded(columns), same);
    head_bias = pack_vector(arena, reader.row("the head's bias", V), V, head.count * head.rows());
    step_bytes += head.stride * head.count;
    reader.finish();
}

}  // namespace melodia::engine
