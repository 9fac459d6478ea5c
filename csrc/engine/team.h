// Threads that work through the tiles of a phase, and live as long as the engine.
//
// The caller takes part. Each thread has a range of the tiles, the same one every time (its weights stay in
// its core's cache), and takes from the others' ranges when its own is empty. Waiting threads spin, then
// sleep. A mate that holds a tile and does not run (the machine is busy with something else) costs the caller
// one wait; after it the caller works alone for a while, 10 ms, that doubles where the next such wait comes
// as soon again, up to 250 ms.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace melodia::engine {

class Team {
  public:
    using Clock = std::chrono::steady_clock;

    // threads: with the caller; at least 1, at most as many as cores that this process may use.
    // now: the time; tests have one of their own.
    explicit Team(int threads, Clock::time_point (*now)() = Clock::now);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return threads_; }
    // How often mates were sent away because they did not run, for reports and tests.
    int64_t stalls() const { return stalls_.load(std::memory_order_relaxed); }

    // For one caller at a time: work(tile) for each of 0 .. tiles - 1, in any order, on any thread.
    template <class Work>
    void run(int64_t tiles, Work& work) {
        run(tiles, [](void* context, int64_t tile) { (*static_cast<Work*>(context))(tile); }, &work);
    }

    std::mutex& mutex() { return mutex_; }

  private:
    using Call = void (*)(void*, int64_t);

    struct alignas(64) Range {
        std::atomic<uint64_t> word{0};  // end of the range << 32 | next tile
    };

    void run(int64_t tiles, Call call, void* context);
    void stop();
    int64_t work_off(int thread);  // how many tiles it did
    void shed();
    void keep_off_caller();
    void mate(int thread);
    void wait(int64_t tiles, int64_t done, Clock::time_point begin);
    int active();

    const int threads_;
    Clock::time_point (*const now_)();
    std::mutex mutex_;  // of the caller
    Call call_ = nullptr;
    void* context_ = nullptr;
    std::unique_ptr<Range[]> ranges_;
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<uint64_t> phase_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex sleep_mutex_;
    std::unique_ptr<std::condition_variable> wake_{new std::condition_variable};
    std::vector<std::thread> mates_;
    int forks_;  // of this process, when the team was made: threads do not survive a fork

    std::atomic<int64_t> stalls_{0};
    bool stalled_ = false;
    int useless_ = 0;  // phases in a row to which no mate came
    std::atomic<int> caller_core_{-1};
#if defined(__linux__)
    cpu_set_t allowed_;
#endif
    std::chrono::microseconds alone_for_;
    Clock::time_point alone_until_, calm_since_;
};

// Cores that this process may use.
int allowed_cores();

}  // namespace melodia::engine
