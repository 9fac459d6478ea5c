#include "engine/rules.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace melodia::engine {

namespace {

constexpr int64_t kMagic = 0x4D454C4F44494132, kVersion = 1;
constexpr int64_t kLongest = 1 << 16;            // operands of a token
constexpr int64_t kFurthest = int64_t{1} << 52;  // times, in grid ticks

void require(bool fine, const char* what) {
    if (!fine) throw std::invalid_argument(std::string("the grammar's tables are damaged: ") + what);
}

bool within(int64_t x, int64_t low, int64_t high) { return low <= x && x <= high; }

void check_head(const GrammarHead& h) {
    require(within(h.V, 1, 1 << 20) && within(h.types, 1, 64), "the size");
    require(within(h.programs, 0, 129) && within(h.allowed_programs, 0, h.programs), "the programs");
    require(within(h.shifts, 0, h.V) && within(h.micros, 0, h.V), "the operands");
    require(within(h.roots, 0, h.nodes) && within(h.nodes, 0, 1 << 24) && within(h.parts, 0, 1 << 26) &&
                within(h.depth, 0, 4096),
            "the byte pairs");
    require(within(h.default_unit, 1, kLongest) && within(h.default_bar, h.default_unit, 1 << 24), "the bar");
    for (int64_t x :
         {h.has_bars, h.on_off, h.structured, h.allow_metre_changes, h.allow_tempo, h.allow_tempo_changes})
        require(within(x, 0, 1), "a switch");
    for (int64_t x : {h.silence, h.longest, h.reach, h.least_room, h.roomy, h.min_bars})
        require(within(x, 0, kFurthest), "a limit");
    require(within(h.max_polyphony, -1, kFurthest) && within(h.max_bars, -1, 1 << 30), "a limit");
    require(within(h.bos_kind, 0, h.types - 1) && within(h.eos_kind, 0, h.types - 1), "the kinds");
    require(within(h.pad, 0, h.V - 1) && within(h.eos, 0, h.V - 1), "the special tokens");
    for (const GrammarSlice& slice : h.slices)
        require(0 <= slice.first && slice.first <= slice.end && slice.end <= h.V, "a row of tokens");
    for (Op op : {kPitch, kDrum, kNoteOff, kDrumOff}) {
        const GrammarSlice& slice = h.slices[op];
        require(slice.low >= 0 && slice.low + (slice.end - slice.first) <= kPitches, "the pitches");
    }
}

}  // namespace

Rules::Rules(const int64_t* ints, int64_t count) : memory_(ints, ints + std::max<int64_t>(count, 0)) {
    constexpr int64_t head_size = sizeof(GrammarHead) / sizeof(int64_t);
    require(count >= 2 + head_size && memory_[0] == kMagic && memory_[1] == kVersion, "the beginning");
    const auto* head = reinterpret_cast<const GrammarHead*>(memory_.data() + 2);
    const GrammarHead& h = *head;
    check_head(h);

    const int64_t* next = memory_.data() + 2 + head_size;
    const int64_t* end = memory_.data() + memory_.size();
    auto take = [&](int64_t size) {
        require(size <= end - next, "the end is missing");
        const int64_t* section = next;
        next += size;
        return section;
    };
    Grammar& g = grammar;
    g.head = head;
    g.W = (h.V + 63) / 64;
    g.ops = take(h.V);
    g.values = take(h.V);
    g.bar_lengths = take(h.V);
    g.units = take(h.V);
    g.kinds = take(h.V);
    g.shifts = take(h.shifts);
    g.micros = take(h.micros);
    g.program_of_row = take(h.programs);
    g.program_tokens = take(h.programs);
    g.playable = take(2 * kPitches);
    g.follow = take(h.types);
    g.base = reinterpret_cast<const uint64_t*>(take(h.types * 3 * g.W));
    g.node_part = take(h.nodes);
    g.node_token = take(h.nodes);
    g.node_child = take(h.nodes);
    g.node_children = take(h.nodes);
    g.part_start = take(h.V + 1);
    g.parts = take(h.parts);
    SideTables& s = sides.tables;
    s.S = *take(1);
    require(within(s.S, 0, 64), "the side inputs");
    s.kinds = take(s.S);
    s.sizes = take(s.S);
    s.note = *take(1);
    s.fade_top = *take(1);
    s.fade_low = *take(1);
    s.profiles = take(kKeys * kPitchClasses);
    require(next == end, "something stands behind the end");
    sides.grammar = &grammar;

    row_of_.assign(kProgramNumbers, -1);
    for (int64_t i = 0; i < h.programs; ++i) {
        require(within(g.program_of_row[i], -1, 127) && row_of_[g.program_of_row[i] + 1] < 0, "the programs");
        require(within(g.program_tokens[i], 0, h.V - 1), "the programs");
        row_of_[g.program_of_row[i] + 1] = static_cast<int32_t>(i);
    }
    g.row_of = row_of_.data();
    for (int64_t i = 0; i < h.types * 3; ++i)
        require(h.V % 64 == 0 || g.base[(i + 1) * g.W - 1] >> (h.V % 64) == 0, "a mask");
    check_tokens();
    check_trie();
    check_sides();
    read_traits();
}

void Rules::check_tokens() const {
    const Grammar& g = grammar;
    const GrammarHead& h = *g.head;
    for (int64_t token = 0; token < h.V; ++token) {
        const int64_t op = g.ops[token], value = g.values[token];
        require(within(op, 0, kOps - 1), "an operation");
        require(within(value, -kLongest, kLongest), "an operand");
        require(op == kBpe || within(g.kinds[token], 0, h.types - 1), "a kind");
        if (op == kPitch || op == kDrum || op == kNoteOff || op == kDrumOff)
            require(within(value, 0, kPitches - 1), "a pitch");
        if (op == kPosition || op == kTimeShift || op == kDuration) require(value >= 0, "a time");
        if (op == kProgram) require(g.row_of_program(value) >= 0, "a program");
        if (op == kTimeSignature)
            require(
                within(g.units[token], 1, kLongest) && within(g.bar_lengths[token], g.units[token], 1 << 24),
                "a metre");
        require(g.part_start[token] >= 0 && g.part_start[token] <= g.part_start[token + 1], "the byte pairs");
        require(op != kBpe || g.part_start[token] < g.part_start[token + 1], "a byte pair");
    }
    require(g.part_start[0] == 0 && g.part_start[h.V] == h.parts, "the byte pairs");
    for (int64_t i = 0; i < h.parts; ++i)
        require(within(g.parts[i], 0, h.V - 1) && g.ops[g.parts[i]] != kBpe, "a byte pair");
    for (const int64_t* list : {g.shifts, g.micros})
        for (int64_t i = 0; i < (list == g.shifts ? h.shifts : h.micros); ++i)
            require(within(list[i], -kLongest, kLongest) && (i == 0 || list[i - 1] < list[i]),
                    "the operands");
    require(h.shifts == h.slices[kTimeShift].end - h.slices[kTimeShift].first, "the time shifts");
    require(h.micros == h.slices[kMicro].end - h.slices[kMicro].first, "the micro timing");
}

// Nodes stand level by level, each one's children in a row: so there are no circles.
void Rules::check_trie() const {
    const Grammar& g = grammar;
    const GrammarHead& h = *g.head;
    int64_t next = h.roots, deepest = h.nodes > 0;
    std::vector<int64_t> depth(static_cast<size_t>(h.nodes), 1);
    for (int64_t i = 0; i < h.nodes; ++i) {
        require(within(g.node_part[i], 0, h.V - 1) && g.ops[g.node_part[i]] != kBpe, "the byte pairs");
        require(within(g.node_token[i], -1, h.V - 1), "the byte pairs");
        require(g.node_child[i] == next && next > i && within(g.node_children[i], 0, h.nodes - next),
                "the byte pairs");
        for (int64_t k = 0; k < g.node_children[i]; ++k) depth[next++] = depth[i] + 1;
    }
    require(next == h.nodes, "the byte pairs");
    for (int64_t d : depth) deepest = std::max(deepest, d);
    require(deepest == h.depth, "the byte pairs");
}

void Rules::check_sides() const {
    const SideTables& s = sides.tables;
    for (int64_t i = 0; i < s.S; ++i) {
        require(within(s.kinds[i], 0, kSideKinds - 1) && within(s.sizes[i], 1, 1 << 24), "a side input");
        const bool looks_back = s.kinds[i] == kLookback1 || s.kinds[i] == kLookback2;
        const int64_t least = looks_back ? grammar.head->V + 1 : s.kinds[i] == kKey ? kKeys + 1 : 2;
        require(s.sizes[i] >= least, "the size of a side input");
    }
    require(within(s.note, 0, 1 << 16) && within(s.fade_top, 0, s.fade_low - 1) && s.fade_low <= 1 << 16,
            "the key");
    for (int64_t i = 0; i < kKeys * kPitchClasses; ++i)
        require(within(s.profiles[i], -(1 << 16), 1 << 16), "the key");
}

void Rules::read_traits() {
    const Grammar& g = grammar;
    const int64_t V = g.head->V;
    moves.assign(V, 0);
    traits.assign(V, 0);
    for (int64_t token = 0; token < V; ++token) {
        auto add = [&](int64_t part) {
            const int64_t op = g.ops[part];
            if (op == kTimeShift) moves[token] += g.values[part];
            if (op == kPitch || op == kDrum) traits[token] |= kBeginsNote;
            if (op == kDuration || op == kNoteOff || op == kDrumOff) traits[token] |= kEndsNote;
        };
        if (g.ops[token] != kBpe) add(token);
        for (int64_t i = g.part_start[token]; i < g.part_start[token + 1]; ++i) add(g.parts[i]);
    }
}

Follower::Follower(const Rules& rules) : rules_(rules), registers_{}, grammar_{}, sides_{}, scratch_{} {
    const Grammar& g = rules.grammar;
    const int64_t P = g.head->programs, capacity = kPitches * (P + 1);
    memory_.assign(static_cast<size_t>(P + P * kPitches + capacity), 0);
    frames_.resize(static_cast<size_t>(g.head->depth) + 1);
    changes_.resize(frames_.size());
    grammar_ = {&registers_, memory_.data(), memory_.data() + P, memory_.data() + P + P * kPitches, capacity};
    scratch_ = {frames_.data(), changes_.data()};
    grow_sides(256);
    g.start(grammar_);
    rules.sides.start(sides_);
}

void Follower::grow_sides(int64_t capacity) {
    std::vector<int64_t> grown(static_cast<size_t>(2 * kBarsKept * capacity), 0);
    int64_t* next = grown.data();
    for (SidePlaces& bar : sides_.bars) {
        for (int64_t** list : {&bar.places, &bar.tokens}) {
            std::copy_n(*list, bar.count, next);
            *list = next;
            next += capacity;
        }
    }
    places_ = std::move(grown);
    sides_.capacity = capacity;
}

void Follower::advance_sides(int64_t token, int32_t* out) {
    const SidePlaces& bar = SideInputs::places_of(sides_, sides_.r.bar);
    if (bar.count == sides_.capacity) grow_sides(2 * sides_.capacity);
    rules_.sides.advance(sides_, token, out);
}

void Follower::check() const {
    const GrammarHead& h = *rules_.grammar.head;
    const GrammarRegisters& r = registers_;
    const auto is = [&](int64_t token, Op op) {
        return token == kNone || (within(token, 0, h.V - 1) && rules_.grammar.ops[token] == op);
    };
    bool fine = r.has_bars == h.has_bars && r.on_off == h.on_off && within(r.kind, 0, h.types - 1);
    fine = fine && is(r.metre, kTimeSignature) && is(r.tempo, kTempo) && within(r.ends, 0, grammar_.capacity);
    fine = fine && (r.program == kNone || rules_.grammar.row_of_program(r.program) >= 0);
    fine = fine && (r.pitch == kNone || within(r.pitch, 0, kPitches - 1));
    fine = fine && within(r.unit, 1, kLongest) && within(r.bar_length, r.unit, 1 << 24);
    fine = fine && within(r.bar, -1, 1 << 30) && within(r.max_bars, -1, int64_t{1} << 31);
    fine = fine && within(r.place, -1, kLongest) && within(r.min_position, 0, 1 << 24);
    for (int64_t x : {r.bar_start, r.now, r.heard}) fine = fine && within(x, 0, kFurthest);
    fine = fine && within(r.onset, -kFurthest, kFurthest);
    if (!fine) throw std::invalid_argument("the state of the grammar belongs to another vocabulary");
}

void Follower::set_grammar(const int64_t* registers, int64_t count, const int64_t* programs,
                           const int64_t* rows, int64_t end_count, const int64_t* ends) {
    const GrammarRegisters before = registers_;
    const std::vector<int64_t> memory = memory_;
    try {
        std::copy_n(registers, sizeof(GrammarRegisters) / sizeof(int64_t) - 1, &registers_.has_bars);
        std::fill_n(grammar_.begun, rules_.grammar.head->programs, 0);
        registers_.ends = 0;
        check();
        for (int64_t i = 0; i < count; ++i) {
            const int64_t row = rules_.grammar.row_of_program(programs[i]);
            if (row < 0) throw std::invalid_argument("the state names a program that the vocabulary has not");
            grammar_.begun[row] = 1;
            std::copy_n(rows + i * kPitches, kPitches, grammar_.rows + row * kPitches);
        }
        for (int64_t i = 0; i < end_count; ++i) grammar_.append(ends[i]);
    } catch (...) {
        registers_ = before;
        std::copy(memory.begin(), memory.end(), memory_.begin());
        throw;
    }
}

void Follower::set_sides(const int64_t* flat, int64_t count) {
    constexpr int64_t head = sizeof(SideRegisters) / sizeof(int64_t);
    const auto fail = [] { throw std::invalid_argument("the state of the side inputs is damaged"); };
    if (count < head || (count - head) % 4 != 0) fail();
    SideRegisters r;
    std::copy_n(flat, head, &r.bar);
    bool fine = within(r.bar, -1, 1 << 30) && within(r.position, 0, 1 << 30) && within(r.unit, 1, kLongest);
    fine = fine && within(r.bar_length, r.unit, 1 << 24) && within(r.gone, 0, kFurthest);
    fine = fine && within(r.ordinal, -1, 1 << 30) && within(r.key, 0, kKeys) && within(r.density, 0, 8);
    fine = fine && within(r.bars_total, 0, 1 << 30);
    for (int64_t weight : r.weights) fine = fine && within(weight, 0, int64_t{1} << 40);
    for (int64_t i = head; fine && i < count; i += 4)
        fine = within(flat[i], -1, 1 << 30) && within(flat[i + 1], 0, 1 << 30) &&
               within(flat[i + 2], 0, 1 << 30) && within(flat[i + 3], 0, rules_.grammar.head->V - 1);
    if (!fine) fail();
    rules_.sides.start(sides_);
    sides_.r = r;
    for (int64_t i = head; i < count; i += 4) {
        if (flat[i] < r.bar - 2 || flat[i] > r.bar) continue;
        if (SideInputs::places_of(sides_, flat[i]).count == sides_.capacity) grow_sides(2 * sides_.capacity);
        SideInputs::remember(sides_, flat[i], flat[i + 1], flat[i + 2], flat[i + 3]);
    }
}

std::vector<int64_t> Follower::flat_sides() const {
    const int64_t* registers = &sides_.r.bar;
    std::vector<int64_t> flat(registers, registers + sizeof(SideRegisters) / sizeof(int64_t));
    for (int64_t b = std::max<int64_t>(sides_.r.bar - 2, -1); b <= sides_.r.bar; ++b) {
        const SidePlaces& bar = sides_.bars[(b + kBarsKept) % kBarsKept];
        if (bar.bar != b) continue;
        for (int64_t i = 0; i < bar.count; ++i)
            flat.insert(flat.end(), {b, bar.places[i] >> 32, bar.places[i] & 0x7FFFFFFF, bar.tokens[i]});
    }
    return flat;
}

}  // namespace melodia::engine
