// What the design of csrc/cuda rests on, measured alone: how long numbers take from every block to every
// block, and how fast a block reads. Built and called by the part `primitives` of gpu_check.py
// (benchmarks/gpu_primitives.py), and by its test with MELODIA_EMULATOR.
#include <algorithm>
#include <vector>

#include "cuda/decode_exchange.h"
#include "cuda/launch.h"
#if !defined(MELODIA_EMULATOR)
#include <cooperative_groups.h>
#endif

using namespace melodia::cuda;
using namespace melodia::cuda::decode;

namespace {

constexpr int kThreads = 256;
constexpr uint32_t kModulus = 65521;
constexpr uint64_t kLimit = 2'000'000'000;

enum Way : int { kAlone, kGrid, kCounter, kWords, kCluster };

struct ExchangeArgs {
    int way, numbers, steps;
    uint64_t* words;  // [2][numbers]
    uint32_t *gave_up, *counter;
    uint32_t* sums;  // [blocks], of the last step
};

MELODIA_DEVICE void sync_grid() {
#if !defined(MELODIA_EMULATOR)
    cooperative_groups::this_grid().sync();
#endif
}

// As rows are announced and waited for (cuda/decode_exchange.h).
MELODIA_DEVICE void sync_counter(const ExchangeArgs& a, uint32_t epoch, int* flag) {
    sync_block("probe: posted");
    if (thread() == 0) {
        fence_release();
        add_relaxed(a.counter, 1u);
        Spin spin(a.gave_up, kLimit);
        while (load_relaxed(a.counter) < epoch * blocks()) {
            if (spin.again()) continue;
            *flag = 0;
            break;
        }
        fence_acquire();
    }
    sync_block("probe: all posted");
}

// In every step block k makes its share of `numbers` numbers, which depend on the sum of all numbers of the
// step before, and takes all of them in. kAlone: a block makes and sums all of them by itself, what a step
// costs without neighbours.
__global__ void __launch_bounds__(kThreads, 1) exchange(const ExchangeArgs a) {
    MELODIA_SHARED(shared);
    auto* near = reinterpret_cast<uint64_t*>(shared);
    auto* parts = reinterpret_cast<uint32_t*>(shared + 16 * a.numbers);
    auto* flag = reinterpret_cast<int*>(parts + 32);
    const int me = static_cast<int>(thread()), count = static_cast<int>(threads());
    // Every block has a share: two buffers are enough only where each waits for all others.
    const int begin = static_cast<int>(a.numbers * block() / blocks());
    const int end = static_cast<int>(a.numbers * (block() + 1) / blocks());
    const bool cluster = a.way == kCluster;
    for (int i = me; i < 2 * a.numbers; i += count) near[i] = 0;
    if (me == 0) *flag = 1;
    sync_block("probe: cleared");
    if (cluster) sync_cluster();
    uint32_t sum = 1;
    for (int step = 0; step < a.steps; ++step) {
        const uint32_t epoch = uint32_t(step) + 1;
        uint64_t* words = (cluster || a.way == kAlone ? near : a.words) + (epoch & 1) * a.numbers;
        const Channel c = {epoch, a.gave_up, kLimit, 0, cluster ? blocks() : 0};
        const auto number = [&](int i) { return (sum + uint32_t(i)) % kModulus; };
        uint32_t part = 0;
        if (a.way == kAlone) {
            for (int i = me; i < a.numbers; i += count) part += number(i);
        } else if (a.way == kGrid || a.way == kCounter) {
            for (int i = begin + me; i < end; i += count) store_data(words + i, uint64_t{number(i)});
            if (a.way == kGrid)
                sync_grid();
            else
                sync_counter(a, epoch, flag);
            for (int i = me; i < a.numbers; i += count) part += static_cast<uint32_t>(load_data(words + i));
        } else {
            for (int i = begin + me; i < end; i += count) post(c, words + i, number(i));
            receive(
                c, a.numbers, flag, [&](int i) { return words + i; }, [&](int, uint32_t x) { part += x; });
        }
        for (unsigned mask = 16; mask; mask >>= 1) part += shuffle_xor(part, mask);
        if (lane() == 0) parts[warp()] = part;
        sync_block("probe: parts");
        sum = 0;
        for (unsigned w = 0; w < warps(); ++w) sum += parts[w];
        sum %= kModulus;
        sync_block("probe: summed");
    }
    if (me == 0) a.sums[block()] = *flag ? sum : kModulus;
    if (cluster) sync_cluster();
}

constexpr int kInFlight = 8;  // loads of a thread that wait for no other

struct alignas(16) Four {
    float x[4];
};

struct ReadingArgs {
    const unsigned char* from;
    int bytes;  // of a block; a multiple of 16 for each thread
    int passes;
    float* sums;
};

// Every block reads its own bytes again and again, 16 at a time and `kInFlight` at once, as if they had no
// end: from L2, or from shared memory after one copy. A template, because a choice inside the loop would make
// every load wait for the one before.
template <bool kNear>
__global__ void __launch_bounds__(kThreads, 1) reading(const ReadingArgs a) {
    MELODIA_SHARED(shared);
    const unsigned char* from = a.from + int64_t{a.bytes} * block();
    const int me = static_cast<int>(thread()) * 16, stride = static_cast<int>(threads()) * 16;
    if (kNear) {
        for (int i = me; i < a.bytes; i += stride) copy_async(shared + i, from + i);
        commit_copies();
        wait_copies<0>();
        sync_block("probe: copied");
    }
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    int at = me;
    const int64_t loads = int64_t{a.bytes / stride} * a.passes;
#if !defined(MELODIA_EMULATOR)
#pragma unroll 1
#endif
    for (int64_t done = 0; done < loads; done += kInFlight) {
        Four four[kInFlight];
        MELODIA_UNROLL
        for (int k = 0; k < kInFlight; ++k) {
            four[k] = kNear ? *reinterpret_cast<const Four*>(shared + at)
                            : load_data(reinterpret_cast<const Four*>(from + at));
            at = at + stride < a.bytes ? at + stride : me;
        }
        MELODIA_UNROLL
        for (int k = 0; k < kInFlight; ++k) {
            MELODIA_UNROLL
            for (int i = 0; i < 4; ++i) sum[i] += four[k].x[i];
        }
    }
    if (sum[0] + sum[1] + sum[2] + sum[3] == -1.0f) a.sums[block()] = sum[0];  // never, but nobody knows
}

#if defined(MELODIA_EMULATOR)
struct Clock {
    void begin() {}
    double end() { return 0.0; }
};
template <class T>
T* reserve(size_t count) {
    return static_cast<T*>(std::calloc(count, sizeof(T)));
}
void give_back(void* p) { std::free(p); }
void read(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }
#else
struct Clock {
    cudaEvent_t first{}, last{};
    Clock() { cudaEventCreate(&first), cudaEventCreate(&last); }
    ~Clock() { cudaEventDestroy(first), cudaEventDestroy(last); }
    void begin() { cudaEventRecord(first); }
    double end() {  // microseconds
        float milliseconds = 0.0f;
        cudaEventRecord(last);
        cudaEventSynchronize(last);
        cudaEventElapsedTime(&milliseconds, first, last);
        return 1000.0 * milliseconds;
    }
};
template <class T>
T* reserve(size_t count) {
    void* p = nullptr;
    if (cudaMalloc(&p, count * sizeof(T)) != cudaSuccess) return nullptr;
    cudaMemset(p, 0, count * sizeof(T));
    return static_cast<T*>(p);
}
void give_back(void* p) { cudaFree(p); }
void read(void* host, const void* device, size_t bytes) {
    cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost);
}
#endif

}  // namespace

#define PROBE_API extern "C" __attribute__((visibility("default")))

#if defined(MELODIA_EMULATOR)
PROBE_API void probe_configure(uint64_t schedule) { melodia::emulator::machine.setup.schedule = schedule; }
#endif

// Processors of the device; 0: there is none.
PROBE_API int64_t probe_processors() {
    Device device{};
    return device_of(&device) == nullptr ? device.processors : 0;
}

// How many clusters of so many blocks, each with so much shared memory, there can be at once; -1: none are
// known.
PROBE_API int64_t probe_clusters(int64_t blocks, int64_t shared_bytes) {
    int64_t found = 0;
    const char* why = resident_clusters(exchange, static_cast<unsigned>(blocks), kThreads,
                                        static_cast<size_t>(shared_bytes), &found);
    return why == nullptr ? found : -1;
}

// Microseconds of a launch of `steps` exchanges, and the sum that every block came to in the end [blocks].
// Null, or why not.
PROBE_API const char* probe_exchange(int way, int64_t blocks, int64_t numbers, int64_t steps,
                                     double* microseconds, uint32_t* sums) {
    ExchangeArgs a{};
    a.way = way;
    a.numbers = static_cast<int>(numbers);
    a.steps = static_cast<int>(steps);
    a.words = reserve<uint64_t>(static_cast<size_t>(2 * numbers));
    a.gave_up = reserve<uint32_t>(2);
    a.counter = a.gave_up + 1;
    a.sums = reserve<uint32_t>(static_cast<size_t>(blocks));
    const Shape shape = {static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(16 * numbers + 256),
                         way == kCluster ? Together::cluster : Together::grid};
    Clock clock;
    clock.begin();
    const char* why = launch("exchange", exchange, shape, nullptr, a);
    *microseconds = clock.end();
    read(sums, a.sums, sizeof(uint32_t) * static_cast<size_t>(blocks));
    for (void* p : {static_cast<void*>(a.words), static_cast<void*>(a.gave_up), static_cast<void*>(a.sums)})
        give_back(p);
    return why;
}

// Microseconds of a launch in which every block reads so many bytes so often. Null, or why not.
PROBE_API const char* probe_reading(int shared, int64_t blocks, int64_t bytes, int64_t passes,
                                    double* microseconds) {
    if (bytes < 1 || bytes % (16 * kThreads) != 0 || bytes >= int64_t{1} << 31)
        return "a block reads a multiple of 4096 bytes below 2 GB";
    ReadingArgs a{};
    auto* from = reserve<unsigned char>(static_cast<size_t>(blocks * bytes));
    if (from == nullptr) return "so much memory is not there";
    a.from = from;
    a.bytes = static_cast<int>(bytes);
    a.passes = static_cast<int>(passes);
    a.sums = reserve<float>(static_cast<size_t>(blocks));
    const Shape shape = {static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(shared ? bytes : 0),
                         Together::no};
    Clock clock;
    clock.begin();
    const char* why = launch("reading", shared ? reading<true> : reading<false>, shape, nullptr, a);
    *microseconds = clock.end();
    give_back(from);
    give_back(a.sums);
    return why;
}
