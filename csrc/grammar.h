// Which token may follow, and the step from state to state: the twin of melodia/grammar/machine.py.
//
// Flat tables (made by melodia/engine/rules.py, checked by engine/rules.cpp) and a few registers, no memory
// of its own, so that host and device share it. Letters: V = vocabulary size, W = words of a mask (64 tokens
// each), P = programs of the vocabulary.
#pragma once
#include <cstdint>

#include "grammar_tables.h"

namespace melodia {

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
    const int32_t* row_of;                                               // [129]: program + 1 -> row, or -1

    MELODIA_HD int64_t row_of_program(int64_t program) const {
        return program < -1 || program > 127 ? -1 : row_of[program + 1];
    }

    MELODIA_HD void start(GrammarState& s) const {
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
    MELODIA_HD void mask(GrammarState& s, uint64_t* mask, GrammarScratch scratch) const {
        if (s.r->kind == head->eos_kind) {
            for (int64_t w = 0; w < W; ++w) mask[w] = 0;
            set_bit(mask, head->pad);
            return;
        }
        base_mask(s, true, mask);
        uint64_t any = 0;
        for (int64_t w = 0; w < W; ++w) any |= mask[w];
        if (any == 0) base_mask(s, false, mask);  // what was asked for cannot be had here
        if (head->roots > 0) mask_bpe(s, mask, scratch);
    }

    // Step behind a token, base or BPE.
    MELODIA_HD void advance(GrammarState& s, int64_t token) const {
        if (ops[token] == kBos && s.r->kind == head->bos_kind) return;
        if (ops[token] != kBpe) {
            step<false>(s, token, nullptr);
            return;
        }
        for (int64_t i = part_start[token]; i < part_start[token + 1]; ++i) step<false>(s, parts[i], nullptr);
    }

    // -- the mask of base tokens

    MELODIA_HD int64_t bar_end(const GrammarRegisters& r) const {
        return r.bar >= 0 ? r.bar_start + r.bar_length : 0;
    }
    MELODIA_HD int64_t bars(const GrammarRegisters& r) const {
        return r.has_bars ? r.bar + 1 : r.bar + (r.now > r.bar_start);
    }

    // Not `strict`: without what is asked for beyond validity.
    MELODIA_HD void base_mask(const GrammarState& s, bool strict, uint64_t* mask) const {
        const GrammarRegisters& r = *s.r;
        const GrammarHead& h = *head;
        const int64_t voice = r.program == kNone ? 0 : r.program < 0 ? 2 : 1;
        const uint64_t* from = base + (r.kind * 3 + voice) * W;
        for (int64_t w = 0; w < W; ++w) mask[w] = from[w];
        const int64_t after = follow[r.kind];
        const bool wants_note = strict && r.require_note_in_bar > 0 && r.bar_notes == 0;
        const bool early = strict && r.min_position > 0 && r.now < r.bar_start + r.min_position * r.unit;
        const int64_t end = r.has_bars || r.max_bars < 0
                                ? -1
                                : r.bar_start + (r.max_bars - grammar_most(r.bar, 0)) * r.bar_length;
        if (after & (kFollowNote | kFollowProgram)) {
            const int64_t limit = h.max_polyphony;
            const bool full = limit >= 0 && r.ends >= limit && sounding(s) >= limit;
            const bool may_begin = !(full || (end >= 0 && r.now >= end) || early);
            if ((after & kFollowNote) && voice) mask_notes(s, mask, voice == 2, may_begin);
            if (after & kFollowProgram) mask_programs(s, mask, may_begin, after & kFollowNote);
        }
        if (after & kFollowPosition) mask_positions(s, mask, strict);
        if (after & kFollowTempo) {
            if (r.tempo != kNone && h.allow_tempo_changes) {
                clear_bit(mask, r.tempo);
            } else if (r.tempo != kNone || early) {
                clear_slice(mask, kTempo);
            }
        }
        if ((after & kFollowBar) && ((r.max_bars >= 0 && r.bar + 1 >= r.max_bars) || wants_note ||
                                     (r.bar >= 0 && bar_end(r) > r.heard + h.silence)))
            clear_slice(mask, kBar);
        if ((after & kFollowEos) &&
            (wants_note || (r.on_off && r.ends > 0) || (strict && (r.notes == 0 || bars(r) < r.min_bars))))
            clear_bit(mask, h.eos);
        if (after & kFollowMetre) mask_metres(s, mask, end);
        if (after & kFollowShift) mask_shifts(s, mask, end, wants_note);
        if (after & kFollowMicro) {
            const int64_t row = row_of_program(r.program);
            int64_t earliest = -r.now;
            if (row >= 0 && s.begun[row] && r.pitch >= 0)
                earliest = grammar_most(earliest, s.rows[row * kPitches + r.pitch] - r.now);
            const int64_t first = h.slices[kMicro].first;
            clear_bits(mask, first, first + count_below(micros, h.micros, earliest, false));
        }
    }

    MELODIA_HD void clear_slice(uint64_t* mask, Op op) const {
        clear_bits(mask, head->slices[op].first, head->slices[op].end);
    }

    MELODIA_HD int64_t sounding(const GrammarState& s) const {
        return s.r->on_off ? s.r->ends : ends_behind(s, s.r->now);
    }

    MELODIA_HD int64_t ends_behind(const GrammarState& s, int64_t time) const {
        int64_t count = 0;
        for (int64_t i = 0; i < s.r->ends; ++i) count += s.ends[i] > time;
        return count;
    }

    // The row of a program, or null where it has not played.
    MELODIA_HD const int64_t* row(const GrammarState& s, int64_t program) const {
        const int64_t i = row_of_program(program);
        return i < 0 || !s.begun[i] ? nullptr : s.rows + i * kPitches;
    }

    // Only pitches that do not sound may begin, only those that do may end.
    MELODIA_HD void mask_notes(const GrammarState& s, uint64_t* mask, bool drum, bool may_begin) const {
        const GrammarSlice on = head->slices[drum ? kDrum : kPitch];
        const GrammarSlice off = head->slices[drum ? kDrumOff : kNoteOff];
        const int64_t* times = row(s, s.r->program);
        if (!may_begin) {
            clear_bits(mask, on.first, on.end);
        } else if (times != nullptr) {
            const int64_t latest = s.r->on_off ? kFree : s.r->now + head->reach;
            for (int64_t first = on.first; first < on.end; first += 64) {
                const int64_t count = grammar_least(64, on.end - first);
                const int64_t* of = times + on.low + (first - on.first);
                uint64_t free = 0;
                for (int64_t i = 0; i < count; ++i) free |= uint64_t{of[i] <= latest} << i;
                keep_bits(mask, first, count, free);
            }
        }
        if (!s.r->on_off) return;
        for (int64_t id = off.first; id < off.end; ++id) {
            const int64_t begun = times == nullptr ? kFree : times[off.low + id - off.first];
            if (begun < 0 || begun >= s.r->now) clear_bit(mask, id);
        }
    }

    // A program may come if it is a change and one of its pitches may begin (or end).
    MELODIA_HD void mask_programs(const GrammarState& s, uint64_t* mask, bool may_begin,
                                  bool directly) const {
        const int64_t present = directly ? row_of_program(s.r->program) : -1;
        if (present >= 0) clear_bit(mask, program_tokens[present]);
        if (may_begin && s.r->ends < head->least_room) return;
        for (int64_t i = 0; i < head->allowed_programs; ++i)
            if (!can_follow(s, i, may_begin)) clear_bit(mask, program_tokens[i]);
    }

    MELODIA_HD const int64_t* playable_by(int64_t row) const {
        return playable + (program_of_row[row] < 0 ? kPitches : 0);
    }

    // Whether a note of a row may begin (or end) here.
    MELODIA_HD bool can_follow(const GrammarState& s, int64_t i, bool may_begin) const {
        if (!s.begun[i]) return may_begin;
        const int64_t* times = s.rows + i * kPitches;
        const int64_t* plays = playable_by(i);
        const int64_t now = s.r->now;
        for (int64_t p = 0; p < kPitches; ++p) {
            if (!plays[p]) continue;
            if (s.r->on_off ? (times[p] < 0 ? may_begin : times[p] < now)
                            : may_begin && times[p] <= now + head->reach)
                return true;
        }
        return false;
    }

    // Whether a note of any program may begin at a time from now on (not where notes have ends of their own).
    MELODIA_HD bool can_begin(const GrammarState& s, int64_t time) const {
        if (s.r->ends < head->roomy) return true;
        if (head->max_polyphony >= 0 && ends_behind(s, time) >= head->max_polyphony) return false;
        int64_t begun = 0;
        for (int64_t i = 0; i < head->programs; ++i) begun += s.begun[i] != 0;
        if (begun < head->allowed_programs) return true;
        for (int64_t i = 0; i < head->allowed_programs; ++i) {
            if (!s.begun[i]) return true;
            const int64_t* plays = playable_by(i);
            for (int64_t p = 0; p < kPitches; ++p)
                if (plays[p] && s.rows[i * kPitches + p] <= time + head->reach) return true;
        }
        return false;
    }

    // Positions go forward inside the bar, and something must be able to happen there.
    MELODIA_HD void mask_positions(const GrammarState& s, uint64_t* mask, bool strict) const {
        const GrammarRegisters& r = *s.r;
        const GrammarSlice slice = head->slices[kPosition];
        const int64_t count = slice.end - slice.first;
        const int64_t low = grammar_most(r.place + 1, strict ? r.min_position : 0);
        const int64_t silent = floor_div(r.heard + head->silence - r.bar_start, r.unit) + 1;
        const int64_t high =
            grammar_most(0, grammar_least(count, grammar_least(r.bar_length / r.unit, silent)));
        clear_bits(mask, slice.first, slice.first + grammar_least(low, count));
        clear_bits(mask, slice.first + high, slice.end);
        const bool tempo = head->allow_tempo && !(r.require_note_in_bar && r.bar_notes == 0) &&
                           (r.tempo == kNone || head->allow_tempo_changes);
        if (r.ends < head->roomy || tempo) return;
        for (int64_t place = grammar_most(low, 0); place < high; ++place)
            if (!can_begin(s, r.bar_start + place * r.unit)) clear_bit(mask, slice.first + place);
    }

    // A metre may come behind each Bar, or without Bar tokens at a bar line where it changes.
    MELODIA_HD void mask_metres(const GrammarState& s, uint64_t* mask, int64_t end) const {
        const GrammarRegisters& r = *s.r;
        const bool fixed = r.metre != kNone && !head->allow_metre_changes;
        if (r.has_bars) {
            if (!fixed) return;
            clear_slice(mask, kTimeSignature);
            set_bit(mask, r.metre);
        } else if (fixed || r.now != r.bar_start || (end >= 0 && r.now >= end)) {
            clear_slice(mask, kTimeSignature);
        } else if (r.metre != kNone) {
            clear_bit(mask, r.metre);
        }
    }

    // Time goes on inside the bar, or up to the end and to where a note must have ended.
    MELODIA_HD void mask_shifts(const GrammarState& s, uint64_t* mask, int64_t end, bool wants_note) const {
        const GrammarRegisters& r = *s.r;
        const GrammarSlice slice = head->slices[kTimeShift];
        if (head->shifts == 0) return;
        int64_t furthest = r.now + shifts[head->shifts - 1] * r.unit;
        if (r.has_bars || (wants_note && r.bar >= 0)) furthest = bar_end(r) - 1;
        if (end >= 0) furthest = grammar_least(furthest, end - (r.notes == 0 || head->structured));
        const int64_t silent = r.on_off && r.ends > 0 ? s.ends[0] + head->longest : r.heard + head->silence;
        furthest = grammar_least(furthest, silent);
        const int64_t high = count_below(shifts, head->shifts, floor_div(furthest - r.now, r.unit), true);
        clear_bits(mask, slice.first + high, slice.end);
        if (r.ends < head->roomy || r.on_off || !head->structured) return;
        for (int64_t i = 0; i < high; ++i)
            if (!can_begin(s, r.now + shifts[i] * r.unit)) clear_bit(mask, slice.first + i);
    }

    // -- BPE

    // Allow the tokens of the trie whose parts may follow one by one. The state is the same afterwards.
    MELODIA_HD void mask_bpe(GrammarState& s, uint64_t* mask, GrammarScratch scratch) const {
        int64_t top = 0;
        scratch.frames[0].next = 0;
        scratch.frames[0].end = head->roots;
        while (true) {
            GrammarFrame& frame = scratch.frames[top];
            const uint64_t* here = top == 0 ? mask : scratch.masks + top * W;
            if (frame.next == frame.end) {
                if (top == 0) return;
                take_back(s, frame.undo);
                --top;
                continue;
            }
            const int64_t node = frame.next++;
            if (!has_bit(here, node_part[node])) continue;
            if (node_token[node] >= 0) set_bit(mask, node_token[node]);
            if (node_children[node] == 0) continue;
            GrammarFrame& below = scratch.frames[top + 1];
            step<true>(s, node_part[node], &below.undo);
            if (s.r->kind == head->eos_kind) {
                take_back(s, below.undo);
                continue;
            }
            ++top;
            base_mask(s, true, scratch.masks + top * W);
            below.next = node_child[node];
            below.end = below.next + node_children[node];
        }
    }

    MELODIA_HD void take_back(GrammarState& s, const GrammarUndo& undo) const {
        if (undo.removed >= 0) {
            for (int64_t i = undo.r.ends - 1; i > undo.at; --i) s.ends[i] = s.ends[i - 1];
            s.ends[undo.at] = undo.removed;
        }
        *s.r = undo.r;
        if (undo.row < 0) return;
        s.rows[undo.row * kPitches + undo.pitch] = undo.before;
        if (undo.created) s.begun[undo.row] = 0;
    }

    // -- the step

    // Step behind a base token. A trial drops nothing, so that it can be taken back.
    template <bool trial>
    MELODIA_HD void step(GrammarState& s, int64_t token, GrammarUndo* undo) const {
        GrammarRegisters& r = *s.r;
        const int64_t op = ops[token], value = values[token];
        if (trial) {
            undo->r = r;
            undo->row = undo->removed = -1;
        }
        if (op == kPad || op == kBpe) return;
        r.kind = kinds[token];
        switch (op) {
            case kPitch:
            case kDrum:
                r.notes += 1;
                r.bar_notes += 1;
                if (r.on_off) {
                    set_time<trial>(s, value, r.now, undo);
                    append<trial>(s, r.now);
                } else {
                    r.pitch = value;
                    r.onset = r.now;
                }
                break;
            case kDuration: {
                const int64_t until = r.onset + value * r.unit;
                if (r.pitch >= 0) set_time<trial>(s, r.pitch, until, undo);
                append<trial>(s, until);
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
                    while (r.now >= r.bar_start + r.bar_length)
                        begin_bar<trial>(s, r.bar_start + r.bar_length);
                } else if (!trial && r.ends > kPrune) {
                    prune(s);
                }
                break;
            case kNoteOff:
            case kDrumOff: {
                const int64_t* times = row(s, r.program);
                if (times == nullptr || times[value] < 0) break;
                remove<trial>(s, times[value], undo);
                set_time<trial>(s, value, kFree, undo);
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
                begin_bar<trial>(s, r.bar >= 0 ? r.bar_start + r.bar_length : 0);
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

    template <bool trial>
    MELODIA_HD void set_time(GrammarState& s, int64_t pitch, int64_t time, GrammarUndo* undo) const {
        const int64_t i = row_of_program(s.r->program);
        if (i < 0) return;
        const bool created = !s.begun[i];
        int64_t* times = s.rows + i * kPitches;
        if (created) {
            s.begun[i] = 1;
            for (int64_t p = 0; p < kPitches; ++p) times[p] = s.r->on_off ? kFree : 0;
        }
        if (trial) {
            undo->row = i;
            undo->pitch = pitch;
            undo->before = times[pitch];
            undo->created = created;
        }
        times[pitch] = time;
    }

    template <bool trial>
    MELODIA_HD void append(GrammarState& s, int64_t time) const {
        if (!trial && s.r->ends == s.capacity) prune(s);
        if (s.r->ends < s.capacity) s.ends[s.r->ends++] = time;
    }

    // Take out the first end at a time.
    template <bool trial>
    MELODIA_HD void remove(GrammarState& s, int64_t time, GrammarUndo* undo) const {
        int64_t at = 0;
        while (at < s.r->ends && s.ends[at] != time) ++at;
        if (at == s.r->ends) return;
        if (trial) {
            undo->removed = time;
            undo->at = at;
        }
        s.r->ends -= 1;
        for (int64_t i = at; i < s.r->ends; ++i) s.ends[i] = s.ends[i + 1];
    }

    template <bool trial>
    MELODIA_HD void begin_bar(GrammarState& s, int64_t start) const {
        GrammarRegisters& r = *s.r;
        r.bar += 1;
        r.bar_start = start;
        r.place = -1;
        r.bar_notes = 0;
        r.min_position = 0;
        if (r.require_note_in_bar == 1) r.require_note_in_bar = 0;
        if (!trial && r.ends > kPrune) prune(s);
    }

    MELODIA_HD void prune(GrammarState& s) const {
        if (s.r->on_off) return;
        int64_t kept = 0;
        for (int64_t i = 0; i < s.r->ends; ++i)
            if (s.ends[i] > s.r->now) s.ends[kept++] = s.ends[i];
        s.r->ends = kept;
    }
};

}  // namespace melodia
