// Philox4x32-10: random numbers from a key and a counter, with no state (Salmon et al. 2011).
// The twin of melodia/decode/philox.py, for host and device.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace melodia {

struct Words4 {
    uint32_t x[4];
};

MELODIA_HD Words4 philox4x32_10(Words4 counter, uint32_t key0, uint32_t key1) {
    uint32_t x0 = counter.x[0], x1 = counter.x[1], x2 = counter.x[2], x3 = counter.x[3];
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * x0;
        const uint64_t product1 = uint64_t{0xCD9E8D57u} * x2;
        x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
        x1 = static_cast<uint32_t>(product1);
        x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
        x3 = static_cast<uint32_t>(product0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{x0, x1, x2, x3}};
}

// The four words that lanes 4 * quad .. 4 * quad + 3 take at `position` of `session`.
MELODIA_HD Words4 noise_words(uint64_t random_seed, uint32_t session, uint64_t position, uint32_t quad) {
    const Words4 counter = {
        {quad, static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), session}};
    return philox4x32_10(counter, static_cast<uint32_t>(random_seed),
                         static_cast<uint32_t>(random_seed >> 32));
}

// noise_words of N quads at once, lane after lane: words [N][4]. For a host's vectors.
template <int N>
inline void noise_words_of(uint64_t random_seed, uint32_t session, uint64_t position, const uint32_t* quads,
                           uint32_t* words) {
    uint32_t x0[N], x1[N], x2[N], x3[N];
    auto key0 = static_cast<uint32_t>(random_seed), key1 = static_cast<uint32_t>(random_seed >> 32);
    for (int j = 0; j < N; ++j) {
        x0[j] = quads[j];
        x1[j] = static_cast<uint32_t>(position);
        x2[j] = static_cast<uint32_t>(position >> 32);
        x3[j] = session;
    }
    for (int round = 0; round < 10; ++round) {
        for (int j = 0; j < N; ++j) {
            const uint64_t product0 = uint64_t{0xD2511F53u} * x0[j];
            const uint64_t product1 = uint64_t{0xCD9E8D57u} * x2[j];
            x0[j] = static_cast<uint32_t>(product1 >> 32) ^ x1[j] ^ key0;
            x1[j] = static_cast<uint32_t>(product1);
            x2[j] = static_cast<uint32_t>(product0 >> 32) ^ x3[j] ^ key1;
            x3[j] = static_cast<uint32_t>(product0);
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int j = 0; j < N; ++j) {
        words[4 * j] = x0[j];
        words[4 * j + 1] = x1[j];
        words[4 * j + 2] = x2[j];
        words[4 * j + 3] = x3[j];
    }
}

// A uniform number strictly between 0 and 1, exact in a double.
MELODIA_HD double uniform_of(uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

MELODIA_HD double gumbel_of(uint32_t word) { return -log(-log(uniform_of(word))); }

}  // namespace melodia
