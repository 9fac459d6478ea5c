// Runs the loop from several threads, follows tokens that no grammar allows and reads broken tables; to be
// built with sanitizers (tests/test_engine_loop.py).
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/loop.h"
#include "engine/rules.h"

using namespace melodia;
using namespace melodia::engine;

namespace {

// PAD BOS EOS, Bar, TimeSig, 16 Positions, 2 Programs, 70 Pitches, Velocity, 8 Durations, and two pairs.
constexpr int64_t kPositions = 16, kPitchCount = 70, kDurations = 8;
enum First : int64_t {
    pad,
    bos,
    eos,
    bar,
    metre,
    position,
    program = position + kPositions,
    pitch = program + 2,
    velocity = pitch + kPitchCount,
    duration,
    pairs = duration + kDurations,
    V = pairs + 2
};
constexpr int64_t W = (V + 63) / 64, kTypes = 10;

std::vector<int64_t> tables() {
    std::vector<int64_t> ops(V), values(V), bars(V), units(V), kinds(V);
    auto set = [&](int64_t first, int64_t count, Op op, int64_t kind, int64_t low) {
        for (int64_t i = 0; i < count; ++i)
            ops[first + i] = op, kinds[first + i] = kind, values[first + i] = low + i;
    };
    set(pad, 1, kPad, 0, 0);
    set(bos, 1, kBos, 1, 0);
    set(eos, 1, kEos, 2, 0);
    set(bar, 1, kBar, 3, 0);
    set(metre, 1, kTimeSignature, 4, 0);
    set(position, kPositions, kPosition, 5, 0);
    set(program, 2, kProgram, 6, -1);
    set(pitch, kPitchCount, kPitch, 7, 30);
    set(velocity, 1, kVelocity, 8, 0);
    set(duration, kDurations, kDuration, 9, 1);
    set(pairs, 2, kBpe, -1, 0);
    bars[metre] = 64;
    units[metre] = 4;
    std::vector<int64_t> head = {V, kTypes, 2, 2,  0, 0,    2,   4,   4,           2,
                                 1, 0,      0, 64, 4, 4096, 0,   0,   40,          1,
                                 1, 1,      0, -1, 1, 2,    pad, eos, kPitchCount, kPitchCount};
    for (int64_t op = 0; op < kOps; ++op) {
        int64_t first = 0, end = 0;
        for (int64_t i = 0; i < V && op != kBpe; ++i) {
            if (ops[i] != op) continue;
            if (end == 0) first = i;
            end = i + 1;
        }
        head.insert(head.end(), {first, end, end > 0 ? std::max<int64_t>(values[first], 0) : 0});
    }
    std::vector<int64_t> all = {0x4D454C4F44494132, 1};
    auto add = [&](const std::vector<int64_t>& section) {
        all.insert(all.end(), section.begin(), section.end());
    };
    add(head);
    for (const auto* section : {&ops, &values, &bars, &units, &kinds}) add(*section);
    add({-1, 0});                 // programs of the rows
    add({program, program + 1});  // and their tokens
    std::vector<int64_t> playable(256, 0), follow(kTypes, 0), base(kTypes * 3 * W, 0);
    for (int64_t i = 0; i < kPitchCount; ++i) playable[30 + i] = playable[128 + 30 + i] = 1;
    auto after = [&](int64_t kind, const std::vector<std::pair<int64_t, int64_t>>& spans, int64_t flags) {
        follow[kind] = flags;
        for (const auto& [first, count] : spans)
            for (int64_t i = first; i < first + count; ++i)
                for (int64_t voice = 0; voice < 3; ++voice)
                    base[(kind * 3 + voice) * W + i / 64] |= int64_t(uint64_t{1} << (i % 64));
    };
    after(1, {{bar, 1}}, kFollowBar);
    after(3, {{metre, 1}}, kFollowMetre);
    after(4, {{position, kPositions}, {bar, 1}}, kFollowPosition | kFollowBar);
    after(5, {{program, 2}}, kFollowProgram);
    after(6, {{pitch, kPitchCount}}, kFollowNote);
    after(7, {{velocity, 1}}, 0);
    after(8, {{duration, kDurations}}, 0);
    after(9, {{position, kPositions}, {program, 2}, {bar, 1}, {eos, 1}},
          kFollowPosition | kFollowProgram | kFollowBar | kFollowEos);
    add(playable);
    add(follow);
    add(base);
    add({program + 1, velocity, pitch + 20, duration + 3});  // nodes: parts
    add({-1, -1, pairs, pairs + 1});                         // tokens
    add({2, 3, 4, 4});                                       // first children
    add({1, 1, 0, 0});                                       // how many
    for (int64_t i = 0; i <= V; ++i) all.push_back(i <= pairs ? 0 : i == pairs + 1 ? 2 : 4);
    add({program + 1, pitch + 20, velocity, duration + 3});
    add({2, 0, 2, kPositions, V + 1});  // side inputs: the position, and the bar before
    add({256, 15, 16});
    add(std::vector<int64_t>(kKeys * kPitchClasses, 1));
    return all;
}

struct Description {
    std::vector<int64_t> ints;
    std::vector<float> floats;
};

Description network() {
    constexpr int64_t H = 20;
    Description made;
    made.ints = {0x4D454C4F44494131, 1, 0, V, H, H, 0, 1, 2, kPositions, V + 1, 1, 0, 1, 0, 0, 0};
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0.0f, 0.4f);
    const int64_t count = (V + kPositions + V + 1) * 3 * H + 3 * H * (H + 2) + V * (H + 1);
    for (int64_t i = 0; i < count; ++i) made.floats.push_back(normal(random));
    return made;
}

std::vector<int32_t> play(Engine& engine, const Rules& rules, int64_t B, int64_t count) {
    Lanes lanes(engine, B);
    std::vector<const Rules*> each(B, &rules);
    Loop loop(engine.plan, lanes, each.data(), B);
    std::vector<uint64_t> none(W, 0), stop(W, 0);
    set_bit(none.data(), eos);
    set_bit(stop.data(), bar);
    std::vector<int32_t> heard;
    Sampling sampling;
    sampling.repetition_penalty = 1.2f;
    sampling.top_k = 30;
    const int64_t recent[] = {pitch, pitch + 1};
    for (int64_t lane = 0; lane < B; ++lane) loop.begin(lane, sampling, 32, 5, uint32_t(lane), 0, recent, 2);
    LaneTerms terms{};
    terms.tokens = 1 << 20;
    terms.stop_tick = int64_t{1} << 60;
    terms.exclude = none.data();
    terms.stop = stop.data();
    for (int64_t lane = 0; lane < B; ++lane) loop.set_terms(lane, terms);
    while (static_cast<int64_t>(heard.size()) < count) {
        loop.run(0, 0, nullptr);
        for (int64_t lane = 0; lane < B; ++lane) {
            if (loop.facts()[lane].standing != static_cast<int64_t>(Standing::stopped)) continue;
            loop.take(lane);
            const int64_t made = loop.facts()[lane].made;
            std::vector<int32_t> tokens(made);
            std::vector<double> nll(made), entropy(made);
            loop.drain(lane, tokens.data(), nll.data(), entropy.data());
            heard.insert(heard.end(), tokens.begin(), tokens.end());
        }
    }
    if (B > 1) {
        Lanes fewer(engine, B - 1);
        std::vector<int64_t> kept;
        for (int64_t lane = 1; lane < B; ++lane) kept.push_back(lane);
        loop.run(0, 0, nullptr);
        loop.keep(fewer, kept.data(), B - 1);
        loop.run(3, 0, nullptr);
    }
    return heard;
}

bool refused(const std::vector<int64_t>& ints, size_t count) {
    try {
        const Rules rules(ints.data(), static_cast<int64_t>(count));
        Follower follower(rules);
        std::vector<uint64_t> mask(static_cast<size_t>(rules.grammar.W));
        std::vector<int32_t> row(static_cast<size_t>(rules.sides.tables.S) + 1);
        std::mt19937 random(1);
        for (int i = 0; i < 20; ++i) {
            follower.check();
            follower.mask(mask.data());
            const int64_t token = int64_t(random() % uint32_t(rules.grammar.head->V));
            follower.advance_grammar(token);
            follower.advance_sides(token, row.data());
        }
    } catch (const std::invalid_argument&) {
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
    const std::vector<int64_t> ints = tables();
    const Rules rules(ints.data(), static_cast<int64_t>(ints.size()));
    const Description d = network();
    Engine engine(d.ints.data(), d.ints.size(), d.floats.data(), d.floats.size(), 2);
    const std::vector<int32_t> expected = play(engine, rules, 3, 400);
    check(expected.size() >= 400, "few tokens");
    std::vector<std::vector<int32_t>> got(3);
    std::vector<std::thread> callers;
    for (auto& heard : got) callers.emplace_back([&] { heard = play(engine, rules, 3, 400); });
    for (std::thread& caller : callers) caller.join();
    for (const auto& heard : got) check(heard == expected, "callers beside one another differ");

    Follower follower(rules);
    std::mt19937 random(2);
    std::vector<int32_t> row(2);
    std::vector<uint64_t> mask(W);
    for (int i = 0; i < 20000; ++i) {  // whatever comes, nothing leaves the memory
        const int64_t token = int64_t(random() % V);
        follower.mask(mask.data());
        follower.advance_grammar(token);
        follower.advance_sides(token, row.data());
    }
    for (size_t n = 0; n < ints.size(); ++n) check(refused(ints, n), "cut tables are taken");
    const int64_t values[] = {INT64_MIN, -1, 0, 1, 2, 17, 64, 127, 128, 1 << 16, 1 << 20, INT64_MAX};
    for (int i = 0; i < 4000; ++i) {
        std::vector<int64_t> changed = ints;
        for (int k = 0; k < 2; ++k) changed[random() % changed.size()] = values[random() % 12];
        refused(changed, changed.size());
    }
    std::printf(failures == 0 ? "fine\n" : "not fine\n");
    return failures == 0 ? 0 : 1;
}
