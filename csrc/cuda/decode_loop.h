// The loop over tokens on the device: the interface of engine::Loop, a launch for many tokens.
//
// Lanes do not wait for one another inside a launch: one that stops does so alone, the others go on to the
// end of the launch. The followers on the host are the truth; a launch works on copies of them.
#pragma once

#include <memory>
#include <vector>

#include "cuda/decode_device.h"
#include "engine/voices.h"

namespace melodia::cuda::decode {

using engine::LaneFacts;
using engine::LaneTerms;
using engine::Stopped;

class Loop : public engine::Voices {
  public:
    Loop(Decoder& decoder, Lanes& lanes, const engine::Rules* const* rules, int64_t count);

    // As engine::Loop::run, but `steps`, a pause, the time and the flag are seen between launches.
    Stopped run(int64_t steps, int64_t microseconds, const int32_t* flag);
    void keep(Lanes& lanes, const int64_t* kept, int64_t count);

  private:
    void upload(const engine::Rules* const* rules);
    RecordLayout plan_records(int64_t steps) const;
    void pack(int64_t lane, const RecordLayout& layout, unsigned char* record, unsigned char* device) const;
    bool unpack(int64_t lane, const RecordLayout& layout, const unsigned char* record);
    bool launch(int64_t steps);  // whether a lane pauses

    Decoder& decoder_;
    Lanes* lanes_;
    std::vector<std::unique_ptr<Memory>> rule_memory_;
    Memory rules_, records_;
    int64_t launch_steps_ = 64;
};

}  // namespace melodia::cuda::decode
