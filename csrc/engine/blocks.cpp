// The sessions' encoder: it reads every finished block in both directions, and its summary conditions the
// bottom level until the next one is finished. The twin of melodia/model/bidirectional.py.
//
// A block is finished when the token that begins the next one arrives; until then its tokens wait. Letters as
// in plan.h, and n blocks read together, L tokens of the longest, wide: 2E padded.
#include <algorithm>
#include <cstring>

#include "engine/engine.h"

namespace melodia::engine {

// Whether the token ends the block that waits.
bool Lanes::opens(const Block& block, int32_t token) const {
    const Encoder& encoder = plan_.encoder;
    const auto waiting = static_cast<int64_t>(block.tokens.size());
    return waiting == encoder.block_max || (waiting > 0 && !encoder.opens.empty() && encoder.opens[token]);
}

// Takes the tokens up to where a summary changes next, at most T steps and at least one; how many steps it
// took.
int64_t Lanes::listen(int64_t T, const int32_t* tokens, const int32_t* sides) {
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    finished_.clear();
    for (int64_t b = 0; b < B_; ++b)
        if (opens(blocks_[b], tokens[b])) finished_.push_back(b);
    if (!finished_.empty()) read_blocks(finished_);
    for (int64_t t = 0; t < T; ++t, tokens += B_, sides += B_ * S) {
        for (int64_t b = 0; b < B_ && t > 0; ++b)
            if (opens(blocks_[b], tokens[b])) return t;
        for (int64_t b = 0; b < B_; ++b) {
            blocks_[b].tokens.push_back(tokens[b]);
            blocks_[b].sides.insert(blocks_[b].sides.end(), sides + b * S, sides + (b + 1) * S);
        }
    }
    return T;
}

// Blocks that are read together.
struct Lanes::Reading {
    const std::vector<int64_t>& lanes;         // [n]
    std::vector<int64_t> lengths;              // [n], falling
    std::vector<int64_t> live;                 // [L]: how many have a token t
    std::vector<int32_t> tokens[2], sides[2];  // [L, n], [L, n, S]; as they are, and backwards

    int64_t n() const { return static_cast<int64_t>(lengths.size()); }
    int64_t L() const { return lengths[0]; }
    int64_t row(int64_t t, int64_t i) const { return t * n() + i; }
    int64_t row_backwards(int64_t t, int64_t i) const { return row(lengths[i] - 1 - t, i); }
};

// The blocks of these sessions, which are sorted: longest first, so that those that still run at a step stand
// together. Behind a block's end is anything, which is never run.
Lanes::Reading Lanes::gather(std::vector<int64_t>& lanes) const {
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    std::stable_sort(lanes.begin(), lanes.end(), [&](int64_t a, int64_t b) {
        return blocks_[a].tokens.size() > blocks_[b].tokens.size();
    });
    Reading found{lanes, {}, {}, {}, {}};
    for (int64_t lane : lanes) found.lengths.push_back(static_cast<int64_t>(blocks_[lane].tokens.size()));
    for (int64_t t = 0; t < found.L(); ++t)
        found.live.push_back(std::count_if(found.lengths.begin(), found.lengths.end(),
                                           [=](int64_t length) { return t < length; }));
    for (int way = 0; way < 2; ++way) {
        std::vector<int32_t>&tokens = found.tokens[way], &sides = found.sides[way];
        tokens.resize(static_cast<size_t>(found.L() * found.n()));
        sides.resize(tokens.size() * S);
        for (int64_t i = 0; i < found.n(); ++i) {
            const Block& block = blocks_[lanes[i]];
            for (int64_t t = 0; t < found.lengths[i]; ++t) {
                const int64_t row = way == 0 ? found.row(t, i) : found.row_backwards(t, i);
                tokens[row] = block.tokens[t];
                std::copy_n(block.sides.begin() + t * S, S, sides.begin() + row * S);
            }
        }
    }
    return found;
}

// A level of the encoder. x [L, n][wide]: what stands below it, or null at the bottom; y [L, n][wide]:
// forward and backward output side by side, to which a residual level adds its own.
void Lanes::read_level(size_t index, const Reading& blocks, const float* x, float* y) {
    const Encoder& encoder = plan_.encoder;
    const Layer& layer = encoder_[index];
    const std::vector<int64_t>& lanes = blocks.lanes;
    const int64_t E = encoder.E, Ep = encoder.Ep, wide = padded(2 * E), n = blocks.n(), L = blocks.L();
    const int64_t rows = L * n;
    Source sources[2];
    for (int way = 0; way < 2; ++way) sources[way] = {blocks.tokens[way].data(), blocks.sides[way].data()};
    if (x != nullptr) {
        float* backwards = embedded_.get(rows * wide);
        std::fill_n(backwards, rows * wide, 0.0f);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t t = 0; t < blocks.lengths[i]; ++t)
                std::copy_n(x + blocks.row_backwards(t, i) * wide, wide, backwards + blocks.row(t, i) * wide);
        sources[0].x = x;
        sources[1].x = backwards;
        sources[0].stride = sources[1].stride = wide;
    } else if (!plan_.folded) {
        for (int way = 0; way < 2; ++way) {
            Source& from = sources[way];
            from.x = embed(rows, from.tokens, from.sides, way == 0 ? embedded_ : normed_);
            from.stride = plan_.Dp;
        }
    }
    float* steps = steps_.get((L + 1) * n * 2 * Ep);
    std::fill_n(steps, n * 2 * Ep, 0.0f);
    std::vector<float> c(static_cast<size_t>(2 * n * Ep));
    for (int64_t i = 0; i < n; ++i) {
        std::copy_n(layer.h + lanes[i] * Ep, Ep, steps + i * 2 * Ep);
        if (layer.c != nullptr) std::copy_n(layer.c + lanes[i] * Ep, Ep, c.data() + i * Ep);
    }
    float* const kept[2] = {c.data(), c.data() + n * Ep};
    scan(encoder.levels[index].cells, sources, L, n, blocks.live.data(), steps, kept);
    const bool adds = encoder.residual && index > 0;
    for (int64_t i = 0; i < n; ++i) {
        std::copy_n(steps + blocks.row(blocks.lengths[i], i) * 2 * Ep, Ep, layer.h + lanes[i] * Ep);
        if (layer.c != nullptr) std::copy_n(c.data() + i * Ep, Ep, layer.c + lanes[i] * Ep);
        for (int64_t t = 0; t < blocks.lengths[i]; ++t) {
            const float* forward = steps + (n + blocks.row(t, i)) * 2 * Ep;
            const float* backward = steps + (n + blocks.row_backwards(t, i)) * 2 * Ep + Ep;
            float* to = y + blocks.row(t, i) * wide;
            for (int64_t j = 0; j < E; ++j) {
                to[j] = adds ? to[j] + forward[j] : forward[j];
                to[E + j] = adds ? to[E + j] + backward[j] : backward[j];
            }
        }
    }
}

// Reads the blocks of these sessions, and begins new ones.
void Lanes::read_blocks(std::vector<int64_t>& lanes) {
    const Encoder& encoder = plan_.encoder;
    const Reading blocks = gather(lanes);
    const int64_t E = encoder.E, wide = padded(2 * E), rows = blocks.L() * blocks.n();
    float* y = outputs_[0].get(rows * wide);
    std::fill_n(y, rows * wide, 0.0f);
    const float* x = nullptr;
    for (size_t level = 0; level < encoder.levels.size(); ++level) {
        read_level(level, blocks, x, y);
        x = normalise(encoder.levels[level].norm, 2 * E, y, wide, rows, normed_);
    }
    for (int64_t i = 0; i < blocks.n(); ++i) {
        Block& block = blocks_[lanes[i]];
        std::copy_n(x + blocks.row_backwards(0, i) * wide, E, block.summary.begin());
        std::copy_n(x + blocks.row(0, i) * wide + E, E, block.summary.begin() + E);
        ++block.read;
        block.tokens.clear();
        block.sides.clear();
    }
    for (int64_t lane : lanes) share(lane, blocks_[lane].summary.data());
}

// The summary's share of the bottom's gates.
void Lanes::share(int64_t lane, const float* summary) {
    const int64_t K = plan_.context_padded, Hp = plan_.Hp;
    const Level& bottom = plan_.levels[0];
    const auto cells = static_cast<int64_t>(bottom.cells.size());
    float* x = joined_.get(K);
    std::fill_n(x, K, 0.0f);
    std::copy_n(summary, plan_.context, x);
    const Codes codes = encode(codes_x_[0], x, K, K, 1);
    for (int64_t k = 0; k < cells; ++k) {
        const Cell& cell = bottom.cells[k];
        float* gates = context_ + (lane * cells + k) * 4 * Hp;
        std::fill_n(gates, cell.gates * Hp, 0.0f);
        for (int64_t tile = 0; tile < Hp / kTile; ++tile) {
            float* out = gates + tile * cell.width();
            product(cell.context, tile, codes, 1, &out);
        }
    }
}

void Lanes::read_block_state(int64_t lane, float* state) const {
    const Encoder& encoder = plan_.encoder;
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    for (const Layer& layer : encoder_) {
        state = std::copy_n(layer.h + lane * encoder.Ep, encoder.E, state);
        if (layer.c != nullptr) state = std::copy_n(layer.c + lane * encoder.Ep, encoder.E, state);
    }
    const Block& block = blocks_[lane];
    const auto waiting = static_cast<int64_t>(block.tokens.size());
    state = std::copy(block.summary.begin(), block.summary.end(), state);
    *state++ = static_cast<float>(std::min<int64_t>(block.read, 1 << 24));  // exact up to there
    std::fill_n(std::copy(block.tokens.begin(), block.tokens.end(), state), encoder.block_max - waiting,
                0.0f);
    state += encoder.block_max;
    std::fill_n(std::copy(block.sides.begin(), block.sides.end(), state), (encoder.block_max - waiting) * S,
                0.0f);
    state += encoder.block_max * S;
    *state = static_cast<float>(waiting);
}

void Lanes::write_block_state(int64_t lane, const float* state) {
    const Encoder& encoder = plan_.encoder;
    const auto S = static_cast<int64_t>(plan_.side_sizes.size());
    for (const Layer& layer : encoder_) {
        std::copy_n(state, encoder.E, layer.h + lane * encoder.Ep);
        state += encoder.E;
        if (layer.c == nullptr) continue;
        std::copy_n(state, encoder.E, layer.c + lane * encoder.Ep);
        state += encoder.E;
    }
    Block& block = blocks_[lane];
    std::copy_n(state, 2 * encoder.E, block.summary.begin());
    state += 2 * encoder.E;
    block.read = static_cast<int64_t>(*state++);
    const float* sides = state + encoder.block_max;
    const auto waiting = static_cast<int64_t>(sides[encoder.block_max * S]);
    block.tokens.assign(state, state + waiting);
    block.sides.assign(sides, sides + waiting * S);
    share(lane, block.read > 0 ? block.summary.data() : encoder.start);
}

}  // namespace melodia::engine
