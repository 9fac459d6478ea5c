// The loop over tokens: mask, choice, grammar, side inputs and model, with nobody in between.
//
// Every lane follows its own sequence; all of them step through the model together. Letters as in engine.h.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "engine/voices.h"

namespace melodia::engine {

class Loop : public Voices {
  public:
    // A lane of the loop for each of `lanes`. Throws std::invalid_argument where rules and network differ.
    Loop(const Plan& plan, Lanes& lanes, const Rules* const* rules, int64_t count);

    // Goes on until a lane needs the caller, and at most `steps` (0: any number), `microseconds` (0: any
    // time), or until *flag is not 0 (null: none).
    Stopped run(int64_t steps, int64_t microseconds, const int32_t* flag);
    // Goes on with some of the lanes only, in new ones of the network with their states.
    void keep(Lanes& lanes, const int64_t* kept, int64_t count);

  private:
    void decide(int64_t lane);
    bool feed();

    Lanes* lanes_;
    int64_t S_;
    std::vector<int32_t> tokens_, sides_;   // [B], [B, S]
    std::vector<uint64_t> legal_, wanted_;  // [W]
};

}  // namespace melodia::engine
