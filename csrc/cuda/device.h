// What the kernels of csrc/cuda are written in: one source for nvcc and, with MELODIA_EMULATOR, for the
// host's compiler and the emulator (emulator.h).
//
// A kernel uses these names only. No static __shared__ (MELODIA_SHARED), no loop that waits for another
// thread without Spin, no PTX outside this file, one dimension of blocks and threads, whole warps in the
// collectives. Data that another block reads goes through store_data, load_data, store_relaxed, load_relaxed,
// copy_async.
//
// Everything that orders threads has a name and can be taken away: built with MELODIA_MUTANT="name" the
// barrier, fence or check of that name is missing, and a test has to fail (tests/test_cuda_mutants.py).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "cuda/numbers.h"

#ifndef MELODIA_MUTANT
#define MELODIA_MUTANT ""
#endif

namespace melodia::cuda {

__host__ __device__ constexpr bool same(const char* a, const char* b) {
    while (*a && *a == *b) ++a, ++b;
    return *a == *b;
}

// ---- What a mutant lacks: the names are found by the test in the text of the sources

#define MELODIA_HAS(name) (!::melodia::cuda::same(name, MELODIA_MUTANT))
// A barrier of the block.
#define MELODIA_SYNC(name)                                                  \
    do {                                                                    \
        if constexpr (MELODIA_HAS(name)) ::melodia::cuda::sync_block(name); \
    } while (0)
// A barrier of the block, and whether `predicate` held for all its threads.
#define MELODIA_ALL(name, predicate) \
    (MELODIA_HAS(name) ? ::melodia::cuda::sync_all(name, predicate) : (predicate))
// Any other statement that orders threads: a fence, a barrier of a warp, a wait.
#define MELODIA_ORDER(name, ...)                      \
    do {                                              \
        if constexpr (MELODIA_HAS(name)) __VA_ARGS__; \
    } while (0)
// A value that carries an order (an epoch, a parity) and what stands in its place in the mutant.
#define MELODIA_EPOCH(name, value, instead) (MELODIA_HAS(name) ? (value) : (instead))

// ---- Who am I

#if defined(MELODIA_EMULATOR)
inline unsigned thread() { return emulator::machine.current->thread; }
inline unsigned threads() { return emulator::machine.threads; }
inline unsigned block() { return emulator::machine.block().index; }
inline unsigned blocks() { return emulator::machine.blocks; }
#else
MELODIA_DEVICE unsigned thread() { return threadIdx.x; }
MELODIA_DEVICE unsigned threads() { return blockDim.x; }
MELODIA_DEVICE unsigned block() { return blockIdx.x; }
MELODIA_DEVICE unsigned blocks() { return gridDim.x; }
#endif
MELODIA_DEVICE unsigned lane() { return thread() % 32; }
MELODIA_DEVICE unsigned warp() { return thread() / 32; }
MELODIA_DEVICE unsigned warps() { return threads() / 32; }

// The block's dynamic shared memory, aligned to 128 bytes.
#if defined(MELODIA_EMULATOR)
#define MELODIA_SHARED(name) unsigned char* name = ::melodia::emulator::machine.shared()
#else
#define MELODIA_SHARED(name)                                     \
    extern __shared__ __align__(128) unsigned char name##_raw[]; \
    unsigned char* name = name##_raw
#endif

// ---- Inside a block

MELODIA_DEVICE void sync_block(const char* name) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.sync_block(name);
#else
    (void)name;
    __syncthreads();
#endif
}

MELODIA_DEVICE bool sync_all(const char* name, bool predicate) {
#if defined(MELODIA_EMULATOR)
    return emulator::machine.sync_all(name, predicate);
#else
    (void)name;
    return __syncthreads_and(predicate) != 0;
#endif
}

MELODIA_DEVICE void sync_warp() {
#if defined(MELODIA_EMULATOR)
    emulator::machine.sync_warp();
#else
    __syncwarp();
#endif
}

// The value of lane `source`; T of 4 or 8 bytes.
template <class T>
MELODIA_DEVICE T shuffle(T value, unsigned source) {
#if defined(MELODIA_EMULATOR)
    T out;
    emulator::machine.exchange(&value, sizeof(T), [&](const emulator::Warp::Box& box) {
        std::memcpy(&out, box[source % 32], sizeof(T));
    });
    return out;
#else
    return __shfl_sync(0xFFFFFFFFu, value, source);
#endif
}

template <class T>
MELODIA_DEVICE T shuffle_xor(T value, unsigned mask) {
#if defined(MELODIA_EMULATOR)
    return shuffle(value, lane() ^ mask);
#else
    return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
#endif
}

// A bit per lane: whose `predicate` holds.
MELODIA_DEVICE uint32_t warp_ballot(bool predicate) {
#if defined(MELODIA_EMULATOR)
    uint32_t out = 0;
    const unsigned char mine = predicate;
    const unsigned lanes = std::min(32u, threads() - warp() * 32);
    emulator::machine.exchange(&mine, 1, [&](const emulator::Warp::Box& box) {
        for (unsigned k = 0; k < lanes; ++k) out |= uint32_t{box[k][0]} << k;
    });
    return out;
#else
    return __ballot_sync(0xFFFFFFFFu, predicate);
#endif
}

// The place of the lowest bit that is set.
MELODIA_DEVICE int lowest_bit(uint32_t bits) {
#if defined(MELODIA_EMULATOR)
    return __builtin_ctz(bits);
#else
    return __ffs(static_cast<int>(bits)) - 1;
#endif
}

MELODIA_DEVICE float warp_sum(float x) {
    MELODIA_UNROLL
    for (unsigned mask = 16; mask; mask >>= 1) x += shuffle_xor(x, mask);
    return x;
}

// ---- Between blocks: global memory

// Data that other blocks wrote in this launch: read from L2, never from a cache of this SM. T of 2, 4, 8 or
// 16 bytes.
template <class T>
MELODIA_DEVICE T load_data(const T* p) {
#if defined(MELODIA_EMULATOR)
    T value;
    emulator::machine.load(p, &value, sizeof(T));
    return value;
#else
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "no such access");
    T value;
    if constexpr (sizeof(T) == 2) {
        const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(p));
        memcpy(&value, &bits, 2);
    } else if constexpr (sizeof(T) == 4) {
        const unsigned bits = __ldcg(reinterpret_cast<const unsigned*>(p));
        memcpy(&value, &bits, 4);
    } else if constexpr (sizeof(T) == 8) {
        const uint2 bits = __ldcg(reinterpret_cast<const uint2*>(p));
        memcpy(&value, &bits, 8);
    } else {
        const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(p));
        memcpy(&value, &bits, 16);
    }
    return value;
#endif
}

template <class T>
MELODIA_DEVICE void store_data(T* p, T value) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.store(p, &value, sizeof(T));
#else
    *p = value;
#endif
}

// A word that arrives whole, ordered with nothing: the in-band exchange's {payload, epoch}.
MELODIA_DEVICE uint64_t load_relaxed(const uint64_t* p) {
    uint64_t value;
#if defined(MELODIA_EMULATOR)
    emulator::machine.load_relaxed(p, &value, 8);
#else
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
#endif
    return value;
}
MELODIA_DEVICE uint32_t load_relaxed(const uint32_t* p) {
    uint32_t value;
#if defined(MELODIA_EMULATOR)
    emulator::machine.load_relaxed(p, &value, 4);
#else
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
#endif
    return value;
}
MELODIA_DEVICE void store_relaxed(uint64_t* p, uint64_t value) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.store(p, &value, 8);
#else
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(value) : "memory");
#endif
}
MELODIA_DEVICE void store_relaxed(uint32_t* p, uint32_t value) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.store(p, &value, 4);
#else
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}
MELODIA_DEVICE uint32_t add_relaxed(uint32_t* p, uint32_t value) {
#if defined(MELODIA_EMULATOR)
    return emulator::machine.add(p, value);
#else
    uint32_t before;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(p), "r"(value)
                 : "memory");
    return before;
#endif
}

// Before a relaxed store or add: what this thread wrote, and what the others of its block had written at its
// last barrier, is seen by whoever sees that store and fences after it.
MELODIA_DEVICE void fence_release() {
#if defined(MELODIA_EMULATOR)
    emulator::machine.release();
#else
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}
// After a relaxed load.
MELODIA_DEVICE void fence_acquire() {
#if defined(MELODIA_EMULATOR)
    emulator::machine.acquire();
#else
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// ---- Between the blocks of a cluster: shared memory (sm_90 and newer). The whole grid is one cluster, so a
// block's rank is block().

// Until every thread of the cluster is here; what was stored before is seen behind it.
MELODIA_DEVICE void sync_cluster() {
#if defined(MELODIA_EMULATOR)
    emulator::machine.sync_cluster();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// A word of a block's own shared memory that another block stores.
MELODIA_DEVICE uint64_t load_from_cluster(const uint64_t* own) {
#if defined(MELODIA_EMULATOR)
    return *own;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    uint64_t value;
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(own));
    asm volatile("ld.relaxed.cluster.shared::cta.u64 %0, [%1];" : "=l"(value) : "r"(at) : "memory");
    return value;
#else
    (void)own;
    return 0;
#endif
}

// The word that stands in the shared memory of block `rank` where `own` stands in this one's; it arrives
// whole, ordered with nothing.
MELODIA_DEVICE void store_to_cluster(uint64_t* own, unsigned rank, uint64_t value) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.store_to(rank, own, &value, 8);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    unsigned to;
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(own));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(at), "r"(rank));
    asm volatile("st.relaxed.cluster.shared::cluster.u64 [%0], %1;" ::"r"(to), "l"(value) : "memory");
#else
    (void)own, (void)rank, (void)value;
#endif
}

// ---- Asynchronous copies: 16 bytes from global (L2) to shared memory, both aligned

MELODIA_DEVICE void copy_async(void* shared, const void* global) {
#if defined(MELODIA_EMULATOR)
    emulator::machine.copy(shared, global);
#else
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#endif
}
MELODIA_DEVICE void commit_copies() {
#if defined(MELODIA_EMULATOR)
    emulator::machine.commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `Left` of this thread's committed groups are under way.
template <int Left>
MELODIA_DEVICE void wait_copies() {
#if defined(MELODIA_EMULATOR)
    emulator::machine.wait_copies(Left);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

// ---- Waiting, never for ever

MELODIA_DEVICE uint64_t nanoseconds() {
#if defined(MELODIA_EMULATOR)
    return emulator::machine.clock();
#else
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
#endif
}

// A wait that ends: `while (!there()) if (!spin.again()) return false;`. again() is false when `limit_ns`
// have gone by or another thread has given up; `gave_up` is set then, so that the whole launch ends soon. The
// host, or a kernel that follows, looks at `gave_up` and does the work in another way.
class Spin {
  public:
    MELODIA_DEVICE Spin(uint32_t* gave_up, uint64_t limit_ns) : gave_up_(gave_up), limit_(limit_ns) {}

    MELODIA_DEVICE bool again() {
#if defined(MELODIA_EMULATOR)
        emulator::machine.pause();
        constexpr unsigned period = 1;
#else
        constexpr unsigned period = 64;
#endif
        if (++count_ % period != 0) return true;
        if (load_relaxed(gave_up_) != 0) return false;
        const uint64_t now = nanoseconds();
        if (start_ == 0) start_ = now | 1;
        if (now - start_ < limit_ || now < start_) return true;
        store_relaxed(gave_up_, 1u);
        return false;
    }

  private:
    uint32_t* gave_up_;
    uint64_t limit_, start_ = 0;
    unsigned count_ = 0;
};

// ---- Products on a warp

// c[16][8] += a[16][16] b[16][8] by the tensor cores; S is Bf16 or Half. The lane with g = lane / 4, q = lane
// % 4 holds
//   a: {a[g][2q, 2q+1], a[g+8][2q..], a[g][2q+8..], a[g+8][2q+8..]}, two numbers in a word, the first in the
//   low half; b: {b[2q, 2q+1][g], b[2q+8, 2q+9][g]};   c: {c[g][2q], c[g][2q+1], c[g+8][2q], c[g+8][2q+1]}.
template <class S>
MELODIA_DEVICE void multiply_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(MELODIA_EMULATOR)
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned g = lane() / 4, q = lane() % 4;
    emulator::machine.exchange(mine, sizeof mine, [&](const emulator::Warp::Box& box) {
        const auto word = [&](unsigned from, unsigned k) {
            uint32_t x;
            std::memcpy(&x, box[from] + 4 * k, 4);
            return x;
        };
        const auto number = [](uint32_t x, unsigned high) {
            return to_float(S{static_cast<uint16_t>(high ? x >> 16 : x)});
        };
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned half = k / 8, from = k % 8 / 2;
            for (unsigned row = 0; row < 2; ++row) {
                const float x = number(word(g * 4 + from, half * 2 + row), k % 2);
                for (unsigned column = 0; column < 2; ++column) {
                    const float y = number(word((2 * q + column) * 4 + from, 4 + half), k % 2);
                    c[row * 2 + column] += x * y;
                }
            }
        }
    });
#else
    if constexpr (same_type<S, Bf16>::value) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#endif
}

// A float as a tensor core takes it: rounded to 10 bits of fraction, halves away from zero; infinities stay.
// The core itself ignores the bits below, which may be all that makes a NaN one.
MELODIA_DEVICE uint32_t tf32_bits(Tf32 x) {
    const uint32_t bits = bits_of(x.value);
    return x.value != x.value ? bits | 0x400000 : (bits + 0x1000) & 0xFFFFE000;
}

// The same over 8 numbers of tf32_bits:
//   a: {a[g][q], a[g+8][q], a[g][q+4], a[g+8][q+4]};   b: {b[q][g], b[q+4][g]};   c: as above.
MELODIA_DEVICE void multiply_16x8x8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(MELODIA_EMULATOR)
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned g = lane() / 4, q = lane() % 4;
    emulator::machine.exchange(mine, sizeof mine, [&](const emulator::Warp::Box& box) {
        const auto number = [&](unsigned from, unsigned k) {
            uint32_t x;
            std::memcpy(&x, box[from] + 4 * k, 4);
            return float_of(x & 0xFFFFE000);
        };
        for (unsigned k = 0; k < 8; ++k)
            for (unsigned sum = 0; sum < 4; ++sum)
                c[sum] += number(g * 4 + k % 4, k / 4 * 2 + sum / 2) *
                          number((2 * q + sum % 2) * 4 + k % 4, 4 + k / 4);
    });
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// sum + the products of four signed bytes.
MELODIA_DEVICE int32_t dot4(uint32_t a, uint32_t b, int32_t sum) {
#if defined(MELODIA_EMULATOR)
    for (int k = 0; k < 4; ++k) sum += int32_t(int8_t(a >> 8 * k)) * int32_t(int8_t(b >> 8 * k));
    return sum;
#else
    return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
#endif
}

}  // namespace melodia::cuda
