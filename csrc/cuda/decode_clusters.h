// Sessions in clusters (sm_90 and newer): each cluster of blocks has the whole network and sessions of its
// own, and hands numbers on in shared memory (decode_exchange.h). No cluster waits for another, so each is a
// launch on a stream of its own, and those that find no room yet come later.
#pragma once

#include <string>
#include <vector>

#include "cuda/decode_device.h"

namespace melodia::cuda::decode {

class Clusters {
  public:
    // For so many sessions; where that cannot be, `obstacle` says why.
    Clusters(const Decoder& decoder, int64_t sessions, int threads);
    Clusters(const Clusters&) = delete;
    Clusters& operator=(const Clusters&) = delete;
    ~Clusters();

    // Runs `whole`, what one launch would be given. Null, or what went wrong.
    const char* run(const Args& whole, int weights);

    std::string obstacle;

  private:
    const char* plan(const Decoder& decoder, int64_t sessions);

    int threads_;
    int64_t each_ = 0;  // sessions of a cluster
    int64_t shared_bytes_ = 0;
    Layout layout_{};
    Own own_{};
    std::vector<Stream> streams_;
    Memory stages_, below_;
    int64_t below_size_ = 0;  // numbers of a cluster
};

}  // namespace melodia::cuda::decode
