// What stands beside the tokens, token by token: the twin of melodia/side_inputs.py's SideInputTracker.
//
// Tables as of grammar.h; the memory is the caller's. S = side inputs.
#pragma once
#include <cstdint>

#include "grammar.h"

namespace melodia {

// The order of melodia.side_inputs.NAMES.
enum SideKind : int64_t { kPlace, kBarsLeft, kLookback1, kLookback2, kDensity, kKey, kSideKinds };

constexpr int64_t kKeys = 24, kPitchClasses = 12, kBarsKept = 3;

struct SideTables {
    int64_t S;
    const int64_t *kinds, *sizes;      // [S]
    int64_t note, fade_top, fade_low;  // what a note adds to its pitch class, and what is left a bar later
    const int64_t* profiles;           // [24][12]
};

// The head of SideInputTracker.to_array().
struct SideRegisters {
    int64_t bar, position, unit, bar_length, gone, ordinal, key;
    int64_t bars_total, density;  // 0: not given
    int64_t weights[kPitchClasses];
};

// The places of a bar, ascending, and which token came next.
struct SidePlaces {
    int64_t bar, count;
    int64_t* places;  // [capacity]: position << 32 | ordinal
    int64_t* tokens;  // [capacity]
};

struct SideState {
    SideRegisters r;
    SidePlaces bars[kBarsKept];  // bar b stands at (b + 3) % 3
    int64_t capacity;
};

struct SideInputs {
    const Grammar* grammar;
    SideTables tables;

    MELODIA_HD void start(SideState& s) const {
        s.r = {-1, 0, grammar->head->default_unit, grammar->head->default_bar, 0, -1, 0, 0, 0, {}};
        for (int64_t i = 0; i < kBarsKept; ++i) s.bars[i].bar = -2, s.bars[i].count = 0;
    }

    // The places of a bar that one may write to.
    MELODIA_HD static SidePlaces& places_of(SideState& s, int64_t bar) {
        return s.bars[(bar + kBarsKept) % kBarsKept];
    }

    // Take one more token; out [S]: the side inputs for predicting the next. A place beyond the capacity is
    // forgotten.
    MELODIA_HD void advance(SideState& s, int64_t token, int32_t* out) const {
        SideRegisters& r = s.r;
        if (r.ordinal >= 0) remember(s, r.bar, r.position, r.ordinal, token);
        const int64_t bar = r.bar, position = r.position;
        const Grammar& g = *grammar;
        if (g.ops[token] != kBpe) {
            step(r, token);
        } else {
            for (int64_t i = g.part_start[token]; i < g.part_start[token + 1]; ++i) step(r, g.parts[i]);
        }
        r.ordinal = bar == r.bar && position == r.position ? r.ordinal + 1 : 0;
        for (int64_t i = 0; i < tables.S; ++i) out[i] = static_cast<int32_t>(value(s, i));
    }

    MELODIA_HD static void remember(SideState& s, int64_t bar, int64_t position, int64_t ordinal,
                                    int64_t token) {
        SidePlaces& of = places_of(s, bar);
        if (of.bar != bar) of.bar = bar, of.count = 0;
        const int64_t place = position << 32 | ordinal;
        int64_t at = of.count;
        while (at > 0 && of.places[at - 1] > place) --at;  // music goes forward: `at` is the end
        if (at > 0 && of.places[at - 1] == place) {
            of.tokens[at - 1] = token;
            return;
        }
        if (of.count == s.capacity) return;
        for (int64_t i = of.count; i > at; --i)
            of.places[i] = of.places[i - 1], of.tokens[i] = of.tokens[i - 1];
        of.places[at] = place;
        of.tokens[at] = token;
        of.count += 1;
    }

  private:
    MELODIA_HD int64_t value(const SideState& s, int64_t i) const {
        const SideRegisters& r = s.r;
        const int64_t last = tables.sizes[i] - 1;
        switch (tables.kinds[i]) {
            case kPlace:
                return grammar_least(r.position, last);
            case kBarsLeft:
                if (r.bars_total == 0) return 0;
                return grammar_least(grammar_most(r.bars_total - grammar_most(r.bar, 0), 1), last);
            case kDensity:
                return r.density;
            case kKey:
                return r.key;
            case kLookback1:
                return look_back(s, 1);
            default:
                return look_back(s, 2);
        }
    }

    // 1 + the token that came next at this place some bars ago, 0 if there was none.
    MELODIA_HD static int64_t look_back(const SideState& s, int64_t distance) {
        const int64_t bar = s.r.bar - distance;
        if (bar < 0) return 0;
        const SidePlaces& of = s.bars[(bar + kBarsKept) % kBarsKept];
        const int64_t place = s.r.position << 32 | s.r.ordinal;
        if (of.bar != bar) return 0;
        const int64_t at = count_below(of.places, of.count, place, false);
        return at < of.count && of.places[at] == place ? of.tokens[at] + 1 : 0;
    }

    MELODIA_HD void step(SideRegisters& r, int64_t token) const {
        const Grammar& g = *grammar;
        const int64_t value = g.values[token];
        switch (g.ops[token]) {
            case kBar:
                next_bar(r);
                r.position = r.gone = 0;
                break;
            case kPitch:
                r.weights[value % kPitchClasses] += tables.note;
                break;
            case kTimeSignature:
                r.unit = g.units[token];
                r.bar_length = g.bar_lengths[token];
                r.bar = grammar_most(r.bar, 0);
                break;
            case kPosition:
                r.position = value;
                break;
            case kTimeShift:
                r.gone += value * r.unit;
                r.bar = grammar_most(r.bar, 0);
                while (!g.head->has_bars && r.gone >= r.bar_length) {
                    r.gone -= r.bar_length;
                    next_bar(r);
                }
                r.position = r.gone / r.unit;
                break;
            default:
                break;
        }
    }

    MELODIA_HD void next_bar(SideRegisters& r) const {
        r.bar += 1;
        if (r.bar <= 0) return;
        int64_t any = 0;
        MELODIA_ROLLED
        for (int64_t& weight : r.weights) any |= weight = weight * tables.fade_top / tables.fade_low;
        r.key = 0;
        int64_t best = INT64_MIN;
        MELODIA_ROLLED
        for (int64_t key = 0; any && key < kKeys; ++key) {
            int64_t score = 0;
            for (int64_t i = 0; i < kPitchClasses; ++i) score += r.weights[i] * tables.profiles[key * 12 + i];
            if (score > best) best = score, r.key = key + 1;
        }
    }
};

}  // namespace melodia
