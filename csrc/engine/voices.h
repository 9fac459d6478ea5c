// The lanes of a loop as their caller sees them: what each is to do, how far it is, and what it has made. The
// loops of the CPU and of CUDA differ in how tokens are chosen and fed in between.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/plan.h"
#include "engine/rules.h"
#include "sampling.h"

namespace melodia::engine {

// Where a lane stands.
enum class Standing : int64_t {
    ready,    // the next token is to be chosen
    chosen,   // it is chosen, and waits for the step
    taken,    // the caller took it; it waits for the step
    stopped,  // a token is chosen that the caller must take or refuse
    asks,     // the caller must choose
    nothing,  // no token is allowed
    nan       // a logit is not a number
};

// What a caller sees of a lane; it lies where the caller may read it between calls.
struct LaneFacts {
    int64_t standing;  // Standing
    int64_t token;     // the last that was chosen
    double nll, entropy;
    int64_t made;  // tokens since the last `drain`
    int64_t fed;   // the position of the next token in its stream of random numbers

    bool is(Standing which) const { return standing == static_cast<int64_t>(which); }
    // It waits for its caller.
    bool over() const { return standing >= static_cast<int64_t>(Standing::stopped); }
    void set(Standing which) { standing = static_cast<int64_t>(which); }
};

// How a lane goes on until the caller is asked again. Bits: a word per 64 tokens; null: none.
struct LaneTerms {
    static constexpr int kRules = 3;
    int64_t tokens;         // so many at most, then the caller is asked; 0: at every token
    int64_t pause;          // 1: a token that ends a note ends the call
    int64_t bars_total;     // of the side inputs, 0: not given
    int64_t stop_tick;      // a token that moves time to this grid tick or beyond stops the lane
    int64_t ticks[kRules];  // tokens of `late` that move time to this grid tick or beyond are excluded
    const uint64_t* late[kRules];
    const uint64_t* exclude;  // narrows what the grammar allows, unless nothing would be left
    const uint64_t* stop;     // these stop the lane before they are fed
};

// An opinion for every program, melodia.decode.Bias; empty: none.
struct Bias {
    std::vector<float> rows;      // [R][V]; the first where no program plays
    std::vector<int32_t> row_of;  // see of_program
    std::vector<uint64_t> members;
    double exponent = 1.0;

    Opinion of(int64_t program, int64_t V) const {
        if (rows.empty()) return {};
        return {rows.data() + of_program(row_of.data(), program, 0) * V, members.data(), exponent};
    }
};

// Why a call came back.
enum class Stopped : int64_t { lane = 1, pause, flag, time, steps };

class Voices {
  public:
    int64_t count() const { return static_cast<int64_t>(voices_.size()); }
    int64_t words() const { return W_; }
    LaneFacts* facts() { return facts_.data(); }
    Follower& follower(int64_t lane) { return voices_[lane]->follower; }
    // One that outlives the loop; its rules must, too.
    std::shared_ptr<Follower> share_follower(int64_t lane) {
        return {voices_[lane], &voices_[lane]->follower};
    }
    float* logits(int64_t lane) { return logits_.data() + lane * V_; }

    // recent: the last tokens, the newest last; `window` of them count for the repetition penalty.
    void begin(int64_t lane, const Sampling& sampling, int64_t window, uint64_t random_seed, uint32_t session,
               int64_t fed, const int64_t* recent, int64_t recent_count);
    // See Bias: rows [count][V], row_of [129], members [W].
    void set_bias(int64_t lane, const float* rows, int64_t count, const int32_t* row_of,
                  const uint64_t* members, double exponent);
    void set_terms(int64_t lane, const LaneTerms& terms);
    // Chooses for a lane that asks, among tokens [W], or again for one that stopped; it is `stopped` then.
    void choose(int64_t lane, const uint64_t* legal);
    // Takes the token at which a lane stopped.
    void take(int64_t lane);
    // The tokens since the last time, with their figures: as many as facts().made.
    void drain(int64_t lane, int32_t* tokens, double* nll, double* entropy);

  protected:
    struct Voice {
        explicit Voice(const Rules& rules) : follower(rules) {}
        Follower follower;
        Sampling sampling;
        uint64_t random_seed = 0;
        uint32_t session = 0;
        Bias bias;
        LaneTerms terms{};
        std::vector<uint64_t> bits;   // what the terms point to
        std::vector<int32_t> recent;  // a ring of the last tokens
        int64_t at = 0;               // where the next goes
        std::vector<int32_t> tokens;  // since the last `drain`
        std::vector<double> nll, entropy;
        int64_t rules = 0;  // which of the device's
    };

    // A voice for each of `sessions`. Throws std::invalid_argument where rules and network differ.
    Voices(const Plan& plan, int64_t sessions, const Rules* const* rules, int64_t count);
    void draw(int64_t lane, const uint64_t* legal);
    void accept(int64_t lane);
    // Goes on with some of the lanes only, of which there are `sessions`.
    void keep(int64_t sessions, const int64_t* kept, int64_t count);

    int64_t V_, W_;
    std::vector<std::shared_ptr<Voice>> voices_;
    std::vector<LaneFacts> facts_;
    std::vector<float> logits_;  // [B, V]

  private:
    void check(int64_t lane, Standing standing) const;

    std::vector<int32_t> seen_, distinct_;  // [V] stamps; tokens that the penalty counts
    int32_t stamp_ = 0;
    Chooser chooser_;
};

}  // namespace melodia::engine
