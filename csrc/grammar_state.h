// Where a sequence stands: the state itself, and a trial some steps beyond it.
//
// Both answer the same questions and take the same changes, so that the grammar (grammar.h) steps and asks
// either. A trial leaves the state it began from as it was: many threads may try ways on from one state.
#pragma once
#include "grammar_tables.h"

namespace melodia {

// The memory is the caller's. P = programs.
struct GrammarState {
    GrammarRegisters* r;
    int64_t* begun;  // [P] whether a program has played
    int64_t* rows;   // [P][128] until when each pitch sounds, or since when (kFree: not)
    int64_t* ends;   // [capacity] the same times of the notes that may still sound
    int64_t capacity;

    MELODIA_HD GrammarRegisters& registers() const { return *r; }
    MELODIA_HD bool has_begun(int64_t row) const { return begun[row] != 0; }
    MELODIA_HD int64_t time_of(int64_t row, int64_t pitch) const { return rows[row * kPitches + pitch]; }
    MELODIA_HD int64_t first_end() const { return ends[0]; }
    MELODIA_HD int64_t ends_behind(int64_t time) const {
        int64_t count = 0;
        for (int64_t i = 0; i < r->ends; ++i) count += ends[i] > time;
        return count;
    }

    MELODIA_HD void next_step() {}
    MELODIA_HD void set_time(int64_t row, int64_t pitch, int64_t time) {
        int64_t* times = rows + row * kPitches;
        if (!begun[row]) {
            begun[row] = 1;
            MELODIA_ROLLED
            for (int64_t p = 0; p < kPitches; ++p) times[p] = r->on_off ? kFree : 0;
        }
        times[pitch] = time;
    }
    MELODIA_HD void append(int64_t time) {
        if (r->ends == capacity) prune();
        if (r->ends < capacity) ends[r->ends++] = time;
    }
    // Take out the first end at a time.
    MELODIA_HD void remove(int64_t time) {
        int64_t at = 0;
        while (at < r->ends && ends[at] != time) ++at;
        if (at == r->ends) return;
        r->ends -= 1;
        for (int64_t i = at; i < r->ends; ++i) ends[i] = ends[i + 1];
    }
    // Forget the ends that are past, once there are many.
    MELODIA_HD void tidy() {
        if (r->ends > kPrune) prune();
    }
    MELODIA_HD void prune() {
        if (r->on_off) return;
        int64_t kept = 0;
        for (int64_t i = 0; i < r->ends; ++i)
            if (ends[i] > r->now) ends[kept++] = ends[i];
        r->ends = kept;
    }
};

// What one step of a trial changed beside the registers.
struct GrammarChange {
    int64_t row, pitch, time;  // row -1: no pitch
    int64_t appended, end;     // whether an end came, and which
    int64_t removed;           // which end went: of the state [0, ends), then of step i at ends + i; -1: none
};

struct GrammarTrial {
    const GrammarState& from;
    GrammarChange* changes;  // a step each, as many as will be made
    GrammarRegisters r;
    int64_t steps = 0;

    MELODIA_HD GrammarTrial(const GrammarState& state, GrammarChange* memory)
        : from(state), changes(memory), r(*state.r) {}

    MELODIA_HD GrammarRegisters& registers() { return r; }
    MELODIA_HD const GrammarRegisters& registers() const { return r; }
    MELODIA_HD bool has_begun(int64_t row) const {
        bool begun = from.has_begun(row);
        MELODIA_ROLLED
        for (int64_t i = 0; i < steps; ++i) begun = begun || changes[i].row == row;
        return begun;
    }
    MELODIA_HD int64_t time_of(int64_t row, int64_t pitch) const {
        MELODIA_ROLLED
        for (int64_t i = steps; i-- > 0;)
            if (changes[i].row == row && changes[i].pitch == pitch) return changes[i].time;
        return from.has_begun(row) ? from.time_of(row, pitch) : r.on_off ? kFree : 0;
    }
    MELODIA_HD int64_t first_end() const {
        const int64_t i = find([](int64_t) { return true; });
        return i < 0 ? 0 : end_at(i);
    }
    MELODIA_HD int64_t ends_behind(int64_t time) const {
        int64_t count = 0;
        MELODIA_ROLLED
        for (int64_t i = 0; i < from.r->ends + steps; ++i) count += is_there(i) && end_at(i) > time;
        return count;
    }

    MELODIA_HD void back_to(int64_t step, const GrammarRegisters& registers) {
        steps = step;
        r = registers;
    }
    MELODIA_HD void next_step() { changes[steps++] = {-1, 0, 0, 0, 0, -1}; }
    MELODIA_HD void set_time(int64_t row, int64_t pitch, int64_t time) {
        GrammarChange& change = changes[steps - 1];
        change.row = row, change.pitch = pitch, change.time = time;
    }
    MELODIA_HD void append(int64_t time) {
        if (r.ends == from.capacity) return;
        changes[steps - 1].appended = 1, changes[steps - 1].end = time;
        r.ends += 1;
    }
    MELODIA_HD void remove(int64_t time) {
        const int64_t i = find([=](int64_t end) { return end == time; });
        if (i < 0) return;
        changes[steps - 1].removed = i;
        r.ends -= 1;
    }
    MELODIA_HD void tidy() {}

  private:
    MELODIA_HD int64_t end_at(int64_t i) const {
        return i < from.r->ends ? from.ends[i] : changes[i - from.r->ends].end;
    }
    MELODIA_HD bool is_there(int64_t i) const {
        MELODIA_ROLLED
        for (int64_t step = 0; step < steps; ++step)
            if (changes[step].removed == i) return false;
        return i < from.r->ends || changes[i - from.r->ends].appended;
    }
    template <class Wanted>
    MELODIA_HD int64_t find(Wanted wanted) const {
        MELODIA_ROLLED
        for (int64_t i = 0; i < from.r->ends + steps; ++i)
            if (is_there(i) && wanted(end_at(i))) return i;
        return -1;
    }
};

}  // namespace melodia
