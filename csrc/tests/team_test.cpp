// The team's threads share tiles that take long, as those of many sessions do: who is late is not sent away.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "engine/team.h"

namespace {

using Clock = std::chrono::steady_clock;

void busy(std::chrono::microseconds time) {
    const Clock::time_point until = Clock::now() + time;
    while (Clock::now() < until) {
    }
}

// The share of the tiles that the caller's mate worked off, over phases in which it always ends last.
double share_of_mate(melodia::engine::Team& team) {
    constexpr int phases = 60, tiles = 4;
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> others{0};
    auto work = [&](int64_t) {
        const bool mate = std::this_thread::get_id() != caller;
        busy(std::chrono::microseconds(mate ? 900 : 600));
        others += mate;
    };
    for (int phase = 0; phase < phases; ++phase) team.run(tiles, work);
    return static_cast<double>(others) / (phases * tiles);
}

}  // namespace

int main() {
    double best = 0.0;  // other processes may take the mate's core now and then
    for (int attempt = 0; attempt < 12 && best < 0.1; ++attempt) {
        melodia::engine::Team team(2);
        const double share = share_of_mate(team);
        std::fprintf(stderr, "the mate's share: %.2f, sent away %lld times\n", share,
                     static_cast<long long>(team.stalls()));
        best = share > best ? share : best;
    }
    std::printf(best >= 0.1 ? "fine\n" : "the mate was sent away\n");
    return best >= 0.1 ? 0 : 1;
}
