// The sessions' encoder: it reads every finished block in both directions, and its summary conditions the
// bottom level until the next one is finished. The twin of melodia/model/bidirectional.py.
//
// A block is finished when the token that begins the next one arrives; until then its tokens wait. Letters as
// in plan.h, and n blocks read together, L tokens of the longest.
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

// Reads the blocks of these sessions, and begins new ones.
void Lanes::read_blocks(std::vector<int64_t>& lanes) {
    const Encoder& encoder = plan_.encoder;
    const int64_t E = encoder.E, Ep = encoder.Ep, wide = padded(2 * E);
    const auto n = static_cast<int64_t>(lanes.size()), S = static_cast<int64_t>(plan_.side_sizes.size());
    // Longest first, so that those that still run at a step stand together.
    std::stable_sort(lanes.begin(), lanes.end(), [&](int64_t a, int64_t b) {
        return blocks_[a].tokens.size() > blocks_[b].tokens.size();
    });
    std::vector<int64_t> lengths;
    for (int64_t lane : lanes) lengths.push_back(static_cast<int64_t>(blocks_[lane].tokens.size()));
    const int64_t L = lengths[0], rows = L * n;
    std::vector<int64_t> live(static_cast<size_t>(L));
    for (int64_t t = 0; t < L; ++t)
        live[t] = std::count_if(lengths.begin(), lengths.end(), [=](int64_t length) { return t < length; });

    // Both directions' tokens, [L, n] each; behind a block's end anything, which is never run.
    std::vector<int32_t> tokens[2], sides[2];
    for (int way = 0; way < 2; ++way) {
        tokens[way].resize(static_cast<size_t>(rows));
        sides[way].resize(static_cast<size_t>(rows * S));
        for (int64_t i = 0; i < n; ++i) {
            const Block& block = blocks_[lanes[i]];
            for (int64_t t = 0; t < lengths[i]; ++t) {
                const int64_t from = way == 0 ? t : lengths[i] - 1 - t;
                tokens[way][t * n + i] = block.tokens[from];
                std::copy_n(block.sides.begin() + from * S, S, sides[way].begin() + (t * n + i) * S);
            }
        }
    }

    Buffer<float>& y_buffer = outputs_[0];
    float* y = nullptr;  // [L, n][wide], forward and backward output side by side
    std::vector<float> c(static_cast<size_t>(2 * n * Ep)), backwards;
    for (size_t level = 0; level < encoder.levels.size(); ++level) {
        const std::vector<Cell>& cells = encoder.levels[level].cells;
        const Layer& layer = encoder_[level];
        Source sources[2];
        for (int way = 0; way < 2; ++way) sources[way] = {tokens[way].data(), sides[way].data()};
        if (level > 0) {
            const float* x = normalise(encoder.levels[level - 1].norm, 2 * E, y, wide, rows, normed_);
            backwards.assign(static_cast<size_t>(rows * wide), 0.0f);
            for (int64_t i = 0; i < n; ++i)
                for (int64_t t = 0; t < lengths[i]; ++t)
                    std::copy_n(x + ((lengths[i] - 1 - t) * n + i) * wide, wide,
                                backwards.begin() + (t * n + i) * wide);
            sources[0].x = x;
            sources[1].x = backwards.data();
            sources[0].stride = sources[1].stride = wide;
        } else if (!plan_.folded) {
            for (int way = 0; way < 2; ++way) {
                sources[way].x =
                    embed(rows, tokens[way].data(), sides[way].data(), way == 0 ? embedded_ : normed_);
                sources[way].stride = plan_.Dp;
            }
        }
        float* steps = steps_.get((L + 1) * n * 2 * Ep);
        std::fill_n(steps, n * 2 * Ep, 0.0f);
        std::fill(c.begin(), c.end(), 0.0f);
        for (int64_t i = 0; i < n; ++i) {
            std::copy_n(layer.h + lanes[i] * Ep, Ep, steps + i * 2 * Ep);
            if (layer.c != nullptr) std::copy_n(layer.c + lanes[i] * Ep, Ep, c.data() + i * Ep);
        }
        float* const kept[2] = {c.data(), c.data() + n * Ep};
        scan(cells, sources, L, n, live.data(), steps, kept);
        if (y == nullptr) {
            y = y_buffer.get(rows * wide);
            std::fill_n(y, rows * wide, 0.0f);
        }
        const bool adds = encoder.residual && level > 0;
        for (int64_t i = 0; i < n; ++i) {
            const float* last = steps + (lengths[i] * n + i) * 2 * Ep;
            std::copy_n(last, Ep, layer.h + lanes[i] * Ep);
            if (layer.c != nullptr) std::copy_n(c.data() + i * Ep, Ep, layer.c + lanes[i] * Ep);
            for (int64_t t = 0; t < lengths[i]; ++t) {
                const float* forward = steps + ((t + 1) * n + i) * 2 * Ep;
                const float* backward = steps + ((lengths[i] - t) * n + i) * 2 * Ep + Ep;
                float* to = y + (t * n + i) * wide;
                for (int64_t j = 0; j < E; ++j) {
                    to[j] = adds ? to[j] + forward[j] : forward[j];
                    to[E + j] = adds ? to[E + j] + backward[j] : backward[j];
                }
            }
        }
    }
    const float* x = normalise(encoder.levels.back().norm, 2 * E, y, wide, rows, normed_);
    for (int64_t i = 0; i < n; ++i) {
        Block& block = blocks_[lanes[i]];
        std::copy_n(x + ((lengths[i] - 1) * n + i) * wide, E, block.summary.begin());
        std::copy_n(x + i * wide + E, E, block.summary.begin() + E);
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
