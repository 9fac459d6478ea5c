// Feeds the engine random networks, broken plans and broken states: each is refused or runs clean. To be
// built with sanitizers (tests/test_engine_native.py), which see a read beyond an end.
//
// plan_test [random number] [rounds]
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "sampling.h"
#include "tests/descriptions.h"

using namespace melodia;
using namespace melodia::engine;

namespace {

std::mt19937_64 generator;
int failures = 0;
std::string last_refusal;

void check(bool fine, const char* what) {
    if (fine) return;
    std::printf("failed: %s\n", what);
    ++failures;
}

int64_t below(int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); }

NetworkShape random_shape() {
    NetworkShape shape;
    shape.weights = below(3);
    shape.V = 1 + below(40);
    shape.H = 1 + below(20);
    shape.D = 1 + below(20);
    shape.folded = below(2) == 0;
    shape.projected = below(2) == 0;
    for (int64_t s = below(3); s > 0; --s) shape.sides.push_back(1 + below(9));
    for (int64_t i = 0, n = 1 + below(3); i < n; ++i)
        shape.levels.push_back({below(4), below(2) == 0, i > 0 && below(2) == 0, below(2) == 0});
    if (below(2) == 0) return shape;
    shape.encoder = {
        1 + below(3), below(2) == 0, 1 + below(20), below(2) == 0, below(2) == 0, 1 + below(9), {}};
    for (int64_t i = below(std::min<int64_t>(shape.V, 2) + 1); i > 0; --i)
        shape.encoder.opens.push_back(below(shape.V));
    return shape;
}

// Plays in steps, in chunks and with sessions exchanged; whatever the numbers are.
void play(Engine& engine) {
    const Plan& plan = engine.plan;
    const auto S = static_cast<int64_t>(plan.side_sizes.size());
    const int64_t B = 1 + below(6), T = 12;
    Lanes lanes(engine, B);
    std::vector<int32_t> tokens(T * B), sides(T * B * S);
    for (auto& token : tokens) token = static_cast<int32_t>(below(plan.V));
    for (int64_t i = 0; i < T * B * S; ++i) sides[i] = static_cast<int32_t>(below(plan.side_sizes[i % S]));
    std::vector<float> logits(T * B * plan.V), state(plan.state_size);
    lanes.advance(T, tokens.data(), sides.data(), logits.data(), true);
    Chooser chooser(1);
    for (int64_t t = 0; t < T; ++t) {
        lanes.advance(1, tokens.data() + t * B, sides.data() + t * B * S, logits.data(), false);
        Sampling sampling;
        sampling.top_k = static_cast<int32_t>(below(5));
        sampling.top_p = below(2) == 0 ? 1.0 : 0.9;
        sampling.min_p = below(2) == 0 ? 0.0 : 0.1;
        const Choice choice =
            chooser.choose(logits.data(), static_cast<int32_t>(plan.V), nullptr, tokens.data(), 1, sampling,
                           generator(), 0, static_cast<uint64_t>(t), true);
        check(choice.token < plan.V, "a choice that is no token");
    }
    lanes.read(B - 1, state.data());
    try {
        lanes.write(0, state.data());
    } catch (const std::invalid_argument&) {  // numbers that overflowed
    }
    // Broken states: refused, or played on.
    const float values[] = {-1.0f,
                            0.0f,
                            0.5f,
                            1.0f,
                            3.0f,
                            1e9f,
                            -1e30f,
                            3e38f,
                            std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()};
    for (int i = 0; i < 20; ++i) {
        std::vector<float> broken = state;
        for (int64_t k = 1 + below(3); k > 0; --k) {
            // Mostly near the end, where an encoder's counts stand.
            const int64_t place = below(2) == 0
                                      ? below(plan.state_size)
                                      : plan.state_size - 1 - below(std::min<int64_t>(plan.state_size, 24));
            broken[place] = values[below(10)];
        }
        try {
            lanes.write(below(B), broken.data());
        } catch (const std::invalid_argument&) {
        }
        lanes.advance(2, tokens.data(), sides.data(), logits.data(), false);
    }
}

bool refused(const Description& d, size_t ints, size_t floats) {
    // Copies as long as what is said, so that a read behind an end is seen.
    const std::vector<int64_t> i(d.ints.begin(), d.ints.begin() + static_cast<int64_t>(ints));
    const std::vector<float> f(d.floats.begin(), d.floats.begin() + static_cast<int64_t>(floats));
    try {
        Engine engine(i.data(), static_cast<int64_t>(ints), f.data(), static_cast<int64_t>(floats), 1);
        play(engine);
    } catch (const PlanError& error) {
        last_refusal = error.what();
        return true;
    }
    return false;
}

void break_plan(const Description& d) {
    const int64_t whole[] = {INT64_MIN, -1, 0, 1, 2, 3, 17, 1 << 14, 1 << 20, INT64_MAX};
    Description changed = d;
    for (int64_t k = 1 + below(3); k > 0; --k) {
        auto& number = changed.ints[below(static_cast<int64_t>(d.ints.size()))];
        const auto step = static_cast<uint64_t>(below(5)) - 2;  // unsigned: may wrap
        number =
            below(2) == 0 ? whole[below(10)] : static_cast<int64_t>(static_cast<uint64_t>(number) + step);
    }
    switch (below(4)) {
        case 0:  // more numbers than it needs: everything is packed before it is refused
            changed.floats.resize(d.floats.size() * 3, 0.25f);
            break;
        case 1:
            changed.floats[below(static_cast<int64_t>(d.floats.size()))] = below(2) == 0 ? 3e38f : 1e-42f;
            changed.ints = d.ints;
            break;
        case 2:
            changed.ints.erase(changed.ints.begin() + below(static_cast<int64_t>(d.ints.size())));
            break;
        default:
            break;
    }
    refused(changed, changed.ints.size(), changed.floats.size());
}

}  // namespace

int main(int argc, char** argv) {
    generator.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 7);
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 150;
    for (int round = 0; round < rounds; ++round) {
        const Description d = describe(random_shape());
        if (refused(d, d.ints.size(), d.floats.size()))
            check(false, ("a good plan is refused: " + last_refusal).c_str());
        for (int i = 0; i < 12; ++i) break_plan(d);
        if (round % 10 != 0) continue;
        for (size_t n = 0; n < d.ints.size(); ++n)
            check(refused(d, n, d.floats.size()), "a cut plan is taken");
        for (size_t n = 0; n < d.floats.size(); n += d.floats.size() / 40 + 1)
            check(refused(d, d.ints.size(), n), "cut numbers are taken");
    }
    std::printf(failures == 0 ? "fine\n" : "not fine\n");
    return failures == 0 ? 0 : 1;
}
