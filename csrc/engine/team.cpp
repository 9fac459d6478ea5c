#include "engine/team.h"

#include <algorithm>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace melodia::engine {
namespace {

using std::chrono::microseconds;

constexpr microseconds kSleepAfter{300};  // a mate without work
constexpr microseconds kStall{60};        // a mate is waited for so long,
constexpr int kTiles = 3;                 // or, if that is longer, as long as so many tiles take
constexpr microseconds kShortest{10'000}, kLongest{250'000};
constexpr int kUseless = 96;  // phases without a mate

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

std::atomic<int> forks{0};

void count_forks() {
#if !defined(_WIN32)
    static const int once = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
    (void)once;
#endif
}

}  // namespace

int allowed_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Team::Team(int threads, Clock::time_point (*now)())
    : threads_(std::max(1, std::min(threads, allowed_cores()))),
      now_(now),
      ranges_(new Range[threads_]),
      forks_((count_forks(), forks.load())),
      alone_for_(kShortest) {
    alone_until_ = calm_since_ = now_();
#if defined(__linux__)
    CPU_ZERO(&allowed_);
    sched_getaffinity(0, sizeof allowed_, &allowed_);
#endif
    try {
        for (int t = 1; t < threads_; ++t) mates_.emplace_back([this, t] { mate(t); });
    } catch (...) {  // no more threads are to be had
        stop();
        throw;
    }
}

Team::~Team() {
    if (forks.load() != forks_) {
        // A child, in which the threads never ran. What they waited for would be waited for for ever if it
        // were destroyed, and their handles may be those of new threads by now: both are left behind.
        (void)wake_.release();
        (void)new std::vector<std::thread>(std::move(mates_));
        return;
    }
    stop();
}

void Team::stop() {
    stop_.store(true);
    phase_.fetch_add(1);
    {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
        wake_->notify_all();
    }
    for (std::thread& thread : mates_) thread.join();
}

int Team::active() {
    if (threads_ == 1 || forks.load(std::memory_order_relaxed) != forks_) return 1;
    if (!stalled_) return threads_;
    if (now_() < alone_until_) return 1;
    stalled_ = false;
    calm_since_ = now_();
    return threads_;
}

void Team::run(int64_t tiles, Call call, void* context) {
    const int active = tiles > 1 ? this->active() : 1;
    if (active == 1) {
        for (int64_t tile = 0; tile < tiles; ++tile) call(context, tile);
        return;
    }
    call_ = call;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    for (int t = 0; t < threads_; ++t) {
        const uint64_t begin = static_cast<uint64_t>(tiles * t / threads_);
        const uint64_t end = static_cast<uint64_t>(tiles * (t + 1) / threads_);
        ranges_[t].word.store(end << 32 | begin, std::memory_order_release);
    }
#if defined(__linux__)
    caller_core_.store(sched_getcpu(), std::memory_order_relaxed);
#endif
    phase_.fetch_add(1);
    if (sleepers_.load() > 0) {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
        wake_->notify_all();
    }
    const Clock::time_point begin = now_();
    const int64_t done = work_off(0);
    useless_ = done == tiles ? useless_ + 1 : 0;
    wait(tiles, done, begin);
    if (useless_ >= kUseless) shed();
}

int64_t Team::work_off(int thread) {
    int64_t count = 0;
    for (int i = 0; i < threads_; ++i) {
        std::atomic<uint64_t>& word = ranges_[(thread + i) % threads_].word;
        for (;;) {
            uint64_t seen = word.load(std::memory_order_relaxed);
            if ((seen & 0xFFFFFFFF) >= seen >> 32) break;
            seen = word.fetch_add(
                1, std::memory_order_acq_rel);  // a range that was filled again is fine as well
            if ((seen & 0xFFFFFFFF) >= seen >> 32) break;
            call_(context_, static_cast<int64_t>(seen & 0xFFFFFFFF));
            done_.fetch_add(1, std::memory_order_release);
            ++count;
        }
    }
    return count;
}

// begin: when this thread took the first of the `done` tiles that it did.
void Team::wait(int64_t tiles, int64_t done, Clock::time_point begin) {
    if (done_.load(std::memory_order_acquire) == tiles) return;
    for (int i = 0; i < 200; ++i) {
        pause();
        if (done_.load(std::memory_order_acquire) == tiles) return;
    }
    const Clock::time_point idle = now_();
    const auto patience =
        std::max<Clock::duration>(kStall, kTiles * (idle - begin) / std::max<int64_t>(1, done));
    bool late = false;
    while (done_.load(std::memory_order_acquire) != tiles) {
        if (late) {
            std::this_thread::yield();  // the mate may need this core
        } else {
            for (int i = 0; i < 20; ++i) pause();
            late = now_() - idle > patience;
        }
    }
    if (late) shed();
}

void Team::shed() {
    useless_ = 0;
    const Clock::time_point now = now_();
    if (now - calm_since_ > alone_for_) alone_for_ = kShortest;  // worth it, on the whole
    stalled_ = true;
    stalls_.fetch_add(1, std::memory_order_relaxed);
    alone_until_ = now + alone_for_;
    alone_for_ = std::min(kLongest, 2 * alone_for_);
}

// The caller is busy for certain; where it runs is no place for a mate.
void Team::keep_off_caller() {
#if defined(__linux__)
    const int core = caller_core_.load(std::memory_order_relaxed);
    if (core < 0 || core >= CPU_SETSIZE || sched_getcpu() != core) return;
    cpu_set_t others = allowed_;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof others, &others);
#endif
}

void Team::mate(int thread) {
    uint64_t seen = 0;
    for (;;) {
        uint64_t now = phase_.load(std::memory_order_acquire);
        if (now == seen) {
            const Clock::time_point begin = now_();
            for (int i = 1; (now = phase_.load(std::memory_order_acquire)) == seen; ++i) {
                pause();
                if (i % 64 == 0 && now_() - begin > kSleepAfter) {
                    std::unique_lock<std::mutex> lock(sleep_mutex_);
                    sleepers_.fetch_add(1);
                    wake_->wait(lock, [&] { return phase_.load() != seen; });
                    sleepers_.fetch_sub(1);
                }
            }
        }
        seen = now;
        if (stop_.load()) return;
        keep_off_caller();
        work_off(thread);
    }
}

}  // namespace melodia::engine
