// How the blocks of a decode launch hand numbers to each other, step after step.
//
// In words, for few sessions: a number travels as {number, epoch} in 8 bytes that arrive whole, and a reader
// polls the word itself. Two buffers by the parity of the epoch: a block that still reads step t keeps
// everybody from step t + 2, because the logits of t + 1 need its units. Epochs only grow. In a cluster the
// words of all blocks stand in the shared memory of each: a number is stored to all that wait for it, and
// read at home.
//
// In rows, for many sessions: the numbers of a session stand side by side, in the form in which they are
// wanted, with zeros where a reader's rows have padding; a block that has posted its own adds one to a
// counter of stage and group, and whoever finds all blocks counted copies whole rows, 16 bytes at a time. One
// buffer will do: a block takes everything of step t in before it announces its logits of step t, every block
// announces them, even without a row of the head, and nobody writes into a row again before the command of
// step t + 1, which a sampler makes of logits that all have announced and that it has taken in itself.
//
// Commands travel in words always, and so does what an encoder reads (decode_reader.h).
#pragma once

#include "cuda/decode_plan.h"

namespace melodia::cuda::decode {

// What words of a step are posted and looked at with.
struct Channel {
    uint32_t epoch;
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

MELODIA_DEVICE Channel channel_of(const Args& a, int step) {
    return {a.epoch + uint32_t(step), a.gave_up, a.limit_ns, 0,
            a.cluster ? static_cast<uint32_t>(a.net.blocks) : 0};
}

// The last stage's, which the sampler takes in.
MELODIA_DEVICE Channel logits_channel_of(const Args& a, int step) {
    Channel c = channel_of(a, step);
    if (a.cluster) c.first_rank = c.last_rank++;
    return c;
}

MELODIA_DEVICE void post(const Channel& c, uint64_t* word, uint32_t number) {
    const uint64_t whole = uint64_t{c.epoch} << 32 | number;
    if (c.clustered()) {
        for (uint32_t rank = c.first_rank; rank < c.last_rank; ++rank) store_to_cluster(word, rank, whole);
    } else {
        store_relaxed(word, whole);
    }
}

// {number, epoch}; that of the step where the number is certainly there.
MELODIA_DEVICE uint64_t look(const Channel& c, const uint64_t* word) {
    if (word == nullptr) return uint64_t{c.epoch} << 32;
    return c.clustered() ? load_from_cluster(word) : load_relaxed(word);
}

// value(row, k, number) for the numbers k < width of each row, of the words word(row, k); those that are null
// are left out. Each word takes a way to L2 and back. So a thread asks for several before it looks at the
// first; of those that were too early it waits for one, which keeps the others' way free, and then asks for
// the rest again, together. Returns early with *flag = 0 when somebody gave up.
template <class Word, class Value>
MELODIA_DEVICE void receive(const Channel& c, int rows, int width, int* flag, Word word, Value value) {
    constexpr int kAhead = 8;
    const auto late = [&](uint64_t got) {
        return MELODIA_EPOCH("decode exchange: epoch", static_cast<uint32_t>(got >> 32) != c.epoch, false);
    };
    for (ShortWalk walk(rows, width); walk.there();) {
        int row[kAhead], k[kAhead];
        const uint64_t* from[kAhead];
        uint64_t got[kAhead];
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j, walk.next()) {
            row[j] = walk.row;
            k[j] = walk.k;
            from[j] = walk.there() ? word(row[j], k[j]) : nullptr;
            got[j] = look(c, from[j]);
        }
        for (Spin spin(c.gave_up, c.limit_ns);;) {
            const uint64_t* early = nullptr;
            MELODIA_UNROLL
            for (int j = kAhead - 1; j >= 0; --j)
                if (late(got[j])) early = from[j];
            if (early == nullptr) break;
            uint64_t now;
            do {
                if (!spin.again()) {
                    *flag = 0;
                    return;
                }
                now = look(c, early);
            } while (late(now));
            MELODIA_UNROLL
            for (int j = 0; j < kAhead; ++j)
                if (late(got[j])) got[j] = from[j] == early ? now : look(c, from[j]);
        }
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j)
            if (from[j] != nullptr) value(row[j], k[j], static_cast<uint32_t>(got[j]));
    }
}

// The same of one row: value(k, number), word(k).
template <class Word, class Value>
MELODIA_DEVICE void receive(const Channel& c, int width, int* flag, Word word, Value value) {
    receive(
        c, 1, width, flag, [&](int, int k) { return word(k); },
        [&](int, int k, uint32_t number) { value(k, number); });
}

// ---- In rows

MELODIA_DEVICE unsigned char* row_of(const Args& a, const Stage& stage, int session) {
    return a.rows + stage.row * a.B + int64_t{session} * stage.row_bytes;
}
MELODIA_DEVICE uint32_t* counter_of(const Args& a, int stage, int g) {
    return a.counters + stage * a.groups + g;
}

// By all threads of a block, after it posted a stage's numbers of some groups.
MELODIA_DEVICE void announce(const Args& a, int stage, int first, int groups) {
    if (!a.plain) return;
    MELODIA_SYNC("decode exchange: posted");
    if (thread() == 0) {
        MELODIA_ORDER("decode exchange: release", fence_release());
        for (int g = first; g < first + groups; ++g) add_relaxed(counter_of(a, stage, g), 1u);
    }
}

MELODIA_DEVICE bool all_counted(const Args& a, int step, uint32_t count) {
    const uint32_t target = uint32_t(step + 1) * static_cast<uint32_t>(a.net.blocks);
    return MELODIA_EPOCH("decode exchange: count", count >= target, true);
}

// By all threads of a block, until all blocks have announced a stage's numbers of a group; false, with *flag
// = 0: somebody gave up.
MELODIA_DEVICE bool await(const Args& a, int step, int stage, int g, int* flag) {
    if (thread() == 0) {
        const uint32_t* counter = counter_of(a, stage, g);
        Spin spin(a.gave_up, a.limit_ns);
        while (!all_counted(a, step, load_relaxed(counter))) {
            if (spin.again()) continue;
            *flag = 0;
            break;
        }
        MELODIA_ORDER("decode exchange: acquire", fence_acquire());
    }
    MELODIA_SYNC("decode exchange: all posted");
    return *flag != 0;
}

}  // namespace melodia::cuda::decode
