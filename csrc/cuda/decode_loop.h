// The loop over tokens on the device: the interface of engine::Loop, a launch for many tokens.
//
// Lanes do not wait for one another inside a launch: one that stops does so alone, the others go on to the
// end of the launch. The followers on the host are the truth; a launch works on copies of them.
#pragma once

#include <memory>
#include <vector>

#include "cuda/decode_device.h"
#include "engine/loop.h"

namespace melodia::cuda::decode {

using engine::LaneFacts;
using engine::LaneTerms;
using engine::Stopped;

class Loop {
  public:
    Loop(Decoder& decoder, Lanes& lanes, const engine::Rules* const* rules, int64_t count);

    int64_t count() const { return static_cast<int64_t>(voices_.size()); }
    LaneFacts* facts() { return facts_.data(); }
    engine::Follower& follower(int64_t lane) { return voices_[lane]->follower; }
    float* logits(int64_t lane) { return logits_.data() + lane * V_; }
    void begin(int64_t lane, const Sampling& sampling, int64_t window, uint64_t random_seed, uint32_t session,
               int64_t fed, const int64_t* recent, int64_t recent_count);
    void set_bias(int64_t lane, const float* bias);
    void set_terms(int64_t lane, const LaneTerms& terms);
    // As engine::Loop::run, but `steps`, a pause, the time and the flag are seen between launches.
    Stopped run(int64_t steps, int64_t microseconds, const int32_t* flag);
    void choose(int64_t lane, const uint64_t* legal);
    void take(int64_t lane);
    void drain(int64_t lane, int32_t* tokens, double* nll, double* entropy);
    void keep(Lanes& lanes, const int64_t* kept, int64_t count);

  private:
    struct Voice {
        explicit Voice(const engine::Rules& rules) : follower(rules) {}
        engine::Follower follower;
        Sampling sampling;
        uint64_t random_seed = 0;
        uint32_t session = 0;
        std::vector<float> bias;
        LaneTerms terms{};
        std::vector<uint64_t> bits;   // what the terms point to
        std::vector<int32_t> recent;  // a ring of the last tokens
        int64_t at = 0;
        std::vector<int32_t> tokens;  // since the last `drain`
        std::vector<double> nll, entropy;
        int64_t rules = 0;
    };

    void upload(const engine::Rules* const* rules);
    RecordLayout plan_records(int64_t steps) const;
    void pack(int64_t lane, const RecordLayout& layout, unsigned char* record, unsigned char* device) const;
    bool unpack(int64_t lane, const RecordLayout& layout, const unsigned char* record);
    bool launch(int64_t steps);  // whether a lane pauses
    void check(int64_t lane, Standing standing) const;

    Decoder& decoder_;
    Lanes* lanes_;
    int64_t V_, W_;
    std::vector<std::unique_ptr<Voice>> voices_;
    std::vector<LaneFacts> facts_;
    std::vector<float> logits_;  // [B, V]
    std::vector<std::unique_ptr<Memory>> rule_memory_;
    Memory rules_, records_;
    int64_t launch_steps_ = 64;
    Chooser chooser_;
};

}  // namespace melodia::cuda::decode
