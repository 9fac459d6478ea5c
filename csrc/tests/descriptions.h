// Descriptions of random networks, for the test programs.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "engine/plan.h"

namespace melodia::engine {

struct Description {
    std::vector<int64_t> ints;
    std::vector<float> floats;
};

struct LevelShape {
    int64_t combine;  // 0 single, 1 concat, 2 sum, 3 gated
    bool gru, residual, norm;
};

struct EncoderShape {
    int64_t levels = 0;  // 0: none
    bool gru = false;
    int64_t E = 0;
    bool residual = false, norm = false;
    int64_t block_max = 1;
    std::vector<int64_t> opens;
};

struct NetworkShape {
    int64_t weights = 0, V = 70, H = 5, D = 9;
    bool folded = true, projected = true;
    std::vector<int64_t> sides;
    std::vector<LevelShape> levels;
    EncoderShape encoder;
};

inline Description describe(const NetworkShape& shape) {
    const int64_t V = shape.V, H = shape.H, D = shape.D, E = shape.encoder.E;
    const int64_t context = shape.encoder.levels > 0 ? 2 * E : 0;
    Description made;
    made.ints = {0x4D454C4F44494131, 1, shape.weights, V, H, D, context, shape.folded};
    made.ints.push_back(static_cast<int64_t>(shape.sides.size()));
    made.ints.insert(made.ints.end(), shape.sides.begin(), shape.sides.end());
    made.ints.push_back(static_cast<int64_t>(shape.levels.size()));
    for (const LevelShape& level : shape.levels)
        made.ints.insert(made.ints.end(), {level.combine, level.gru, level.residual, level.norm});
    made.ints.push_back(shape.projected);
    if (context > 0) {
        const EncoderShape& e = shape.encoder;
        made.ints.insert(made.ints.end(), {e.levels, e.gru, E, e.residual, e.norm, e.block_max,
                                           static_cast<int64_t>(e.opens.size())});
        made.ints.insert(made.ints.end(), e.opens.begin(), e.opens.end());
    }

    std::mt19937 random(static_cast<uint32_t>(H));
    std::normal_distribution<float> normal(0.0f, 0.3f);
    auto tensor = [&](int64_t count) {
        for (int64_t i = 0; i < count; ++i) made.floats.push_back(normal(random));
    };
    auto norm = [&](int64_t units) {
        tensor(2 * units);
        made.floats.push_back(1e-5f);
    };
    int64_t rows = V;
    for (int64_t size : shape.sides) rows += size;
    auto gates = [](const LevelShape& level) {
        return level.combine > 0 ? std::vector<int64_t>{4, 3} : std::vector<int64_t>{level.gru ? 3 : 4};
    };
    if (shape.folded)
        for (int64_t G : gates(shape.levels[0])) tensor(rows * G * H);
    else
        tensor(rows * D);
    for (size_t i = 0; i < shape.levels.size(); ++i) {
        const LevelShape& level = shape.levels[i];
        const int64_t columns = i > 0 ? H : (shape.folded ? 0 : D) + context;
        for (int64_t G : gates(level)) tensor(G * H * (columns + H + 2));
        if (level.combine == 1 || level.combine == 3) tensor(2 * H * H + H);
        if (level.norm) norm(H);
    }
    if (shape.projected) tensor(D * H);
    tensor(V * (shape.projected ? D : H) + V);
    if (context == 0) return made;
    const int64_t G = shape.encoder.gru ? 3 : 4;
    if (shape.folded) tensor(2 * rows * G * E);
    for (int64_t i = 0; i < shape.encoder.levels; ++i) {
        tensor(2 * G * E * ((i > 0 ? 2 * E : shape.folded ? 0 : D) + E + 2));
        if (shape.encoder.norm) norm(2 * E);
    }
    tensor(2 * E);
    return made;
}

}  // namespace melodia::engine
