// Small kernels that are right, and wrong ones that the emulator has to find: see
// tests/test_cuda_emulator.py. Arguments: the name of a case and how many schedules to try. Prints how many
// went wrong, and the first error.
#include <cstdio>
#include <cstdlib>

#include "cuda/launch.h"

using namespace melodia::cuda;

namespace {

constexpr unsigned kBlocks = 4, kThreads = 64;
constexpr uint64_t kLimit = 1000000000;

struct Args {
    float *data, *out;
    uint32_t *counter, *gave_up;
    uint64_t* words;
};

// Every block writes a number per thread, all wait for all, every thread reads its number of the next block.
template <bool Fence, bool Acquire, bool First, bool Last>
__global__ void all_gather(Args a) {
    const unsigned at = block() * kThreads + thread();
    store_data(a.data + at, float(at));
    if (First) sync_block("written");
    if (thread() == 0) {
        if (Fence) fence_release();
        add_relaxed(a.counter, 1);
        Spin spin(a.gave_up, kLimit);
        while (load_relaxed(a.counter) < kBlocks && spin.again()) {
        }
        if (Acquire) fence_acquire();
    }
    if (Last) sync_block("read");
    a.out[at] = load_data(a.data + (at + kThreads) % (kBlocks * kThreads));
}

// Rounds of an all-gather in words that carry their epoch, in two buffers: a thread's word of round t + 2
// replaces the one of round t, which all have read when it has read all of round t + 1.
template <bool Check, bool Two>
__global__ void in_band(Args a) {
    const unsigned all = kBlocks * kThreads;
    uint32_t value = block() * kThreads + thread();
    for (uint32_t epoch = 1; epoch <= 3; ++epoch) {
        uint64_t* words = a.words + (Two ? epoch % 2 : 0) * all;
        store_relaxed(words + block() * kThreads + thread(), uint64_t{epoch} << 32 | value);
        for (unsigned k = 0; k < kBlocks; ++k) {
            const unsigned from = (block() + 1 + k) % kBlocks;
            Spin spin(a.gave_up, kLimit);
            uint64_t got = load_relaxed(words + from * kThreads + thread());
            while (Check && got >> 32 != epoch && spin.again())
                got = load_relaxed(words + from * kThreads + thread());
            if (k == 0) value = static_cast<uint32_t>(got) + 1;
        }
    }
    a.out[block() * kThreads + thread()] = float(value);
}

// Copies 16 bytes per thread through shared memory, read back by the neighbour.
template <bool Waited>
__global__ void through_shared(Args a) {
    MELODIA_SHARED(raw);
    auto* shared = reinterpret_cast<float*>(raw);
    copy_async(shared + 4 * thread(), a.data + 4 * (block() * kThreads + thread()));
    commit_copies();
    if (Waited) wait_copies<0>();
    sync_block("copied");
    a.out[block() * kThreads + thread()] = shared[4 * ((thread() + 1) % kThreads)];
    wait_copies<0>();
}

// What the neighbour is still to read is copied over only behind a barrier.
template <bool Read>
__global__ void over_shared(Args a) {
    MELODIA_SHARED(raw);
    auto* shared = reinterpret_cast<float*>(raw);
    shared[4 * thread()] = -float(thread());
    sync_block("written");
    const float before = Read ? shared[4 * ((thread() + 1) % kThreads)] : 0.0f;
    if (Read) sync_block("read");
    copy_async(shared + 4 * thread(), a.data + 4 * (block() * kThreads + thread()));
    commit_copies();
    a.out[block() * kThreads + thread()] = Read ? before : shared[4 * ((thread() + 1) % kThreads)];
    wait_copies<0>();
}

template <bool Committed>
__global__ void ends_early(Args a) {
    MELODIA_SHARED(raw);
    copy_async(raw + 16 * thread(), a.data + 4 * thread());
    if (Committed) commit_copies();
    if (!Committed) wait_copies<0>();
}

// Every thread sends two words to the next block of the cluster, and waits for one.
template <bool First, bool Last>
__global__ void in_cluster(Args a) {
    MELODIA_SHARED(raw);
    auto* words = reinterpret_cast<uint64_t*>(raw);
    words[thread()] = words[kThreads + thread()] = 0;
    if (First) sync_cluster();
    const uint32_t value = block() * kThreads + thread();
    for (unsigned k = 0; k < 2; ++k)
        store_to_cluster(words + k * kThreads + thread(), (block() + 1) % kBlocks, uint64_t{1} << 32 | value);
    Spin spin(a.gave_up, kLimit);
    uint64_t got = load_from_cluster(words + thread());
    while (got == 0 && spin.again()) got = load_from_cluster(words + thread());
    a.out[value] = float(static_cast<uint32_t>(got));
    if (Last) sync_cluster();
}

__global__ void waits_for_ever(Args a) {
    while (load_relaxed(a.counter) == 0) {
        Spin spin(a.gave_up, ~uint64_t{0} >> 1);
        if (!spin.again()) return;
    }
}

__global__ void gives_up(Args a) {
    Spin spin(a.gave_up, kLimit);
    while (load_relaxed(a.counter) == 0 && spin.again()) {
    }
    a.out[0] = 1.0f;
}

__global__ void half_a_barrier(Args) {
    if (thread() < 32) sync_block("half");
    sync_block("whole");
}

__global__ void past_the_end(Args) {
    MELODIA_SHARED(raw);
    raw[kThreads * 16 + thread() % 4] = 1;
}

__global__ void copies_past_the_end(Args a) {
    MELODIA_SHARED(raw);
    copy_async(raw + 16 * (thread() + 1), a.data);
    commit_copies();
    wait_copies<0>();
}

// ---- Beside global memory, whose `counter` has one number, and where it is not aligned

__global__ void reads_beside(Args a) { a.out[0] = float(load_relaxed(a.counter - 1)); }
__global__ void reads_across(Args a) {
    a.out[0] = load_data(reinterpret_cast<Words*>(a.data + 4 * kBlocks * kThreads - 2)).x[0];
}
__global__ void writes_beside(Args a) { store_data(a.counter + 1, 1u); }
__global__ void adds_beside(Args a) { add_relaxed(a.counter + 1, 1u); }
__global__ void writes_plainly_beside(Args a) { a.counter[1] = 1; }
__global__ void reads_plainly_beside(Args a) {
    a.out[block() * kThreads + thread()] = reinterpret_cast<const float*>(a.counter)[-1];
}
__global__ void copies_beside(Args a) {
    MELODIA_SHARED(raw);
    copy_async(raw, a.counter);
}
__global__ void copies_unaligned(Args a) {
    MELODIA_SHARED(raw);
    copy_async(raw, a.data + 1);
}
__global__ void reads_unaligned(Args a) {
    a.out[0] = float(load_data(reinterpret_cast<uint64_t*>(a.data + 1)));
}
__global__ void reads_plainly_unaligned(Args a) {
    a.out[0] = float(reinterpret_cast<const Words*>(a.data + 2)->x[0]);
}

// 16 x 16 times 16 x 8 by the tensor cores against plain sums; numbers that both types hold exactly.
template <class S>
__global__ void product(Args a) {
    const unsigned g = lane() / 4, q = lane() % 4;
    const auto x = [](unsigned row, unsigned k) { return float(int(row * 5 + k * 3) % 13 - 6); };
    const auto y = [](unsigned k, unsigned column) { return float(int(k * 7 + column * 2) % 11 - 5); };
    const auto pair = [](float low, float high) {
        return payload_of(from_float<S>(low)) | payload_of(from_float<S>(high)) << 16;
    };
    uint32_t left[4], right[2];
    for (unsigned j = 0; j < 4; ++j) {
        const unsigned row = g + j % 2 * 8, k = 2 * q + j / 2 * 8;
        left[j] = pair(x(row, k), x(row, k + 1));
    }
    for (unsigned j = 0; j < 2; ++j) right[j] = pair(y(2 * q + 8 * j, g), y(2 * q + 8 * j + 1, g));
    float c[4] = {};
    multiply_16x8x16<S>(c, left, right);
    float wrong = 0;
    for (unsigned j = 0; j < 4; ++j) {
        for (unsigned k = 0; k < 16; ++k) c[j] -= x(g + j / 2 * 8, k) * y(k, 2 * q + j % 2);
        wrong += c[j] != 0.0f;
    }
    a.out[block() * kThreads + thread()] =
        wrong + warp_sum(1.0f) - 32.0f + float(warp_ballot(lane() % 2) != 0xAAAAAAAAu);
}

// 16 x 8 times 8 x 8, likewise.
__global__ void product_tf32(Args a) {
    const unsigned g = lane() / 4, q = lane() % 4;
    const auto x = [](unsigned row, unsigned k) { return float(int(row * 5 + k * 3) % 13 - 6); };
    const auto y = [](unsigned k, unsigned column) { return float(int(k * 7 + column * 2) % 11 - 5); };
    const auto taken = [](float number) { return tf32_bits(Tf32{number}); };
    const uint32_t left[4] = {taken(x(g, q)), taken(x(g + 8, q)), taken(x(g, q + 4)), taken(x(g + 8, q + 4))};
    const uint32_t right[2] = {taken(y(q, g)), taken(y(q + 4, g))};
    float c[4] = {};
    multiply_16x8x8(c, left, right);
    float wrong = 0;
    for (unsigned j = 0; j < 4; ++j) {
        for (unsigned k = 0; k < 8; ++k) c[j] -= x(g + j / 2 * 8, k) * y(k, 2 * q + j % 2);
        wrong += c[j] != 0.0f;
    }
    a.out[block() * kThreads + thread()] = wrong;
}

// A NaN is one to a tensor core, too, which does not see the low 13 bits; an infinity is none.
__global__ void not_a_number_tf32(Args a) {
    float wrong = 0;
    for (uint32_t sign : {0u, 0x80000000u}) {
        for (uint32_t fraction : {0u, 1u, 0x1FFFu, 0x2000u, 0x400000u, 0x7FFFFFu}) {
            const uint32_t number = tf32_bits(Tf32{float_of(sign | 0x7F800000 | fraction)});
            const uint32_t left[4] = {number, number, number, number}, right[2] = {0x3F800000, 0x3F800000};
            float c[4] = {};
            multiply_16x8x8(c, left, right);
            wrong += fraction == 0 ? c[0] != (sign ? -INFINITY : INFINITY) : c[0] == c[0];
        }
    }
    a.out[block() * kThreads + thread()] = wrong;
}

using Kernel = void (*)(Args);
using Want = float (*)(unsigned);

float gathered(unsigned at) { return float((at + kThreads) % (kBlocks * kThreads)); }
float thrice(unsigned at) { return float((at + 3 * kThreads) % (kBlocks * kThreads) + 3); }
float sent(unsigned at) { return float((at + (kBlocks - 1) * kThreads) % (kBlocks * kThreads)); }
float neighbour(unsigned at) {
    return float(4 * (at / kThreads * kThreads + (at % kThreads + 1) % kThreads));
}
float written(unsigned at) { return -float((at % kThreads + 1) % kThreads); }
float zero(unsigned) { return 0.0f; }
float one_then_zero(unsigned at) { return at == 0 ? 1.0f : 0.0f; }

// Zeros in global memory.
template <class T>
struct Given {
    T* at;

    explicit Given(size_t count) : at(reinterpret_cast<T*>(memory().take(count * sizeof(T)))) {}
    Given(const Given&) = delete;
    ~Given() { memory().give_back(reinterpret_cast<unsigned char*>(at)); }
    T& operator[](size_t k) const { return at[k]; }
    static melodia::emulator::Memory& memory() { return melodia::emulator::machine.memory; }
};

struct Case {
    const char* name;
    Kernel kernel;
    Want want;
};

const Case cases[] = {
    {"all_gather", all_gather<true, true, true, true>, gathered},
    {"all_gather without release", all_gather<false, true, true, true>, gathered},
    {"all_gather without acquire", all_gather<true, false, true, true>, gathered},
    {"all_gather without first barrier", all_gather<true, true, false, true>, gathered},
    {"all_gather without last barrier", all_gather<true, true, true, false>, gathered},
    {"in_band", in_band<true, true>, thrice},
    {"in_band without epoch", in_band<false, true>, thrice},
    {"in_band with one buffer", in_band<true, false>, thrice},
    {"through_shared", through_shared<true>, neighbour},
    {"through_shared without wait", through_shared<false>, neighbour},
    {"over_shared", over_shared<true>, written},
    {"over_shared without barrier", over_shared<false>, written},
    {"in_cluster", in_cluster<true, true>, sent},
    {"in_cluster without first barrier", in_cluster<false, true>, sent},
    {"in_cluster without last barrier", in_cluster<true, false>, sent},
    {"waits_for_ever", waits_for_ever, zero},
    {"gives_up", gives_up, one_then_zero},
    {"half_a_barrier", half_a_barrier, zero},
    {"past_the_end", past_the_end, zero},
    {"copies_past_the_end", copies_past_the_end, zero},
    {"ends_early", ends_early<true>, zero},
    {"ends_early uncommitted", ends_early<false>, zero},
    {"reads_beside", reads_beside, zero},
    {"reads_across", reads_across, zero},
    {"writes_beside", writes_beside, zero},
    {"adds_beside", adds_beside, zero},
    {"copies_beside", copies_beside, zero},
    {"writes_plainly_beside", writes_plainly_beside, zero},
    {"reads_plainly_beside", reads_plainly_beside, zero},
    {"copies_unaligned", copies_unaligned, zero},
    {"reads_unaligned", reads_unaligned, zero},
    {"reads_plainly_unaligned", reads_plainly_unaligned, zero},
    {"product bf16", product<Bf16>, zero},
    {"product fp16", product<Half>, zero},
    {"product tf32", product_tf32, zero},
    {"not_a_number_tf32", not_a_number_tf32, zero},
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return 2;
    for (const Case& c : cases) {
        if (!same(c.name, arguments[1])) continue;
        int wrong = 0;
        const char* first = "";
        static char text[512];
        const int schedules = std::atoi(arguments[2]);
        for (int schedule = 0; schedule < schedules; ++schedule) {
            auto& machine = melodia::emulator::machine;
            machine.setup = {static_cast<uint64_t>(schedule), kBlocks, 64 << 10, same(c.name, "gives_up")};
            constexpr unsigned all = kBlocks * kThreads;
            Given<float> data(4 * all), out(all);
            Given<uint64_t> words(2 * all);
            Given<uint32_t> counter(1), gave_up(1);
            for (unsigned k = 0; k < 4 * all; ++k) data[k] = c.want == neighbour ? float(k) : -1.0f;
            const Args args{data.at, out.at, counter.at, gave_up.at, words.at};
            const char* error =
                launch(c.name, c.kernel, {kBlocks, kThreads, kThreads * 16, Together::grid}, nullptr, args);
            bool bad = error != nullptr;
            for (unsigned k = 0; k < all; ++k) bad = bad || out[k] != c.want(k);
            if (error && !*first) first = std::strncpy(text, error, sizeof text - 1);
            wrong += bad;
        }
        std::printf("%d %s\n", wrong, first);
        return 0;
    }
    return 2;
}
