// Reads a description and packs the weights.
//
// Whole numbers: magic, version, weights (0 fp32, 1 bf16, 2 int8), V, H, D, context columns, folded, S, the S
// sizes, levels, and for each level: combine (0 single, 1 concat, 2 sum, 3 gated), its cell if single (0
// LSTM, 1 GRU; else 0), residual, norm; then whether the head has a projection; and with a context its
// encoder: levels, the cell (0 LSTM, 1 GRU), E, residual, norm, block_max, how many tokens begin a block, and
// those.
//
// Floats: folded, for each cell of the bottom: token table [V, G H] = E W_ih^T, then one [size, G H] per side
// input; else the embeddings [V, D] and [size, D]. For each level and cell: W_ih [G H, D or H] (unless the
// bottom's is folded), the bottom's W_context [G H, context] if there is a context, W_hh [G H, H], b_ih [G
// H], b_hh [G H]; then the projection [H, 2H] and its bias [H] of concat and gated; then the norm's weight
// [H], bias [H] and epsilon. Then the head's projection [D, H], weight [V, D or H] and bias [V]. At last the
// encoder's: folded, of the first level's two directions the token table [V, G E] and one [size, G E] per
// side input; for each level, forward and then backward, W_ih [G E, D or 2E] (unless folded), W_hh, b_ih,
// b_hh; then the norm's weight [2E], bias and epsilon; and behind the levels s_0 [2E].
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
constexpr int64_t kMaxBlock = 1 << 14;
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

Panels pack_gates(Plan& plan, const Cell& cell, const Matrix& from, int64_t K) {
    return pack(plan.arena, plan.weights, from, K, cell.gates, cell.Hp / kTile, GateRows{cell.H}, same);
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
float* tile_gates(Plan& plan, const Cell& cell, const Matrix& from) {
    const int64_t gates = cell.gates, width = gates * cell.Hp;
    float* out = plan.arena.take<float>(from.rows * width);
    for (int64_t r = 0; r < from.rows; ++r)
        for (int64_t g = 0; g < gates; ++g)
            for (int64_t unit = 0; unit < cell.H; ++unit)
                out[r * width + (unit / kTile * gates + g) * kTile + unit % kTile] =
                    from.data[r * from.columns + g * cell.H + unit];
    return out;
}

Cell cell_of(bool lstm, int64_t units) {
    Cell cell;
    cell.lstm = lstm;
    cell.gates = lstm ? 4 : 3;
    cell.H = units;
    cell.Hp = padded(units);
    return cell;
}

void read_tables(Plan& plan, Reader& reader, Cell& cell) {
    const int64_t columns = cell.gates * cell.H;
    cell.tables.push_back(tile_gates(plan, cell, reader.matrix("the token table", plan.V, columns)));
    for (int64_t size : plan.side_sizes)
        cell.tables.push_back(tile_gates(plan, cell, reader.matrix("a side input's table", size, columns)));
}

// columns: of W_ih, 0 where tables stand for it; context: columns of W_context.
void read_cell(Plan& plan, Reader& reader, Cell& cell, int64_t columns, int64_t context) {
    const int64_t G = cell.gates, H = cell.H;
    if (columns > 0)
        cell.input = pack_gates(plan, cell, reader.matrix("W_ih", G * H, columns), padded(columns));
    if (context > 0)
        cell.context = pack_gates(plan, cell, reader.matrix("W_context", G * H, context), padded(context));
    cell.recurrent = pack_gates(plan, cell, reader.matrix("W_hh", G * H, H), cell.Hp);
    const float* b_ih = reader.row("b_ih", G * H);
    const float* b_hh = reader.row("b_hh", G * H);
    std::vector<float> before(b_ih, b_ih + G * H), inside(static_cast<size_t>(G * H));
    for (int64_t i = 0; i < G * H; ++i) {
        if (cell.lstm || i < 2 * H)
            before[i] += b_hh[i];
        else
            inside[i] = b_hh[i];  // the reset gate scales it
    }
    cell.bias = tile_gates(plan, cell, {before.data(), 1, G * H});
    if (!cell.lstm) cell.bias_n = tile_gates(plan, cell, {inside.data(), 1, G * H});
}

Norm read_norm(Plan& plan, Reader& reader, int64_t units) {
    Norm norm;
    norm.weight = pack_vector(plan.arena, reader.row("a norm's weight", units), units, padded(units));
    norm.bias = pack_vector(plan.arena, reader.row("a norm's bias", units), units, padded(units));
    norm.eps = *reader.row("a norm's epsilon", 1);
    if (!(norm.eps > 0.0f)) throw PlanError("a norm's epsilon must be positive");
    return norm;
}

struct Shape {
    Combine combine;
    bool gru, residual, norm;

    std::vector<Cell> cells(int64_t H) const {
        if (combine == Combine::single) return {cell_of(!gru, H)};
        return {cell_of(true, H), cell_of(false, H)};
    }
};

Level read_level(Plan& plan, Reader& reader, const Shape& shape, std::vector<Cell> cells, bool bottom) {
    const int64_t H = plan.H, Hp = plan.Hp;
    Level level;
    level.combine = shape.combine;
    level.cells = std::move(cells);
    for (Cell& cell : level.cells) {
        read_cell(plan, reader, cell, !bottom ? H : plan.folded ? 0 : plan.D, bottom ? plan.context : 0);
        plan.state_size += cell.lstm ? 2 * H : H;
        plan.step_bytes += (cell.input.stride + cell.recurrent.stride) * (Hp / kTile);
    }
    if (shape.combine == Combine::concat || shape.combine == Combine::gated) {
        auto place = [=](int64_t c) { return c < H ? c : c - H + Hp; };
        level.projection = pack_rows(plan, reader.matrix("a projection", H, 2 * H), 2 * Hp, place);
        level.projection_bias = pack_vector(plan.arena, reader.row("a projection's bias", H), H,
                                            level.projection.count * level.projection.rows());
        plan.step_bytes += level.projection.stride * level.projection.count;
    }
    level.residual = shape.residual;
    if (shape.norm) level.norm = read_norm(plan, reader, H);
    return level;
}

void read_encoder(Plan& plan, Reader& reader) {
    Encoder& encoder = plan.encoder;
    const int64_t levels = reader.number("the encoder's levels", 1, kMaxLevels);
    const bool lstm = reader.number("the encoder's cell", 0, 1) == 0;
    const int64_t E = encoder.E = reader.number("the encoder's size", 1, kMaxHidden);
    if (plan.context != 2 * E) throw PlanError("the context must be two encoder's sizes wide");
    encoder.Ep = padded(E);
    encoder.residual = reader.number("the encoder's residual", 0, 1) == 1;
    const bool norm = reader.number("the encoder's norm", 0, 1) == 1;
    encoder.block_max = reader.number("the tokens of a block", 1, kMaxBlock);
    const int64_t opens = reader.number("the tokens that begin a block", 0, plan.V);
    if (opens > 0) encoder.opens.resize(static_cast<size_t>(plan.V));
    for (int64_t i = 0; i < opens; ++i)
        encoder.opens[reader.number("a token that begins a block", 0, plan.V - 1)] = 1;
    for (int64_t i = 0; i < levels; ++i) {
        encoder.levels.push_back({{cell_of(lstm, E), cell_of(lstm, E)}, {}});
        plan.state_size += lstm ? 2 * E : E;
    }
    if (plan.folded)
        for (Cell& cell : encoder.levels[0].cells) read_tables(plan, reader, cell);
    for (size_t i = 0; i < encoder.levels.size(); ++i) {
        for (Cell& cell : encoder.levels[i].cells)
            read_cell(plan, reader, cell, i > 0 ? 2 * E : plan.folded ? 0 : plan.D, 0);
        if (norm) encoder.levels[i].norm = read_norm(plan, reader, 2 * E);
    }
    encoder.start = pack_vector(plan.arena, reader.row("s_0", 2 * E), 2 * E, padded(2 * E));
    const auto S = static_cast<int64_t>(plan.side_sizes.size());
    plan.state_size += 2 * E + 2 + encoder.block_max * (1 + S);
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

    std::vector<Shape> shapes(reader.number("the number of levels", 1, kMaxLevels));
    for (Shape& shape : shapes) {
        shape.combine = static_cast<Combine>(reader.number("how a level combines", 0, 3));
        shape.gru = reader.number("the cell of a level", 0, 1) == 1;
        shape.residual = reader.number("residual", 0, 1) == 1;
        shape.norm = reader.number("norm", 0, 1) == 1;
    }
    if (shapes[0].residual) throw PlanError("the bottom level has no input that a residual could add");
    const bool projected = reader.number("the head's projection", 0, 1) == 1;

    std::vector<Cell> bottom = shapes[0].cells(H);
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
        levels.push_back(
            read_level(*this, reader, shapes[i], i == 0 ? std::move(bottom) : shapes[i].cells(H), i == 0));
    }
    if (projected) {
        head_projection = pack_rows(*this, reader.matrix("the head's projection", D, H), Hp, same);
        step_bytes += head_projection.stride * head_projection.count;
    }
    const int64_t columns = projected ? D : H;
    head = pack_rows(*this, reader.matrix("the head", V, columns), padded(columns), same);
    head_bias = pack_vector(arena, reader.row("the head's bias", V), V, head.count * head.rows());
    step_bytes += head.stride * head.count;
    if (context > 0) read_encoder(*this, reader);
    reader.finish();
}

void Plan::check_state(const float* state) const {
    for (int64_t i = 0; i < state_size; ++i) {
        if (!std::isfinite(state[i])) throw std::invalid_argument("a state's numbers must be finite");
    }
    if (!encoder.reads()) return;
    auto check = [](const char* name, float value, int64_t limit) {
        if (!(value >= 0.0f) || value > static_cast<float>(limit) || value != std::floor(value))
            throw std::invalid_argument(std::string("a state's ") + name +
                                        " must be a whole number from 0 to " + std::to_string(limit) +
                                        " (received " + std::to_string(value) + ")");
    };
    const auto S = static_cast<int64_t>(side_sizes.size());
    const float* end = state + state_size;
    const float* sides = end - 1 - encoder.block_max * S;
    const float* tokens = sides - encoder.block_max;
    check("number of blocks", tokens[-1], 1 << 24);
    check("number of waiting tokens", end[-1], encoder.block_max);
    for (int64_t i = 0; i < encoder.block_max; ++i) check("waiting tokens", tokens[i], V - 1);
    for (int64_t i = 0; i < encoder.block_max * S; ++i)
        check("waiting side inputs", sides[i], side_sizes[i % S] - 1);
}

void Plan::check_steps(int64_t rows, const int32_t* tokens, const int32_t* sides) const {
    const auto S = static_cast<int64_t>(side_sizes.size());
    for (int64_t r = 0; r < rows; ++r) {
        if (tokens[r] < 0 || tokens[r] >= V)
            throw std::invalid_argument("token " + std::to_string(tokens[r]) + " is not in a vocabulary of " +
                                        std::to_string(V));
    }
    for (int64_t r = 0; r < rows * S; ++r) {
        if (sides[r] < 0 || sides[r] >= side_sizes[r % S])
            throw std::invalid_argument("side input " + std::to_string(r % S) + " must lie from 0 to " +
                                        std::to_string(side_sizes[r % S] - 1) + " (received " +
                                        std::to_string(sides[r]) + ")");
    }
}

}  // namespace melodia::engine
