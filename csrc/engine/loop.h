// The loop over tokens: mask, choice, grammar, side inputs and model, with nobody in between.
//
// Every lane follows its own sequence; all of them step through the model together. Letters as in engine.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/engine.h"
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

// Why a call came back.
enum class Stopped : int64_t { lane = 1, pause, flag, time, steps };

class Loop {
  public:
    // A lane of the loop for each of `lanes`. Throws std::invalid_argument where rules and network differ.
    Loop(const Plan& plan, Lanes& lanes, const Rules* const* rules, int64_t count);

    int64_t count() const { return static_cast<int64_t>(voices_.size()); }
    LaneFacts* facts() { return facts_.data(); }
    int64_t words() const { return W_; }
    Follower& follower(int64_t lane) { return voices_[lane]->follower; }
    // One that outlives the loop; its rules must, too.
    std::shared_ptr<Follower> share_follower(int64_t lane) {
        return {voices_[lane], &voices_[lane]->follower};
    }
    float* logits(int64_t lane) { return logits_.data() + lane * V_; }

    // recent: the last tokens, the newest last; `window` of them count for the repetition penalty.
    void begin(int64_t lane, const Sampling& sampling, int64_t window, uint64_t random_seed, uint32_t session,
               int64_t fed, const int64_t* recent, int64_t recent_count);
    void set_terms(int64_t lane, const LaneTerms& terms);

    // Goes on until a lane needs the caller, and at most `steps` (0: any number), `microseconds` (0: any
    // time), or until *flag is not 0 (null: none).
    Stopped run(int64_t steps, int64_t microseconds, const int32_t* flag);
    // Chooses for a lane that asks, among tokens [W]; it is `stopped` then.
    void choose(int64_t lane, const uint64_t* legal);
    // Takes the token at which a lane stopped.
    void take(int64_t lane);
    // The tokens since the last time, with their figures: as many as facts().made.
    void drain(int64_t lane, int32_t* tokens, double* nll, double* entropy);
    // Goes on with some of the lanes only, in new ones of the network with their states.
    void keep(Lanes& lanes, const int64_t* kept, int64_t count);

  private:
    struct Voice {
        explicit Voice(const Rules& rules) : follower(rules) {}
        Follower follower;
        Sampling sampling;
        uint64_t random_seed = 0;
        uint32_t session = 0;
        LaneTerms terms{};
        std::vector<uint64_t> bits;   // what the terms point to
        std::vector<int32_t> recent;  // a ring of the last tokens
        int64_t at = 0;               // where the next goes
        std::vector<int32_t> tokens;  // since the last `drain`
        std::vector<double> nll, entropy;
    };

    void decide(int64_t lane);
    void draw(int64_t lane, const uint64_t* legal);
    void accept(int64_t lane);
    bool feed();
    void check(int64_t lane, Standing standing) const;

    Lanes* lanes_;
    int64_t V_, S_, W_;
    std::vector<std::shared_ptr<Voice>> voices_;
    std::vector<LaneFacts> facts_;
    std::vector<float> logits_;             // [B, V]
    std::vector<int32_t> tokens_, sides_;   // [B], [B, S]
    std::vector<uint64_t> legal_, wanted_;  // [W]
    std::vector<int32_t> seen_, distinct_;  // [V] stamps; tokens that the penalty counts
    int32_t stamp_ = 0;
    Chooser chooser_;
};

}  // namespace melodia::engine
