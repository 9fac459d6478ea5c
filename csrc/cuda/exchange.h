// How blocks of one launch hand each other a vector per step: [batch, numbers], all blocks of a group write a
// part and all of them read the whole.
//
// counter: the numbers stand in ordinary memory; a block that has written its part adds one to a counter, and
// reads
//          when the counter says that all have. One round trip to L2 to signal, one to see it, one to read.
// in_band: every number travels as a word {number, epoch} that arrives whole; a reader polls the word itself.
// Two
//          buffers by the parity of the epoch: a block writes epoch e + 2 only after it has read all of e +
//          1, which nobody wrote before having read all of e. Epochs count from 1 over memory that was
//          cleared.
#pragma once

#include "cuda/tile.h"

namespace melodia::cuda {

struct Channel {
    uint32_t* counter;  // of this group, cleared
    uint64_t* words;    // [2][batch][numbers] of this group, cleared; null: by counter
    uint32_t* gave_up;  // of the whole launch, cleared
    uint64_t limit_ns;
    int64_t buffer;  // words of one of the two buffers
};

// After a block has written its part of an epoch (store_data) or posted it (post).
MELODIA_DEVICE void announce(const Channel& channel) {
    if (channel.words != nullptr) return;
    MELODIA_SYNC("exchange: part written");
    if (thread() == 0) {
        MELODIA_ORDER("exchange: release", fence_release());
        add_relaxed(channel.counter, 1);
    }
}

// Until all `blocks` of the group have announced `epoch`; lowers the flag if that does not come about. The
// caller's next barrier is the one inside.
MELODIA_DEVICE void await(const Channel& channel, uint32_t epoch, uint32_t blocks, int* flag) {
    if (channel.words != nullptr) return;
    if (thread() == 0) {
        Spin spin(channel.gave_up, channel.limit_ns);
        while (MELODIA_EPOCH("exchange: count", load_relaxed(channel.counter) < epoch * blocks, false)) {
            if (spin.again()) continue;
            *flag = 0;
            break;
        }
        MELODIA_ORDER("exchange: acquire", fence_acquire());
    }
    MELODIA_SYNC("exchange: all written");
}

MELODIA_DEVICE uint64_t* words_of(const Channel& channel, uint32_t epoch) {
    return channel.words + MELODIA_EPOCH("exchange: parity", epoch % 2, 0) * channel.buffer;
}

template <class S>
MELODIA_DEVICE void post(const Channel& channel, uint32_t epoch, int64_t at, S number) {
    store_relaxed(words_of(channel, epoch) + at, uint64_t{epoch} << 32 | payload_of(number));
}

// Numbers k0 .. k0 + width - 1 of `rows` rows, depth numbers each, out of the words of an epoch. Each word
// takes a way to L2 and back, so several are asked for before the first is looked at.
template <class S>
MELODIA_DEVICE void stage_words(S* to, int stride, int rows, int k0, int width, int depth,
                                const Channel& channel, uint32_t epoch, int* flag) {
    const uint64_t* words = words_of(channel, epoch) + k0;
    for (Walk walk(width); walk.row < rows;) {
        const uint64_t* from[kAhead];
        uint64_t got[kAhead];
        int place[kAhead];
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j, walk.next()) {
            place[j] = walk.row < rows ? walk.row * stride + walk.k : -1;
            from[j] = place[j] >= 0 && k0 + walk.k < depth ? words + (walk.row * depth + walk.k) : nullptr;
            got[j] = from[j] != nullptr ? load_relaxed(from[j]) : 0;
        }
        MELODIA_UNROLL
        for (int j = 0; j < kAhead; ++j) {
            if (place[j] < 0) continue;
            Spin spin(channel.gave_up, channel.limit_ns);
            while (from[j] != nullptr && MELODIA_EPOCH("exchange: epoch", got[j] >> 32 != epoch, false)) {
                if (!spin.again()) {
                    *flag = 0;
                    break;
                }
                got[j] = load_relaxed(from[j]);
            }
            to[place[j]] = from[j] != nullptr ? from_payload<S>(static_cast<uint32_t>(got[j])) : S{};
        }
    }
}

}  // namespace melodia::cuda
