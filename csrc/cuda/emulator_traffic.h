// What the emulator (emulator.h) makes of global memory and of asynchronous copies: stores that are late,
// loads that are stale, copies that arrive early or late, and errors where there is no such memory.
#pragma once

#include <string>
#include <unordered_map>

#include "cuda/emulator_memory.h"
#include "cuda/emulator_parts.h"

namespace melodia::emulator {

struct Traffic {
    Setup setup;
    std::string error;   // of the last launch, empty if it went well
    int64_t faults = 0;  // of all launches: stores to the shared memory of blocks that had ended
    Memory memory;

    Fiber* current = nullptr;  // null: no kernel runs
    unsigned threads = 0, blocks = 0;
    std::vector<Block> resident;
    Random random{1};

    // ---- Called by device.h, from inside a fiber

    Block& block() { return resident[current->slot]; }
    unsigned char* shared() { return aligned(block().shared.data()); }

    void store(void* address, const void* bytes, unsigned size) {
        reach("writes", address, size);
        put(static_cast<unsigned char*>(address), bytes, size);
    }

    // To where `own` stands in this block's shared memory, in that of block `rank`.
    void store_to(unsigned rank, const void* own, const void* bytes, unsigned size) {
        reach_shared("writes", own, size);
        const auto at = static_cast<const unsigned char*>(own) - shared();
        put(aligned(resident[rank].shared.data()) + at, bytes, size);
    }

    void load(const void* address, void* bytes, unsigned size) {
        reach("reads", address, size);
        see(address, bytes, size);
    }

    // What stands there now.
    void load_relaxed(const void* address, void* bytes, unsigned size) {
        reach("reads", address, size);
        std::memcpy(bytes, address, size);
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
        reach("adds to", address, sizeof(T));
        ++progress_;
        const T before = *address;
        *address = before + value;
        return before;
    }

    void copy(void* to, const void* from) {
        reach("copies", from, 16);
        reach_shared("copies to", to, 16);
        const uint64_t luck = random.below(4);
        Copy made{static_cast<unsigned char*>(to),
                  static_cast<const unsigned char*>(from),
                  {},
                  current->group,
                  luck < 2    ? Copied::landed
                  : luck == 2 ? Copied::read
                              : Copied::asked};
        if (made.copied != Copied::asked) see(from, made.bytes, 16);
        if (made.copied == Copied::landed) std::memcpy(to, made.bytes, 16);
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
            if (c.copied == Copied::asked) see(c.from, c.bytes, 16);
            if (c.copied != Copied::landed) std::memcpy(c.to, c.bytes, 16);
        }
        copies.resize(kept);
    }

    // Does not come back.
    void fail(const std::string& what) {
        if (error.empty()) error = what;
        failed_ = true;
        yield();
    }
    // Of this thread.
    void fail_here(const std::string& what) {
        fail("thread " + std::to_string(current->thread) + " of block " + std::to_string(block().index) +
             " " + what);
    }

  protected:
    struct Range {
        Fiber *first, *last;
        Fiber* begin() const { return first; }
        Fiber* end() const { return last; }
    };
    Range fibers_of(unsigned slot) { return {&fibers_[slot * threads], &fibers_[(slot + 1) * threads]}; }

    // A call, because gcc takes it that nobody comes back to a function that calls nothing but the jump away.
    __attribute__((noinline)) void leave_fiber() { __builtin_longjmp(main_, 1); }

    __attribute__((noinline)) void yield() {
        if (!__builtin_setjmp(current->context)) leave_fiber();
    }

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

    // Everything this thread made is visible to all.
    void release_all() {
        flush(*current, [](const Store&) { return true; });
        ++progress_;
    }

    void drain() {  // half of all stores
        for (Fiber& f : fibers_) {
            if (!f.stores.empty()) flush(f, [&](const Store&) { return random.below(2) == 0; });
        }
    }

    Context main_;
    std::vector<Fiber> fibers_;
    std::unordered_map<uintptr_t, Old> old_;
    uint64_t progress_ = 0, sequence_ = 0;
    size_t shared_bytes_ = 0;
    bool weak_ = false, failed_ = false;

  private:
    // Before a thread touches memory: it is there, and aligned as its width asks for.
    void reach(const char* how, const void* address, unsigned size) {
        if (!memory.holds(address, size))
            fail_here(how + (" " + std::to_string(size)) + " bytes that the device does not have, " +
                      memory.whereabouts(address));
        if (reinterpret_cast<uintptr_t>(address) % size != 0) misaligned(how, size);
    }
    void reach_shared(const char* how, const void* address, unsigned size) {
        const auto* at = static_cast<const unsigned char*>(address);
        if (at < shared() || at + size > shared() + shared_bytes_)
            fail_here(how + (" " + std::to_string(size)) + " bytes that are not in its shared memory");
        if (reinterpret_cast<uintptr_t>(address) % size != 0) misaligned(how, size);
    }
    void misaligned(const char* how, unsigned size) {
        const std::string bytes = std::to_string(size);
        fail_here(how + (" " + bytes) + " bytes at an address that is not a multiple of " + bytes);
    }

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

    void put(unsigned char* address, const void* bytes, unsigned size) {
        ++progress_;
        if (!weak_) {
            if (alive(address)) std::memcpy(address, bytes, size);
            return;
        }
        Store made{address, {}, size, block().generation};
        std::memcpy(made.bytes, bytes, size);
        current->stores.push_back(made);
        ++block().pending;
    }

    void see(const void* address, void* bytes, unsigned size) {
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
};

}  // namespace melodia::emulator
