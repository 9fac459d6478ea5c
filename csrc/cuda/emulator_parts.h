// What the emulator (emulator.h) is made of: fibers, warps, blocks, stores that are under way.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace melodia::emulator {

// What a test chooses; melodia_emulator_configure sets it.
struct Setup {
    uint64_t schedule = 1;            // every number is another schedule; 0: in order, with a strong memory
    int64_t resident_blocks = 16;     // how many blocks run at once
    int64_t shared_bytes = 64 << 10;  // dynamic shared memory that a block may have
    bool expire = false;              // when nobody can go on, time runs out instead (once per launch)
};

struct Random {  // splitmix64
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t n) { return next() % n; }
};

struct Store {
    unsigned char* address;
    unsigned char bytes[16];
    unsigned size;
    uint64_t generation;  // of the block's barrier when it was made
};

// What became of a copy when it was issued: nothing, its source was read, or it arrived.
enum class Copied { asked, read, landed };

struct Copy {
    unsigned char* to;
    const unsigned char* from;
    unsigned char bytes[16];
    unsigned group;
    Copied copied;
};

enum class Wait { none, block, warp, cluster, done };

// Where a fiber, or the machine, goes on: for the compiler's own jumps, which cost less than the C library's.
using Context = void* [5];

struct Fiber {
    Context context;
    ucontext_t entry;
    unsigned thread, slot;  // slot: of the block among those that are resident
    bool started = false;
    Wait wait = Wait::none;
    uint64_t acquired = 0;  // stores flushed up to here are certainly seen
    unsigned group = 0;     // of asynchronous copies
    std::vector<Store> stores;
    std::vector<Copy> copies;
};

struct Warp {
    unsigned arrived = 0, left = 0;
    uint64_t generation = 0;  // of its barrier
    using Box = unsigned char[32][64];
    alignas(16) Box boxes[2];
};

struct Block {
    unsigned index = 0, arrived = 0, left = 0;
    const char* site = nullptr;  // the barrier at which the first thread arrived
    bool vote = true,
         all = true;  // of sync_all: what those say who are there; what all said at the last barrier
    uint64_t generation = 0;
    size_t pending = 0;  // stores of its threads that are not flushed
    std::vector<unsigned char> shared;
    std::vector<Warp> warps;
};

struct Old {
    uint16_t value;
    uint64_t sequence;
    unsigned slot;
};

// Who stands still until the others cannot go on: nobody, one block, all blocks but one, a warp of every
// block.
struct Victim {
    int kind = 0;
    unsigned which = 0;
    bool holds(const Fiber& f) const {
        return kind == 1   ? f.slot == which
               : kind == 2 ? f.slot != which
               : kind == 3 ? f.thread / 32 == which
               : kind == 4 ? f.thread / 32 != which
                           : false;
    }
};

// Where shared memory begins in a block's vector.
template <class T>
unsigned char* aligned(const T* shared) {
    const auto at = (reinterpret_cast<uintptr_t>(shared) + 127) & ~uintptr_t{127};
    return reinterpret_cast<unsigned char*>(at);
}

// The bytes of a store that lie within `size` bytes from an address on.
inline void forward(const Store& s, const unsigned char* address, unsigned char* bytes, unsigned size) {
    const unsigned char *from = std::max<const unsigned char*>(s.address, address),
                        *to = std::min<const unsigned char*>(s.address + s.size, address + size);
    if (from < to) std::memcpy(bytes + (from - address), s.bytes + (from - s.address), to - from);
}

inline Victim choose(const Setup& setup, Random& random, size_t blocks, unsigned threads) {
    Victim v;
    if (setup.schedule == 0) return v;
    v.kind = static_cast<int>(random.below(5));
    v.which = static_cast<unsigned>(random.below(v.kind <= 2 ? blocks : (threads + 31) / 32));
    return v;
}

constexpr size_t kStack = 128 << 10, kCanary = 64;
constexpr int kPatience = 200;  // rounds in which everybody spins before it counts as a deadlock

// Shared memory of a block: NaN, or what a block before left there.
inline std::vector<unsigned char> new_shared(const std::vector<unsigned char>& before, size_t bytes,
                                             const Setup& setup, Random& random) {
    std::vector<unsigned char> shared(bytes + 128 + kCanary, 0xFF);
    if (setup.schedule && !before.empty() && random.below(2)) {
        const size_t left = std::min(bytes, before.size() - 128 - kCanary);
        std::memcpy(aligned(shared.data()), aligned(before.data()), left);
    }
    return shared;
}

// Whether nobody wrote behind the `bytes` of a block's.
inline bool canary_lives(const std::vector<unsigned char>& shared, size_t bytes) {
    return std::all_of<const unsigned char*>(aligned(shared.data()) + bytes, shared.data() + shared.size(),
                                             [](unsigned char c) { return c == 0xFF; });
}

}  // namespace melodia::emulator
