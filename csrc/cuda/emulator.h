// A GPU for tests: runs the kernels of csrc/cuda on the CPU, every thread of every block as a fiber.
//
// What it is for: showing that a barrier, a fence or an epoch is missing. So it schedules as unkindly as the
// CUDA model allows and is no faithful picture of any chip:
//  - any order of threads; a block or a warp may stand still until nobody else can go on (a "victim");
//  - stores to global memory (store_data, store_relaxed) are seen late and in any order until a release;
//  - loads of data (load_data) may see what stood there before, until an acquire;
//  - asynchronous copies arrive only when they are waited for;
//  - shared memory starts as NaN or as a block before left it, and writes past its end are found, as are
//  stores of a cluster's block to one that has
//    ended.
// Threads of a block that wait at different barriers, and a launch in which nobody can go on, are errors that
// name the kernel, never a hang. Not modelled: bank conflicts, time, caches.
//
// One launch at a time, one dimension of blocks and threads. Kernels see all of this only through device.h.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "cuda/emulator_parts.h"

namespace melodia::emulator {

// The machine: one, because a kernel's code finds it without an argument.
struct Machine {
    Setup setup;
    std::string error;   // of the last launch, empty if it went well
    int64_t faults = 0;  // of all launches: stores to the shared memory of blocks that had ended

    Fiber* current = nullptr;
    unsigned threads = 0, blocks = 0;
    std::vector<Block> resident;
    Random random{1};

    // ---- called by device.h, from inside a fiber
    // --------------------------------------------------------------

    Block& block() { return resident[current->slot]; }
    unsigned char* shared() { return aligned(block().shared.data()); }

    void pause() {
        current->paused = true;
        yield();
    }

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

    // What stands in the shared memory of block `rank` where `own` stands in this block's.
    void* shared_of(const void* own, unsigned rank) {
        const auto at = static_cast<const unsigned char*>(own) - shared();
        const Block& other = resident[rank];
        return aligned(other.shared.data()) + at;
    }

    // Every lane puts `bytes` and may read every lane's.
    template <class F>
    void exchange(const void* mine, unsigned size, F read) {
        Warp& w = block().warps[current->thread / 32];
        std::memcpy(w.box[current->thread % 32], mine, size);
        sync_warp();
        read(w);
        sync_warp();
    }

    void store(void* address, const void* bytes, unsigned size) {
        ++progress_;
        if (!weak_) {
            if (alive(address)) std::memcpy(address, bytes, size);
            return;
        }
        Store made{static_cast<unsigned char*>(address), {}, size, block().generation};
        std::memcpy(made.bytes, bytes, size);
        current->stores.push_back(made);
        ++block().pending;
    }

    void load(const void* address, void* bytes, unsigned size) {
        std::memcpy(bytes, address, size);
        if (!weak_) return;
        if (!old_.empty() && random.below(2)) {
            const auto at = reinterpret_cast<uintptr_t>(address);
            for (unsigned k = 0; k + 2 <= size; k += 2) {
                const auto found = old_.find(at + k);
                if (found == old_.end()) continue;
                const Old& old = found->second;
                if (old.sequence > current->acquired && old.slot != current->slot)
                    std::memcpy(static_cast<unsigned char*>(bytes) + k, &old.value, 2);
            }
        }
        if (block().pending == 0) return;
        for (const Fiber& f : fibers_of(current->slot)) {  // a block sees its own stores after its barrier
            for (const Store& s : f.stores) {
                if (&f != current && s.generation == block().generation) continue;
                forward(s, static_cast<const unsigned char*>(address), static_cast<unsigned char*>(bytes),
                        size);
            }
        }
    }

    // Everything this thread made or saw at its block's last barrier is visible to all.
    void release() {
        const uint64_t generation = block().generation;
        for (Fiber& f : fibers_of(current->slot)) {
            flush(f, [&](const Store& s) { return &f == current || s.generation < generation; });
        }
        ++progress_;
    }

    void acquire() { current->acquired = sequence_; }

    // A read-modify-write happens at once.
    template <class T>
    T add(T* address, T value) {
        ++progress_;
        const T before = *address;
        *address = before + value;
        return before;
    }

    void copy(void* to, const void* from) {
        Copy made{static_cast<unsigned char*>(to),
                  static_cast<const unsigned char*>(from),
                  {},
                  current->group,
                  random.below(2) == 0};
        if (made.read) load(from, made.bytes, 16);
        current->copies.push_back(made);
    }

    void commit() { ++current->group; }

    void wait_copies(unsigned groups_left) {
        auto& copies = current->copies;
        size_t kept = 0;
        for (Copy& c : copies) {
            if (c.group + groups_left >= current->group) {
                copies[kept++] = c;
                continue;
            }
            if (!c.read) load(c.from, c.bytes, 16);
            std::memcpy(c.to, c.bytes, 16);
        }
        copies.resize(kept);
    }

    void fail(const std::string& what) {
        if (error.empty()) error = what;
        failed_ = true;
        yield();
    }

    // ---- called by the host
    // -----------------------------------------------------------------------------------

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
    struct Range {
        Fiber *first, *last;
        Fiber* begin() const { return first; }
        Fiber* end() const { return last; }
    };
    // Whether an address is anything but the shared memory of a block that has ended; if it is, that is an
    // error.
    bool alive(const void* address) {
        const auto* p = static_cast<const unsigned char*>(address);
        for (const Block& b : resident) {
            if (b.left < threads || p < b.shared.data() || p >= b.shared.data() + b.shared.size()) continue;
            if (error.empty())
                error =
                    "a store to the shared memory of block " + std::to_string(b.index) + ", which has ended";
            failed_ = true;
            ++faults;
            return false;
        }
        return true;
    }

    Range fibers_of(unsigned slot) { return {&fibers_[slot * threads], &fibers_[(slot + 1) * threads]}; }

    template <class F>
    void flush(Fiber& f, F chosen) {
        size_t kept = 0;
        for (size_t k = 0; k < f.stores.size(); ++k) {
            const Store s = f.stores[k];
            bool now = chosen(s);
            for (size_t j = 0; now && j < kept; ++j)
                now = f.stores[j].address != s.address;  // per address in order
            if (!now) {
                f.stores[kept++] = s;
                continue;
            }
            ++sequence_;
            ++progress_;
            --resident[f.slot].pending;
            for (unsigned b = 0; b + 2 <= s.size; b += 2) {
                uint16_t before;
                std::memcpy(&before, s.address + b, 2);
                old_[reinterpret_cast<uintptr_t>(s.address) + b] = {before, sequence_, f.slot};
            }
            if (alive(s.address)) std::memcpy(s.address, s.bytes, s.size);
        }
        f.stores.resize(kept);
    }

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
    }

    void finish_cluster() {
        if (cluster_arrived_ < size_t{blocks} * threads) return;
        for (Fiber& f : fibers_) {
            if (f.wait == Wait::cluster) wake(f);
        }
        cluster_arrived_ = 0;
    }

    // Everything this thread made is visible to all.
    void release_all() {
        flush(*current, [](const Store&) { return true; });
        ++progress_;
    }

    void wake(Fiber& f) {
        f.wait = Wait::none;
        ++progress_;
        if (&f != current) ready_.push_back(&f);
    }

    void yield() {
        if (!_setjmp(current->context)) _longjmp(main_, 1);
    }

    static void enter();  // the first function of every fiber

    void leave() {  // the last
        Fiber& f = *current;
        wait_copies(0);
        f.wait = Wait::done;
        ++progress_;
        Block& b = resident[f.slot];
        ++b.left;
        ++b.warps[f.thread / 32].left;
        finish_block(f.slot);
        finish_warp(f.slot, f.thread / 32);
        _longjmp(main_, 1);
    }

    void resume(Fiber& f) {
        current = &f;
        f.paused = false;
        if (_setjmp(main_)) return;
        if (f.started) _longjmp(f.context, 1);
        f.started = true;
        setcontext(&f.entry);
    }

    // NaN, or what a block before left there.
    std::vector<unsigned char> new_shared(const std::vector<unsigned char>& before, size_t shared_bytes) {
        std::vector<unsigned char> shared(shared_bytes + 128 + kCanary, 0xFF);
        if (setup.schedule && !before.empty() && random.below(2)) {
            const size_t left = std::min(shared_bytes, before.size() - 128 - kCanary);
            std::memcpy(aligned(shared.data()), aligned(before.data()), left);
        }
        return shared;
    }

    void start_block(unsigned slot, unsigned index, size_t shared_bytes) {
        Block& b = resident[slot];
        std::vector<unsigned char> shared = new_shared(b.shared, shared_bytes);
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
        f.entry.uc_stack.ss_size = kStack;
        f.entry.uc_link = nullptr;
        makecontext(&f.entry, &Machine::enter, 0);
        ready_.push_back(&f);
    }

    bool canary_lives(unsigned slot, size_t shared_bytes) {
        const Block& b = resident[slot];
        return std::all_of(aligned(b.shared.data()) + shared_bytes,
                           const_cast<unsigned char*>(b.shared.data()) + b.shared.size(),
                           [](unsigned char c) { return c == 0xFF; });
    }

    void execute(size_t shared_bytes, std::function<void()> body) {
        body_ = std::move(body);
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
        for (; started < slots; ++started) start_block(started, started, shared_bytes);
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
                if (!canary_lives(f->slot, shared_bytes)) {
                    error = "block " + std::to_string(b.index) + " wrote past its shared memory";
                    failed_ = true;
                    break;
                }
                if (started < blocks) start_block(f->slot, started++, shared_bytes);
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
    }

    void drain() {  // half of all stores
        for (Fiber& f : fibers_) {
            if (!f.stores.empty()) flush(f, [&](const Store&) { return random.below(2) == 0; });
        }
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

    jmp_buf main_;
    std::function<void()> body_;
    std::vector<Fiber> fibers_;
    std::vector<std::unique_ptr<char[]>> stacks_;
    std::vector<Fiber*> ready_;
    std::unordered_map<uintptr_t, Old> old_;
    uint64_t rounds_ = 0, progress_ = 0, sequence_ = 0;
    size_t cluster_arrived_ = 0;
    bool weak_ = false, failed_ = false, expired_ = false;
};

inline Machine machine;

inline void Machine::enter() {
    machine.body_();
    machine.leave();
}

}  // namespace melodia::emulator
