// The grammar and the side inputs of one vocabulary under some constraints, checked; and a follower of one
// sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "grammar.h"
#include "side_inputs.h"

namespace melodia::engine {

// Owns the tables. Throws std::invalid_argument on tables that do not hold together.
class Rules {
  public:
    // ints: melodia/engine/rules.py; read during the call only.
    Rules(const int64_t* ints, int64_t count);
    Rules(const Rules&) = delete;
    Rules& operator=(const Rules&) = delete;

    // What the loop knows of a token.
    enum Trait : uint8_t { kEndsNote = 1, kBeginsNote = 2 };

    Grammar grammar;
    SideInputs sides;
    std::vector<int64_t> moves;   // [V] grid units that a token moves on
    std::vector<uint8_t> traits;  // [V]

  private:
    void check_tokens() const;
    void check_trie() const;
    void check_sides() const;
    void read_traits();

    std::vector<int64_t> memory_;
    std::vector<int32_t> row_of_;
};

// Where one sequence stands: grammar and side inputs, with their memory.
class Follower {
  public:
    explicit Follower(const Rules& rules);
    Follower(const Follower&) = delete;
    Follower& operator=(const Follower&) = delete;

    const Rules& rules() const { return rules_; }
    GrammarState& grammar() { return grammar_; }
    SideState& sides() { return sides_; }

    // Which tokens may follow: mask [W].
    void mask(uint64_t* mask) { rules_.grammar.mask(grammar_, mask, scratch_); }
    // Step behind a token of the vocabulary; out [S].
    void advance_grammar(int64_t token) { rules_.grammar.advance(grammar_, token); }
    void advance_sides(int64_t token, int32_t* out);

    // registers [21]; rows of `programs` [count]: [count][128]; ends [end_count]. Throws
    // std::invalid_argument on registers of another vocabulary; the state stays then.
    void set_grammar(const int64_t* registers, int64_t count, const int64_t* programs, const int64_t* rows,
                     int64_t end_count, const int64_t* ends);
    // The form of SideInputTracker.to_array(). Throws as above.
    void set_sides(const int64_t* flat, int64_t count);
    std::vector<int64_t> flat_sides() const;

    // Throws std::invalid_argument where a register lies outside its limits (they may be written to from
    // outside).
    void check() const;

  private:
    void grow_sides(int64_t capacity);

    const Rules& rules_;
    std::vector<int64_t> memory_;
    std::vector<int64_t> places_;
    std::vector<GrammarFrame> frames_;
    std::vector<GrammarChange> changes_;
    GrammarRegisters registers_;
    GrammarState grammar_;
    SideState sides_;
    GrammarScratch scratch_;
};

}  // namespace melodia::engine
