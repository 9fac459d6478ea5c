// How the blocks of a decode launch hand numbers to each other, step after step.
//
// In words (the default): a number travels as {number, epoch} in 8 bytes that arrive whole, and a reader
// polls the word itself. Two buffers by the parity of the epoch: a block that still reads step t keeps
// everybody from step t + 2, because the logits of t + 1 need its units. Epochs only grow.
// In a cluster the words of all blocks stand in the shared memory of each: a number is stored to all that
// wait for it, and read at home. By counters (the reference): plain stores, then one is added to a counter
// that the readers wait for.
#pragma once

#include "cuda/decode_plan.h"

namespace melodia::cuda::decode {

struct Channel {
    uint32_t* counter;
    uint32_t epoch;   // of the step
    uint32_t target;  // what the counter shows when all have announced
    bool counted;
    uint32_t* gave_up;
    uint64_t limit_ns;
    uint32_t first_rank, last_rank;  // a cluster's blocks that take the numbers in; 0, 0: no cluster

    MELODIA_DEVICE bool clustered() const { return last_rank > 0; }
};

// The words of a session in a step.
MELODIA_DEVICE uint64_t* words_of(const Args& a, int step, int session) {
    const auto parity = MELODIA_EPOCH("decode exchange: parity", (a.epoch + uint32_t(step)) % 2, 0u);
    MELODIA_SHARED(shared);
    uint64_t* words = a.cluster ? reinterpret_cast<uint64_t*>(shared) : a.words;
    return words + (int64_t{parity} * a.B + session) * a.net.words;
}

// By all threads of a cluster, before its first words and behind its last.
MELODIA_DEVICE void open_words(const Args& a) {
    if (!a.cluster) return;
    MELODIA_SHARED(shared);
    auto* words = reinterpret_cast<uint64_t*>(shared);
    for (int i = static_cast<int>(thread()); i < a.layout.words / 8; i += static_cast<int>(threads()))
        words[i] = 0;
    MELODIA_ORDER("decode cluster: all clear", sync_cluster());
}
MELODIA_DEVICE void close_words(const Args& a) {
    if (a.cluster) MELODIA_ORDER("decode cluster: all done", sync_cluster());
}

MELODIA_DEVICE Channel channel_of(const Args& a, int step, int counter, int blocks) {
    return {a.counters + counter,
            a.epoch + uint32_t(step),
            uint32_t(step + 1) * uint32_t(blocks),
            a.counted != 0,
            a.gave_up,
            a.limit_ns,
            0,
            a.cluster ? static_cast<uint32_t>(a.net.blocks) : 0};
}

// The last stage's, which the sampler takes in.
MELODIA_DEVICE Channel logits_channel_of(const Args& a, int step, int counter) {
    Channel c = channel_of(a, step, counter, a.net.blocks);
    if (a.cluster) c.first_rank = c.last_rank++;
    return c;
}

MELODIA_DEVICE void post(const Channel& c, uint64_t* word, uint32_t number) {
    const uint64_t whole = uint64_t{c.epoch} << 32 | number;
    if (c.counted) {
        store_data(word, whole);
    } else if (c.clustered()) {
        for (uint32_t rank = c.first_rank; rank < c.last_rank; ++rank) store_to_cluster(word, rank, whole);
    } else {
        store_relaxed(word, whole);
    }
}

MELODIA_DEVICE uint64_t look(const Channel& c, const uint64_t* word) {
    return c.counted ? load_data(word) : c.clustered() ? load_from_cluster(word) : load_relaxed(word);
}

// By all threads of a block, after it posted.
MELODIA_DEVICE void announce(const Channel& c) {
    if (!c.counted) return;
    MELODIA_SYNC("decode exchange: posted");
    if (thread() == 0) {
        MELODIA_ORDER("decode exchange: release", fence_release());
        add_relaxed(c.counter, 1u);
    }
}

// By all threads of a block, before it receives.
MELODIA_DEVICE void await(const Channel& c, int* flag) {
    if (!c.counted) return;
    if (thread() == 0) {
        Spin spin(c.gave_up, c.limit_ns);
        while (MELODIA_EPOCH("decode exchange: count", load_relaxed(c.counter) < c.target, false)) {
            if (spin.again()) continue;
            *flag = 0;
            break;
        }
        MELODIA_ORDER("decode exchange: acquire", fence_acquire());
    }
    MELODIA_SYNC("decode exchange: all posted");
}

// value(i, number) for i = thread, thread + threads, .. < count, of the words word(i); word(i) may be null:
// then 0. Words that stand side by side are asked for together, because each takes a way to L2 and back.
template <class Word, class Value>
MELODIA_DEVICE void receive(const Channel& c, int count, int* flag, Word word, Value value) {
    constexpr int kAhead = 4;
    const int stride = static_cast<int>(threads());
    for (int first = static_cast<int>(thread()); first < count; first += kAhead * stride) {
        const uint64_t* from[kAhead];
        uint64_t got[kAhead];
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            const int i = first + j * stride;
            from[j] = i < count ? word(i) : nullptr;
            got[j] = from[j] == nullptr ? 0 : look(c, from[j]);
        }
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            const int i = first + j * stride;
            if (from[j] == nullptr) continue;
            if (!c.counted) {
                Spin spin(c.gave_up, c.limit_ns);
                while (MELODIA_EPOCH("decode exchange: epoch", got[j] >> 32 != c.epoch, false)) {
                    if (!spin.again()) {
                        *flag = 0;
                        break;
                    }
                    got[j] = look(c, from[j]);
                }
            }
            value(i, static_cast<uint32_t>(got[j]));
        }
    }
}

}  // namespace melodia::cuda::decode
