// Runs the engine from several threads; to be built with sanitizers (tests/test_engine_native.py).
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "sampling.h"
#include "tests/descriptions.h"

using namespace melodia;
using namespace melodia::engine;

namespace {

// A gated pair under a GRU, with a side input, residual, norms and a projected head; and, of an odd kind of
// weights, an encoder.
Description describe(int64_t weights, int64_t H) {
    NetworkShape shape;
    shape.weights = weights;
    shape.H = H;
    shape.sides = {5};
    shape.levels = {{3, false, false, true}, {0, true, true, true}};
    if (weights % 2 == 1) shape.encoder = {2, false, H / 2 + 1, true, true, 6, {1, 7}};
    return engine::describe(shape);
}

std::vector<float> play(Engine& engine, int64_t B, int64_t T) {
    Lanes lanes(engine, B);
    std::vector<int32_t> tokens(B), sides(16 * B, 3);
    const std::vector<int32_t> seed(16 * B, 2);
    lanes.advance(16, seed.data(), sides.data(), nullptr, false);
    std::vector<float> logits(B * engine.plan.V);
    Chooser chooser(static_cast<int32_t>(engine.plan.V));
    Sampling sampling;
    sampling.top_k = 20;
    sampling.top_p = 0.95;
    for (int64_t t = 0; t < T; ++t) {
        lanes.advance(1, tokens.data(), sides.data(), logits.data(), false);
        for (int64_t b = 0; b < B; ++b)
            tokens[b] = chooser
                            .choose(logits.data() + b * engine.plan.V, static_cast<int32_t>(engine.plan.V),
                                    nullptr, nullptr, 0, sampling, 1, 0, t, true)
                            .token;
    }
    std::vector<float> state(engine.plan.state_size);
    lanes.read(B - 1, state.data());
    lanes.write(0, state.data());
    return logits;
}

int failures = 0;

void check(bool fine, const char* what) {
    if (fine) return;
    std::printf("failed: %s\n", what);
    ++failures;
}

}  // namespace

int main() {
    for (int64_t weights = 0; weights < 3; ++weights) {
        const Description d = describe(weights, 150);
        Engine engine(d.ints.data(), d.ints.size(), d.floats.data(), d.floats.size(), 2);
        const std::vector<float> expected = play(engine, 6, 20);
        std::vector<std::vector<float>> got(3);
        std::vector<std::thread> callers;
        for (auto& logits : got) callers.emplace_back([&] { logits = play(engine, 6, 20); });
        for (std::thread& caller : callers) caller.join();
        for (const auto& logits : got) check(logits == expected, "callers beside one another differ");
    }
    std::printf(failures == 0 ? "fine\n" : "not fine\n");
    return failures == 0 ? 0 : 1;
}
