// Runs the engine from several threads and feeds it broken plans; to be built with sanitizers
// (tests/test_engine.py).
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "sampling.h"

using namespace melodia;
using namespace melodia::engine;

namespace {

struct Description {
    std::vector<int64_t> ints;
    std::vector<float> floats;
};

// A gated pair under a GRU, with a side input, residual, norms and a projected head.
Description describe(int64_t weights, int64_t H) {
    constexpr int64_t V = 70, D = 9, size = 5;
    Description made;
    made.ints = {0x4D454C4F44494131, 1, weights, V, H, D, 0, 1, 1, size, 2, 3, 0, 0, 1, 0, 1, 1, 1, 1};
    std::mt19937 random(static_cast<uint32_t>(H));
    std::normal_distribution<float> normal(0.0f, 0.3f);
    auto tensor = [&](int64_t count) {
        for (int64_t i = 0; i < count; ++i) made.floats.push_back(normal(random));
    };
    for (int64_t gates : {4, 3}) tensor((V + size) * gates * H);
    for (int64_t gates : {4, 3}) tensor(gates * H * (H + 2));
    tensor(2 * H * H + H + 2 * H);
    made.floats.push_back(1e-5f);
    tensor(3 * H * (2 * H + 2) + 2 * H);
    made.floats.push_back(1e-5f);
    tensor(D * H + V * D + V);
    return made;
}

std::vector<float> play(Engine& engine, int64_t B, int64_t T) {
    Lanes lanes(engine, B);
    std::vector<int32_t> tokens(B), sides(B, 3);
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

bool refused(const Description& d, size_t ints, size_t floats) {
    try {
        Plan plan(d.ints.data(), static_cast<int64_t>(ints), d.floats.data(), static_cast<int64_t>(floats));
    } catch (const PlanError&) {
        return true;
    }
    return false;
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
    Description d = describe(2, 5);
    check(!refused(d, d.ints.size(), d.floats.size()), "a good plan is refused");
    for (size_t n = 0; n < d.ints.size(); ++n) check(refused(d, n, d.floats.size()), "a cut plan is taken");
    for (size_t n = 0; n < d.floats.size(); n += 37)
        check(refused(d, d.ints.size(), n), "cut numbers are taken");
    std::mt19937_64 random(7);
    const int64_t values[] = {INT64_MIN, -1, 0, 1, 2, 3, 17, 1 << 14, 1 << 20, INT64_MAX};
    for (int i = 0; i < 3000; ++i) {
        Description changed = d;
        for (int k = 0; k < 2; ++k) changed.ints[random() % d.ints.size()] = values[random() % 10];
        refused(changed, changed.ints.size(), changed.floats.size());
    }
    std::printf(failures == 0 ? "fine\n" : "not fine\n");
    return failures == 0 ? 0 : 1;
}
