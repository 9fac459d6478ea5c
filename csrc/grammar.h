// Which token may follow, and the step from state to state: the twin of melodia/grammar/machine.py.
//
// Flat tables (made by melodia/engine/rules.py, checked by engine/rules.cpp) and a few registers, no memory
// of its own, so that host and device share it. What a state allows is first told in ranges of ids
// (GrammarBounds); any token and any word of the mask can then be asked for by itself, by any thread.
// Letters: V = vocabulary size, W = words of a mask (64 tokens each), P = programs of the vocabulary.
#pragma once
#include "grammar_state.h"

namespace melodia {

// What may follow a state, but for what has to be asked of each token.
struct GrammarBounds {
    const uint64_t* base;  // [W] what may follow the last type; null: nothing
    GrammarRange cleared[12];
    int64_t count;   // of those
    int64_t always;  // a token that may follow all the same, or -1
    int64_t row;     // of the present program; -1: it has not played
    int64_t latest;  // a pitch may begin if its time is no later
    bool may_begin;
    bool ask_pitches, ask_ends, ask_programs, ask_positions, ask_shifts;

    MELODIA_HD void clear(int64_t first, int64_t end) {
        if (first < end) cleared[count++] = {first, end};
    }
    MELODIA_HD void clear(const GrammarSlice& slice) { clear(slice.first, slice.end); }
};

// Memory for masks with BPE tokens.
struct GrammarFrame {
    int64_t next, end;     // nodes of the trie that are left to try
    GrammarRegisters r;    // where they begin
    GrammarBounds bounds;  // what may follow there
};
struct GrammarScratch {
    GrammarFrame* frames;    // [depth + 1]
    GrammarChange* changes;  // [depth + 1]
};

struct Grammar {
    const GrammarHead* head;
    int64_t W;
    const int64_t *ops, *values, *bar_lengths, *units, *kinds;  // [V]
    const int64_t* shifts;                                      // [shifts] operands, ascending
    const int64_t* micros;                                      // [micros] operands, ascending
    const int64_t* program_of_row;                              // [P]; the allowed ones first
    const int64_t* program_tokens;                              // [P]
    const int64_t* playable;                                    // [2][128]: melodic, drums
    const int64_t* follow;                                      // [types]
    const uint64_t* base;  // [types][3][W]: no program yet, melodic, drums
    const int64_t *node_part, *node_token, *node_child, *node_children;  // [nodes], roots first
    const int64_t* part_start;                                           // [V + 1]
    const int64_t* parts;                                                // [parts]
    const int32_t* row_of;                                               // see of_program; -1: none

    MELODIA_HD int64_t row_of_program(int64_t program) const { return of_program(row_of, program, -1); }

    MELODIA_HD void start(const GrammarState& s) const {
        const GrammarHead& h = *head;
        *s.r = {h.has_bars,
                h.on_off,
                h.bos_kind,
                -1,
                0,
                h.default_bar,
                h.default_unit,
                kNone,
                0,
                -1,
                kNone,
                kNone,
                0,
                kNone,
                0,
                0,
                0,
                h.min_bars,
                h.max_bars,
                0,
                0,
                0};
        for (int64_t i = 0; i < h.programs; ++i) s.begun[i] = 0;
    }

    // Which tokens may follow: at least one bit of mask [W].
    MELODIA_HD void mask(const GrammarState& s, uint64_t* mask, GrammarScratch scratch) const {
        uint64_t any = 0;
        GrammarBounds bounds;
        bound(s, true, bounds);
        for (int64_t w = 0; w < W; ++w) any |= mask[w] = word(s, bounds, w);
        if (any == 0) {  // what was asked for cannot be had here
            bound(s, false, bounds);
            for (int64_t w = 0; w < W; ++w) mask[w] = word(s, bounds, w);
        }
        if (head->roots > 0 && s.r->kind != head->eos_kind) mask_pairs(s, mask, scratch);
    }

    // Step behind a token, base or BPE.
    MELODIA_HD void advance(GrammarState& s, int64_t token) const {
        if (ops[token] == kBos && s.r->kind == head->bos_kind) return;
        if (ops[token] != kBpe) {
            step(s, token);
            return;
        }
        for (int64_t i = part_start[token]; i < part_start[token + 1]; ++i) step(s, parts[i]);
    }

    // -- base tokens

    MELODIA_HD int64_t bar_end(const GrammarRegisters& r) const {
        return r.bar >= 0 ? r.bar_start + r.bar_length : 0;
    }
    MELODIA_HD int64_t bars(const GrammarRegisters& r) const {
        return r.has_bars ? r.bar + 1 : r.bar + (r.now > r.bar_start);
    }

    // Not `strict`: without what is asked for beyond validity.
    template <class State>
    MELODIA_HD void bound(const State& s, bool strict, GrammarBounds& b) const {
        const GrammarRegisters& r = s.registers();
        const GrammarHead& h = *head;
        b.count = 0;
        b.always = -1;
        b.ask_pitches = b.ask_ends = b.ask_programs = b.ask_positions = b.ask_shifts = false;
        if (r.kind == h.eos_kind) {
            b.base = nullptr;
            b.always = h.pad;
            return;
        }
        const int64_t voice = r.program == kNone ? 0 : r.program < 0 ? 2 : 1;
        b.base = base + (r.kind * 3 + voice) * W;
        b.row = row_of_program(r.program);
        if (b.row >= 0 && !s.has_begun(b.row)) b.row = -1;
        const int64_t after = follow[r.kind];
        const bool wants_note = strict && r.require_note_in_bar > 0 && r.bar_notes == 0;
        const bool early = strict && r.min_position > 0 && r.now < r.bar_start + r.min_position * r.unit;
        const int64_t end = r.has_bars || r.max_bars < 0
                                ? -1
                                : r.bar_start + (r.max_bars - grammar_most(r.bar, 0)) * r.bar_length;
        if (after & (kFollowNote | kFollowProgram)) {
            const int64_t limit = h.max_polyphony;
            const bool full =
                limit >= 0 && r.ends >= limit && (r.on_off ? r.ends : s.ends_behind(r.now)) >= limit;
            b.may_begin = !(full || (end >= 0 && r.now >= end) || early);
            if ((after & kFollowNote) && voice) bound_notes(r, b, voice == 2);
            if (after & kFollowProgram) {  // a change
                const int64_t present = (after & kFollowNote) ? row_of_program(r.program) : -1;
                if (present >= 0) b.clear(program_tokens[present], program_tokens[present] + 1);
                b.ask_programs = !b.may_begin || r.ends >= h.least_room;
            }
        }
        if (after & kFollowPosition) bound_positions(r, b, strict);
        if (after & kFollowTempo) {
            if (r.tempo != kNone && h.allow_tempo_changes) {
                b.clear(r.tempo, r.tempo + 1);
            } else if (r.tempo != kNone || early) {
                b.clear(h.slices[kTempo]);
            }
        }
        if ((after & kFollowBar) && ((r.max_bars >= 0 && r.bar + 1 >= r.max_bars) || wants_note ||
                                     (r.bar >= 0 && bar_end(r) > r.heard + h.silence)))
            b.clear(h.slices[kBar]);
        if ((after & kFollowEos) &&
            (wants_note || (r.on_off && r.ends > 0) || (strict && (r.notes == 0 || bars(r) < r.min_bars))))
            b.clear(h.eos, h.eos + 1);
        if (after & kFollowMetre) bound_metres(r, b, end);
        if (after & kFollowShift) bound_shifts(s, b, end, wants_note);
        if (after & kFollowMicro) {
            int64_t earliest = -r.now;
            if (b.row >= 0 && r.pitch >= 0)
                earliest = grammar_most(earliest, s.time_of(b.row, r.pitch) - r.now);
            const int64_t first = h.slices[kMicro].first;
            b.clear(first, first + count_below(micros, h.micros, earliest, false));
        }
    }

    // Only pitches that do not sound may begin, only those that do may end.
    MELODIA_HD void bound_notes(const GrammarRegisters& r, GrammarBounds& b, bool drum) const {
        b.latest = r.on_off ? kFree : r.now + head->reach;
        b.ask_pitches = b.may_begin && b.row >= 0;
        b.ask_ends = r.on_off && b.row >= 0;
        if (!b.may_begin) b.clear(head->slices[drum ? kDrum : kPitch]);
        if (r.on_off && b.row < 0) b.clear(head->slices[drum ? kDrumOff : kNoteOff]);
    }

    // Positions go forward inside the bar, and something must be able to happen there.
    MELODIA_HD void bound_positions(const GrammarRegisters& r, GrammarBounds& b, bool strict) const {
        const GrammarSlice& slice = head->slices[kPosition];
        const int64_t count = slice.end - slice.first;
        const int64_t low = grammar_most(r.place + 1, strict ? r.min_position : 0);
        const int64_t silent = floor_div(r.heard + head->silence - r.bar_start, r.unit) + 1;
        const int64_t high =
            grammar_most(0, grammar_least(count, grammar_least(r.bar_length / r.unit, silent)));
        b.clear(slice.first, slice.first + grammar_least(low, count));
        b.clear(slice.first + high, slice.end);
        const bool tempo = head->allow_tempo && !(r.require_note_in_bar && r.bar_notes == 0) &&
                           (r.tempo == kNone || head->allow_tempo_changes);
        b.ask_positions = r.ends >= head->roomy && !tempo;
    }

    // A metre may come behind each Bar, or without Bar tokens at a bar line where it changes.
    MELODIA_HD void bound_metres(const GrammarRegisters& r, GrammarBounds& b, int64_t end) const {
        const bool fixed = r.metre != kNone && !head->allow_metre_changes;
        if (r.has_bars) {
            if (!fixed) return;
            b.clear(head->slices[kTimeSignature]);
            b.always = r.metre;
        } else if (fixed || r.now != r.bar_start || (end >= 0 && r.now >= end)) {
            b.clear(head->slices[kTimeSignature]);
        } else if (r.metre != kNone) {
            b.clear(r.metre, r.metre + 1);
        }
    }

    // Time goes on inside the bar, or up to the end and to where a note must have ended.
    template <class State>
    MELODIA_HD void bound_shifts(const State& s, GrammarBounds& b, int64_t end, bool wants_note) const {
        const GrammarRegisters& r = s.registers();
        const GrammarSlice& slice = head->slices[kTimeShift];
        if (head->shifts == 0) return;
        int64_t furthest = r.now + shifts[head->shifts - 1] * r.unit;
        if (r.has_bars || (wants_note && r.bar >= 0)) furthest = bar_end(r) - 1;
        if (end >= 0) furthest = grammar_least(furthest, end - (r.notes == 0 || head->structured));
        const int64_t silent =
            r.on_off && r.ends > 0 ? s.first_end() + head->longest : r.heard + head->silence;
        furthest = grammar_least(furthest, silent);
        const int64_t high = count_below(shifts, head->shifts, floor_div(furthest - r.now, r.unit), true);
        b.clear(slice.first + high, slice.end);
        b.ask_shifts = r.ends >= head->roomy && !r.on_off && head->structured;
    }

    // Whether a base token may follow.
    template <class State>
    MELODIA_HD bool allows(const State& s, const GrammarBounds& b, int64_t token) const {
        if (token == b.always) return true;
        if (b.base == nullptr || !has_bit(b.base, token)) return false;
        MELODIA_ROLLED
        for (int64_t i = 0; i < b.count; ++i)
            if (b.cleared[i].first <= token && token < b.cleared[i].end) return false;
        return passes(s, b, token);
    }

    // Which tokens of word w of the mask may follow, BPE tokens left out.
    MELODIA_HD uint64_t word(const GrammarState& s, const GrammarBounds& b, int64_t w) const {
        uint64_t bits = b.base == nullptr ? 0 : b.base[w];
        MELODIA_ROLLED
        for (int64_t i = 0; i < b.count; ++i) bits &= ~bits_between(w, b.cleared[i].first, b.cleared[i].end);
        if (b.ask_pitches) bits &= ~sounding(s, b, w);
        uint64_t asked = 0;
        if (b.ask_ends) asked |= in_slice(w, s.r->program < 0 ? kDrumOff : kNoteOff);
        if (b.ask_programs) asked |= in_slice(w, kProgram);
        if (b.ask_positions) asked |= in_slice(w, kPosition);
        if (b.ask_shifts) asked |= in_slice(w, kTimeShift);
        asked &= bits;
        MELODIA_ROLLED
        for (int64_t id = 64 * w; asked != 0; ++id, asked >>= 1)
            if ((asked & 1) && !passes(s, b, id)) bits &= ~(uint64_t{1} << (id % 64));
        if (b.always >= 0 && b.always / 64 == w) bits |= uint64_t{1} << (b.always % 64);
        return bits;
    }

    MELODIA_HD uint64_t in_slice(int64_t w, Op op) const {
        return bits_between(w, head->slices[op].first, head->slices[op].end);
    }

    // The pitches of a word that may not begin: as `passes`, but for all at once.
    MELODIA_HD uint64_t sounding(const GrammarState& s, const GrammarBounds& b, int64_t w) const {
        const GrammarSlice& on = head->slices[s.r->program < 0 ? kDrum : kPitch];
        const int64_t first = grammar_most(on.first, 64 * w), end = grammar_least(on.end, 64 * (w + 1));
        const int64_t* times = s.rows + b.row * kPitches + on.low + (first - on.first);
        uint64_t bits = 0;
        for (int64_t i = 0; i < end - first; ++i) bits |= uint64_t{times[i] > b.latest} << i;
        return first < end ? bits << (first % 64) : 0;
    }

    // What has to be asked of a token that the bounds let through.
    template <class State>
    MELODIA_HD bool passes(const State& s, const GrammarBounds& b, int64_t token) const {
        const GrammarRegisters& r = s.registers();
        switch (ops[token]) {
            case kPitch:
            case kDrum:
                return !b.ask_pitches || s.time_of(b.row, values[token]) <= b.latest;
            case kNoteOff:
            case kDrumOff: {
                if (!b.ask_ends) return true;
                const int64_t begun = s.time_of(b.row, values[token]);
                return begun >= 0 && begun < r.now;
            }
            case kProgram: {
                const int64_t row = row_of_program(values[token]);
                return !b.ask_programs || row >= head->allowed_programs || can_follow(s, row, b.may_begin);
            }
            case kPosition:
                return !b.ask_positions ||
                       can_begin(s, r.bar_start + (token - head->slices[kPosition].first) * r.unit);
            case kTimeShift:
                return !b.ask_shifts ||
                       can_begin(s, r.now + shifts[token - head->slices[kTimeShift].first] * r.unit);
            default:
                return true;
        }
    }

    MELODIA_HD const int64_t* playable_by(int64_t row) const {
        return playable + (program_of_row[row] < 0 ? kPitches : 0);
    }

    // Whether a note of a row may begin (or end) here.
    template <class State>
    MELODIA_HD bool can_follow(const State& s, int64_t row, bool may_begin) const {
        if (!s.has_begun(row)) return may_begin;
        const GrammarRegisters& r = s.registers();
        const int64_t* plays = playable_by(row);
        MELODIA_ROLLED
        for (int64_t p = 0; p < kPitches; ++p) {
            if (!plays[p]) continue;
            const int64_t time = s.time_of(row, p);
            if (r.on_off ? (time < 0 ? may_begin : time < r.now) : may_begin && time <= r.now + head->reach)
                return true;
        }
        return false;
    }

    // Whether a note of any program may begin at a time from now on (not where notes have ends of their own).
    template <class State>
    MELODIA_HD bool can_begin(const State& s, int64_t time) const {
        if (s.registers().ends < head->roomy) return true;
        if (head->max_polyphony >= 0 && s.ends_behind(time) >= head->max_polyphony) return false;
        int64_t begun = 0;
        MELODIA_ROLLED
        for (int64_t row = 0; row < head->programs; ++row) begun += s.has_begun(row);
        if (begun < head->allowed_programs) return true;
        MELODIA_ROLLED
        for (int64_t row = 0; row < head->allowed_programs; ++row) {
            if (!s.has_begun(row)) return true;
            const int64_t* plays = playable_by(row);
            MELODIA_ROLLED
            for (int64_t p = 0; p < kPitches; ++p)
                if (plays[p] && s.time_of(row, p) <= time + head->reach) return true;
        }
        return false;
    }

    // -- BPE tokens

    // Allow the tokens of the trie whose parts may follow one by one.
    MELODIA_HD void mask_pairs(const GrammarState& s, uint64_t* mask, GrammarScratch scratch) const {
        GrammarTrial trial(s, scratch.changes);
        int64_t level = 0;
        scratch.frames[0].next = 0;
        scratch.frames[0].end = head->roots;
        scratch.frames[0].r = trial.r;
        while (true) {
            GrammarFrame& frame = scratch.frames[level];
            if (frame.next == frame.end) {
                if (level-- == 0) return;
                trial.back_to(level, scratch.frames[level].r);
                continue;
            }
            const int64_t node = frame.next++, part = node_part[node];
            if (!(level == 0 ? has_bit(mask, part) : allows(trial, frame.bounds, part))) continue;
            if (node_token[node] >= 0) set_bit(mask, node_token[node]);
            if (node_children[node] == 0) continue;
            step(trial, part);
            if (trial.r.kind == head->eos_kind) {
                trial.back_to(level, frame.r);
                continue;
            }
            GrammarFrame& below = scratch.frames[++level];
            below.next = node_child[node];
            below.end = below.next + node_children[node];
            below.r = trial.r;
            bound(trial, true, below.bounds);
        }
    }

    // Whether a BPE token may follow: what mask_pairs says of it. mask: of base tokens; changes [depth].
    MELODIA_HD bool pair_may_follow(const GrammarState& s, const uint64_t* mask, int64_t token,
                                    GrammarChange* changes) const {
        const int64_t first = part_start[token], end = part_start[token + 1];
        if (s.r->kind == head->eos_kind || !has_bit(mask, parts[first])) return false;
        GrammarTrial trial(s, changes);
        GrammarBounds bounds;
        for (int64_t i = first + 1; i < end; ++i) {
            step(trial, parts[i - 1]);
            if (trial.r.kind == head->eos_kind) return false;
            bound(trial, true, bounds);
            if (!allows(trial, bounds, parts[i])) return false;
        }
        return true;
    }

    // -- the step

    // Step behind a base token.
    template <class State>
    MELODIA_HD void step(State& s, int64_t token) const {
        GrammarRegisters& r = s.registers();
        const int64_t op = ops[token], value = values[token];
        s.next_step();
        if (op == kPad || op == kBpe) return;
        r.kind = kinds[token];
        switch (op) {
            case kPitch:
            case kDrum:
                r.notes += 1;
                r.bar_notes += 1;
                if (r.on_off) {
                    set_time(s, value, r.now);
                    s.append(r.now);
                } else {
                    r.pitch = value;
                    r.onset = r.now;
                }
                break;
            case kDuration: {
                const int64_t until = r.onset + value * r.unit;
                if (r.pitch >= 0) set_time(s, r.pitch, until);
                s.append(until);
                r.heard = grammar_most(r.heard, until);
                r.pitch = kNone;
                break;
            }
            case kPosition:
                r.place = value;
                r.now = r.bar_start + value * r.unit;
                break;
            case kTimeShift:
                r.now += value * r.unit;
                if (!r.has_bars) {
                    r.bar = grammar_most(r.bar, 0);
                    while (r.now >= r.bar_start + r.bar_length) begin_bar(s, r.bar_start + r.bar_length);
                } else {
                    s.tidy();
                }
                break;
            case kNoteOff:
            case kDrumOff: {
                const int64_t row = row_of_program(r.program);
                const int64_t begun = row < 0 || !s.has_begun(row) ? kFree : s.time_of(row, value);
                if (begun < 0) break;
                s.remove(begun);
                set_time(s, value, kFree);
                r.heard = r.now;
                break;
            }
            case kProgram:
                r.program = value;
                break;
            case kMicro:
                r.onset = r.now + value;
                break;
            case kBar:
                begin_bar(s, r.bar >= 0 ? r.bar_start + r.bar_length : 0);
                r.now = r.bar_start;
                break;
            case kTimeSignature:
                r.metre = token;
                r.bar_length = bar_lengths[token];
                r.unit = units[token];
                r.bar = grammar_most(r.bar, 0);
                break;
            case kTempo:
                r.tempo = token;
                break;
            default:
                break;
        }
    }

    template <class State>
    MELODIA_HD void set_time(State& s, int64_t pitch, int64_t time) const {
        const int64_t row = row_of_program(s.registers().program);
        if (row >= 0) s.set_time(row, pitch, time);
    }

    template <class State>
    MELODIA_HD void begin_bar(State& s, int64_t start) const {
        GrammarRegisters& r = s.registers();
        r.bar += 1;
        r.bar_start = start;
        r.place = -1;
        r.bar_notes = 0;
        r.min_position = 0;
        if (r.require_note_in_bar == 1) r.require_note_in_bar = 0;
        s.tidy();
    }
};

}  // namespace melodia
