// How long a caller waits for a mate that ends late, and how long it works alone after that. In a time that
// the test makes, so that it holds on a busy machine as well.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "engine/team.h"

namespace {

using melodia::engine::Team;
using std::chrono::microseconds;

constexpr int64_t kStep = 10;  // µs that pass when the waiting caller looks at the time

std::atomic<int64_t> passed{0};     // µs
std::atomic<int64_t> mate_ends{0};  // when, while it is in its tile; otherwise 0
std::thread::id caller;
bool waits = false;  // the caller, its tile done

[[noreturn]] void fail(const char* what) {
    std::printf("%s after %lld µs\n", what, static_cast<long long>(passed.load()));
    std::fflush(stdout);
    std::_Exit(1);
}

// The limit is in real time, for what would never come.
template <class Condition>
void until(Condition condition, const char* otherwise) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > limit) fail(otherwise);
        std::this_thread::yield();
    }
}

// Time passes while the caller waits, no further than to the mate's end before it has ended.
Team::Clock::time_point now() {
    const int64_t ends = mate_ends.load();
    if (std::this_thread::get_id() == caller && waits && ends > 0) {
        if (passed.load() < ends) passed += kStep;
        if (passed.load() >= ends) until([] { return mate_ends.load() == 0; }, "a mate does not end");
    }
    return Team::Clock::time_point(microseconds(passed.load()));
}

// A phase with a tile for each. The caller waits from `own` µs on, the mate ends at `mates`.
void together(Team& team, int64_t own, int64_t mates) {
    std::atomic<bool> came{false};
    auto work = [&](int64_t) {
        if (std::this_thread::get_id() != caller) {
            mate_ends = passed.load() + mates;
            came = true;
            until([] { return passed.load() >= mate_ends.load(); }, "the mate was sent away too early");
            mate_ends = 0;
        } else {
            until([&] { return came.load(); }, "the mate does not come");
            passed += own - kStep;
            waits = true;
        }
    };
    team.run(2, work);
    waits = false;
}

void alone(Team& team) {
    int tiles = 0;
    auto work = [&](int64_t) {
        if (std::this_thread::get_id() != caller) fail("the mate came back too early");
        if (tiles++ == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));  // it could come
    };
    team.run(2, work);
    if (tiles != 2) fail("the caller did not do all tiles");
}

void expect(const Team& team, int64_t stalls) {
    if (team.stalls() != stalls) fail(team.stalls() < stalls ? "was not late" : "was late");
}

// A mate is waited for as long as three tiles of the caller take, and 60 µs at least.
void a_late_mate_is_waited_for() {
    for (const int64_t own : {600, 100, 20, 10}) {
        const int64_t patience = own == 10 ? 60 : 3 * own;
        Team team(2, now);
        for (int phase = 0; phase < 20; ++phase) together(team, own, own + patience);
        expect(team, 0);
        together(team, own, own + patience + kStep);
        expect(team, 1);
        alone(team);
    }
}

// Alone for 10 ms, for twice as long where the next late mate comes as soon, 250 ms at most.
void who_is_late_stays_away() {
    Team team(2, now);
    int64_t stalls = 0;
    for (const int ms : {10, 20, 40, 80, 160, 250, 250, 10, 20}) {
        if (stalls == 7) {
            for (int64_t calm = 0; calm <= 250'000; calm += 5000) together(team, 5000, 5000);
        }
        together(team, 50, 50 + 150 + kStep);
        expect(team, ++stalls);
        alone(team);
        passed += ms * 1000 - 1;
        alone(team);
        passed += 1;
        together(team, 50, 60);
        expect(team, stalls);
    }
}

}  // namespace

int main() {
    caller = std::this_thread::get_id();
    a_late_mate_is_waited_for();
    who_is_late_stays_away();
    std::printf("fine\n");
    return 0;
}
