// What the grammar (grammar.h) works on: operations, the head of the tables, registers, bits of masks.
//
// Letters: V = vocabulary size, W = words of a mask (64 tokens each), P = programs of the vocabulary.
#pragma once
#include <cstdint>

#include "philox.h"

namespace melodia {

// melodia.grammar.Op
enum Op : int64_t {
    kPad,
    kBos,
    kEos,
    kBar,
    kTimeSignature,
    kPosition,
    kTimeShift,
    kTempo,
    kProgram,
    kPitch,
    kDrum,
    kVelocity,
    kDuration,
    kNoteOff,
    kDrumOff,
    kMicro,
    kBpe,
    kOps
};

constexpr int64_t kNone = -2;  // a register that holds nothing yet
constexpr int64_t kFree = -1;  // notes with an end of their own: a pitch that does not sound
constexpr int64_t kPitches = 128;
constexpr int64_t kPrune = 32;

// What may follow a type, as flags.
enum Follow : int64_t {
    kFollowNote = 1,
    kFollowProgram = 2,
    kFollowPosition = 4,
    kFollowTempo = 8,
    kFollowBar = 16,
    kFollowEos = 32,
    kFollowMetre = 64,
    kFollowShift = 128,
    kFollowMicro = 256
};

// Tokens of one operation, which stand in a row.
struct GrammarSlice {
    int64_t first, end, low;  // ids; the value of the first
};

struct GrammarRange {
    int64_t first, end;  // ids
};

// The numbers at the head of the tables.
struct GrammarHead {
    int64_t V, types, programs, allowed_programs, shifts, micros, roots, nodes, parts, depth;
    int64_t has_bars, on_off, structured;
    int64_t default_bar, default_unit;
    int64_t silence, longest, reach;
    int64_t max_polyphony;  // -1: no limit
    int64_t allow_metre_changes, allow_tempo, allow_tempo_changes;
    int64_t min_bars, max_bars;
    int64_t bos_kind, eos_kind, pad, eos;
    int64_t least_room, roomy;
    GrammarSlice slices[kOps];
};

// melodia.grammar.state.REGISTERS, and how many ends there are.
struct GrammarRegisters {
    int64_t has_bars, on_off, kind, bar, bar_start, bar_length, unit, metre, now, place, program, pitch,
        onset, tempo, heard, notes, bar_notes, min_bars, max_bars, require_note_in_bar, min_position;
    int64_t ends;
};

MELODIA_HD int64_t grammar_least(int64_t a, int64_t b) { return a < b ? a : b; }
MELODIA_HD int64_t grammar_most(int64_t a, int64_t b) { return a > b ? a : b; }

// a / b, rounded down; b > 0.
MELODIA_HD int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

MELODIA_HD bool has_bit(const uint64_t* mask, int64_t i) { return mask[i / 64] >> (i % 64) & 1; }
MELODIA_HD void set_bit(uint64_t* mask, int64_t i) { mask[i / 64] |= uint64_t{1} << (i % 64); }
MELODIA_HD void clear_bit(uint64_t* mask, int64_t i) { mask[i / 64] &= ~(uint64_t{1} << (i % 64)); }

// The bits of word w of a mask that stand for the ids [from, to).
MELODIA_HD uint64_t bits_between(int64_t w, int64_t from, int64_t to) {
    from = grammar_most(from - 64 * w, 0), to = grammar_least(to - 64 * w, 64);
    return from < to ? ~uint64_t{0} >> (64 - (to - from)) << from : 0;
}

// What a table of all programs, [129] (program + 1, drums first), says of one of them.
constexpr int64_t kProgramNumbers = 129;
MELODIA_HD int64_t of_program(const int32_t* table, int64_t program, int64_t otherwise) {
    return program < -1 || program > 127 ? otherwise : table[program + 1];
}

// How many of `count` ascending numbers are < limit (<= limit if `equal`).
MELODIA_HD int64_t count_below(const int64_t* numbers, int64_t count, int64_t limit, bool equal) {
    int64_t low = 0;
    while (low < count) {
        const int64_t middle = (low + count) / 2;
        if (numbers[middle] < limit || (equal && numbers[middle] == limit)) {
            low = middle + 1;
        } else {
            count = middle;
        }
    }
    return low;
}

}  // namespace melodia
