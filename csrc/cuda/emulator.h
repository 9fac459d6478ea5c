// A GPU for tests: runs the kernels of csrc/cuda on the CPU, every thread of every block as a fiber.
//
// What it is for: showing that a barrier, a fence or an epoch is missing. So it schedules as unkindly as the
// CUDA model allows and is no faithful picture of any chip:
//  - any order of threads; a block or a warp may stand still until nobody else can go on (a "victim");
//  - stores to global memory (store_data, store_relaxed) are seen late and in any order until a release;
//  - loads of data (load_data) may see what stood there before, until an acquire;
//  - asynchronous copies arrive at once or only when they are waited for;
//  - shared memory starts as NaN or as a block before left it, and writes past its end are found, as are
//    stores of a cluster's block to one that has ended.
// Errors that name the kernel, never a hang or a crash: threads of a block that wait at different barriers, a
// launch in which nobody can go on, a thread that ends before its copies have arrived, global memory that is
// not there (all accesses of device.h; of plain ones the stores beside memory that was taken from the
// emulator), an access that is not aligned as its width asks for (plain ones where the compiler is given
// -fsanitize=alignment). Not modelled: bank conflicts, time, caches.
//
// One launch at a time, one dimension of blocks and threads. Kernels see all of this only through device.h.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>

#include "cuda/emulator_traffic.h"

namespace melodia::emulator {

// The machine: one, because a kernel's code finds it without an argument.
struct Machine : Traffic {
    // ---- Called by device.h, from inside a fiber

    void pause() { yield(); }

    uint64_t clock() const { return rounds_ + (expired_ ? uint64_t{1} << 62 : 0); }

    void sync_block(const char* site) {
        Block& b = block();
        if (b.arrived == 0)
            b.site = site;
        else if (std::strcmp(b.site, site) != 0)
            return fail("threads of block " + std::to_string(b.index) + " wait at two barriers, '" + b.site +
                        "' and '" + site + "'");
        ++b.arrived;
        current->wait = Wait::block;
        finish_block(current->slot);
        if (current->wait == Wait::block) yield();
    }

    bool sync_all(const char* site, bool predicate) {
        Block& b = block();
        b.vote = (b.arrived == 0 || b.vote) && predicate;
        sync_block(site);
        return b.all;
    }

    void sync_warp() {
        Warp& w = block().warps[current->thread / 32];
        ++w.arrived;
        current->wait = Wait::warp;
        finish_warp(current->slot, current->thread / 32);
        if (current->wait == Wait::warp) yield();
    }

    // All blocks of the launch are one cluster.
    void sync_cluster() {
        release_all();
        ++cluster_arrived_;
        current->wait = Wait::cluster;
        finish_cluster();
        if (current->wait == Wait::cluster) yield();
    }

    // Every lane puts `size` bytes and may read every lane's.
    template <class F>
    void exchange(const void* mine, unsigned size, F read) {
        Warp& w = block().warps[current->thread / 32];
        auto& box = w.boxes[w.generation % 2];  // no lane is more than one exchange ahead of another
        std::memcpy(box[current->thread % 32], mine, size);
        sync_warp();
        read(box);
    }

    // ---- Called by the host

    // Runs body() as every thread; false and `error` if that cannot be done.
    bool run(const char* name, unsigned grid, unsigned threads_, size_t shared_bytes, bool together,
             std::function<void()> body) {
        error.clear();
        threads = threads_;
        blocks = grid;
        if (static_cast<int64_t>(shared_bytes) > setup.shared_bytes)
            error = "asks for " + std::to_string(shared_bytes) + " bytes of shared memory of " +
                    std::to_string(setup.shared_bytes);
        if (together && static_cast<int64_t>(grid) > setup.resident_blocks)
            error = "asks for " + std::to_string(grid) + " blocks at once of " +
                    std::to_string(setup.resident_blocks);
        if (threads == 0 || threads > 1024 || grid == 0) error = "has no such block";
        if (error.empty()) execute(shared_bytes, std::move(body));
        if (!error.empty()) error = std::string("kernel ") + name + ": " + error;
        return error.empty();
    }

  private:
    void finish_block(unsigned slot) {
        Block& b = resident[slot];
        if (b.arrived == 0 || b.arrived + b.left < threads) return;
        uint64_t acquired = 0;
        for (const Fiber& f : fibers_of(slot)) acquired = std::max(acquired, f.acquired);
        for (Fiber& f : fibers_of(slot)) {
            f.acquired = acquired;
            if (f.wait == Wait::block) wake(f);
        }
        b.all = b.vote;
        b.arrived = 0;
        ++b.generation;
    }

    void finish_warp(unsigned slot, unsigned warp) {
        Warp& w = resident[slot].warps[warp];
        const unsigned lanes = std::min(32u, threads - warp * 32);
        if (w.arrived == 0 || w.arrived + w.left < lanes) return;
        for (unsigned k = 0; k < lanes; ++k) {
            Fiber& f = fibers_[slot * threads + warp * 32 + k];
            if (f.wait == Wait::warp) wake(f);
        }
        w.arrived = 0;
        ++w.generation;
    }

    void finish_cluster() {
        if (cluster_arrived_ < size_t{blocks} * threads) return;
        for (Fiber& f : fibers_) {
            if (f.wait == Wait::cluster) wake(f);
        }
        cluster_arrived_ = 0;
    }

    void wake(Fiber& f) {
        f.wait = Wait::none;
        ++progress_;
        if (&f != current) ready_.push_back(&f);
    }

    static void enter();  // the first function of every fiber

    void leave() {  // the last
        Fiber& f = *current;
        if (!f.copies.empty()) fail_here("ends before its copies have arrived");
        f.wait = Wait::done;
        ++progress_;
        Block& b = resident[f.slot];
        ++b.left;
        ++b.warps[f.thread / 32].left;
        finish_block(f.slot);
        finish_warp(f.slot, f.thread / 32);
        __builtin_longjmp(main_, 1);
    }

    __attribute__((noinline)) void resume(Fiber& f) {
        current = &f;
        if (__builtin_setjmp(main_)) return;
        if (f.started) __builtin_longjmp(f.context, 1);
        f.started = true;
        setcontext(&f.entry);
    }

    void start_block(unsigned slot, unsigned index) {
        Block& b = resident[slot];
        std::vector<unsigned char> shared = new_shared(b.shared, shared_bytes_, setup, random);
        b = Block{};
        b.index = index;
        b.shared.swap(shared);
        b.warps.resize((threads + 31) / 32);
        for (unsigned k = 0; k < threads; ++k) start_fiber(slot, k);
    }

    // Apart, because getcontext returns as if twice.
    __attribute__((noinline)) void start_fiber(unsigned slot, unsigned thread) {
        Fiber& f = fibers_[slot * threads + thread];
        f.thread = thread;
        f.slot = slot;
        f.started = false;
        f.wait = Wait::none;
        f.acquired = sequence_;
        f.stores.clear();
        f.copies.clear();
        auto& stack = stacks_[slot * threads + thread];
        if (!stack) stack.reset(new char[kStack]);
        getcontext(&f.entry);
        f.entry.uc_stack.ss_sp = stack.get();
        // Stacks that all began at the same place of a page would share a few lines of the cache.
        f.entry.uc_stack.ss_size = kStack - (slot * threads + thread) % 61 * 64;
        f.entry.uc_link = nullptr;
        makecontext(&f.entry, &Machine::enter, 0);
        ready_.push_back(&f);
    }

    void execute(size_t shared_bytes, std::function<void()> body) {
        body_ = std::move(body);
        shared_bytes_ = shared_bytes;
        random.state = setup.schedule * 0x2545F4914F6CDD1Du + 1;
        weak_ = setup.schedule % 2 == 1;
        failed_ = expired_ = false;
        rounds_ = progress_ = sequence_ = 0;
        cluster_arrived_ = 0;
        old_.clear();
        ready_.clear();
        const unsigned slots = static_cast<unsigned>(std::min<int64_t>(blocks, setup.resident_blocks));
        resident.resize(slots);
        for (Block& b : resident) b.left = 0;
        fibers_.resize(std::max<size_t>(fibers_.size(), size_t{slots} * threads));
        stacks_.resize(fibers_.size());
        unsigned started = 0, finished = 0;
        for (; started < slots; ++started) start_block(started, started);
        Victim victim = choose(setup, random, resident.size(), threads);
        int stalled = 0;
        std::vector<Fiber*> now, kept;
        while (finished < blocks && !failed_) {
            ++rounds_;
            const uint64_t before = progress_;
            now.swap(ready_);
            ready_.clear();
            if (setup.schedule) {
                for (size_t k = now.size(); k > 1; --k) std::swap(now[k - 1], now[random.below(k)]);
            }
            kept.clear();
            bool held = false;
            for (Fiber* f : now) {
                if (victim.holds(*f)) {
                    held = true;
                    kept.push_back(f);
                    continue;
                }
                resume(*f);
                if (failed_) break;
                if (f->wait == Wait::none) kept.push_back(f);
                if (f->wait != Wait::done) continue;
                Block& b = resident[f->slot];
                if (b.left < threads) continue;
                ++finished;
                for (Fiber& g : fibers_of(f->slot)) flush(g, [](const Store&) { return true; });
                if (!canary_lives(b.shared, shared_bytes_)) {
                    error = "block " + std::to_string(b.index) + " wrote past its shared memory";
                    failed_ = true;
                    break;
                }
                if (started < blocks) start_block(f->slot, started++);
            }
            ready_.insert(ready_.end(), kept.begin(), kept.end());
            if (weak_ && random.below(8) == 0) drain();
            stalled = progress_ == before ? stalled + 1 : 0;
            if (setup.schedule && random.below(16) == 0)
                victim = choose(setup, random, resident.size(), threads);
            if (stalled < 2) continue;
            if (held) {  // those who stood still are the only ones that can go on
                const Victim last = victim;
                victim = random.below(2) ? Victim{} : choose(setup, random, resident.size(), threads);
                if (victim.kind == last.kind && victim.which == last.which) victim = Victim{};
                continue;
            }
            if (weak_) drain();
            if (!ready_.empty() && stalled < kPatience) continue;
            if (ready_.empty() || !setup.expire || expired_) {
                failed_ = true;
                error = describe();
            }
            expired_ = true;
            stalled = 0;
        }
        current = nullptr;
        const int64_t spoiled = memory.spoiled();
        if (spoiled >= 0 && error.empty())
            error = "somebody wrote beside " + std::to_string(spoiled) + " bytes of global memory";
    }

    std::string describe() {
        std::string text = "deadlock: nobody can go on;";
        for (unsigned s = 0; s < resident.size(); ++s) {
            unsigned spins = 0, waits = 0, ended = 0;
            for (const Fiber& f : fibers_of(s)) {
                spins += f.wait == Wait::none;
                ended += f.wait == Wait::done;
                waits += f.wait == Wait::block || f.wait == Wait::warp || f.wait == Wait::cluster;
            }
            if (ended == threads) continue;
            text += " block " + std::to_string(resident[s].index) + ": " + std::to_string(spins) +
                    " threads spin, " + std::to_string(waits) + " wait" +
                    (resident[s].arrived ? std::string(" at '") + resident[s].site + "'" : "") + ", " +
                    std::to_string(ended) + " are done;";
        }
        return text;
    }

    std::function<void()> body_;
    std::vector<std::unique_ptr<char[]>> stacks_;
    std::vector<Fiber*> ready_;
    uint64_t rounds_ = 0;
    size_t cluster_arrived_ = 0;
    bool expired_ = false;
};

inline Machine machine;

inline void Machine::enter() {
    machine.body_();
    machine.leave();
}

}  // namespace melodia::emulator

// With -fsanitize=alignment the compiler calls this where a pointer is not aligned as its type asks for,
// which the host forgives. It begins what it hands over with a place in the sources.
extern "C" __attribute__((weak, used)) void __ubsan_handle_type_mismatch_v1(void* data, void*) {
    struct Place {
        const char* file;
        uint32_t line, column;
    };
    const auto* at = static_cast<const Place*>(data);
    auto& machine = melodia::emulator::machine;
    if (machine.current != nullptr)
        machine.fail_here(std::string("has a pointer that is not aligned, ") + at->file + ":" +
                          std::to_string(at->line));
}
