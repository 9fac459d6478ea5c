#include "cuda/decode_loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

namespace melodia::cuda::decode {

namespace {

static_assert(static_cast<int>(Standing::taken) == static_cast<int>(engine::Standing::taken) &&
                  static_cast<int>(Standing::stopped) == static_cast<int>(engine::Standing::stopped) &&
                  static_cast<int>(Standing::nan) == static_cast<int>(engine::Standing::nan),
              "one meaning on both sides");
static_assert(engine::Rules::kEndsNote == 1 && engine::Rules::kBeginsNote == 2, "one meaning on both sides");

constexpr double kLaunchSeconds = 0.05;  // screens and other programs get their turn in between

template <class T>
T* at(unsigned char* base, int64_t offset) {
    return reinterpret_cast<T*>(base + offset);
}

}  // namespace

Loop::Loop(Decoder& decoder, Lanes& lanes, const engine::Rules* const* rules, int64_t count)
    : Voices(decoder.plan, lanes.count(), rules, count), decoder_(decoder), lanes_(&lanes) {
    upload(rules);
}

void Loop::keep(Lanes& lanes, const int64_t* kept, int64_t count) {
    Voices::keep(lanes.count(), kept, count);
    lanes_ = &lanes;
}

// Tables as engine/rules.h has them, once for each of the different rules.
void Loop::upload(const engine::Rules* const* rules) {
    std::vector<const engine::Rules*> known;
    std::vector<DeviceRules> made;
    for (auto& voice : voices_) {
        const engine::Rules* of = rules[&voice - voices_.data()];
        const auto found = std::find(known.begin(), known.end(), of);
        voice->rules = found - known.begin();
        if (found == known.end()) known.push_back(of);
    }
    auto* place = rules_.of<DeviceRules>(static_cast<int64_t>(known.size()));
    for (size_t i = 0; i < known.size(); ++i) {
        const engine::Rules& of = *known[i];
        // One row of numbers, from the head to the profiles (rules.cpp).
        const auto* first = reinterpret_cast<const int64_t*>(of.grammar.head);
        const int64_t size = of.sides.tables.profiles + kKeys * kPitchClasses - first;
        const int64_t words = size + V_ + kProgramNumbers + up(V_, 8) / 8;
        rule_memory_.push_back(std::make_unique<Memory>());
        auto* base = rule_memory_.back()->of<int64_t>(words);
        int64_t* moves = base + size;
        auto* row_of = reinterpret_cast<int32_t*>(moves + V_);
        auto* traits = reinterpret_cast<uint8_t*>(moves + V_ + kProgramNumbers);
        Memory::write(base, first, 8 * size);
        Memory::write(moves, of.moves.data(), 8 * V_);
        Memory::write(row_of, of.grammar.row_of, 4 * kProgramNumbers);
        Memory::write(traits, of.traits.data(), V_);
        DeviceRules there{of.grammar, of.sides, moves, traits};
        const auto shift = [&](auto*& pointer) {
            using T = std::remove_reference_t<decltype(pointer)>;
            pointer = reinterpret_cast<T>(base + (reinterpret_cast<const int64_t*>(pointer) - first));
        };
        Grammar& g = there.grammar;
        shift(g.head);
        for (const int64_t** p : {&g.ops,
                                  &g.values,
                                  &g.bar_lengths,
                                  &g.units,
                                  &g.kinds,
                                  &g.shifts,
                                  &g.micros,
                                  &g.program_of_row,
                                  &g.program_tokens,
                                  &g.playable,
                                  &g.follow,
                                  &g.node_part,
                                  &g.node_token,
                                  &g.node_child,
                                  &g.node_children,
                                  &g.part_start,
                                  &g.parts,
                                  &there.sides.tables.kinds,
                                  &there.sides.tables.sizes,
                                  &there.sides.tables.profiles})
            shift(*p);
        shift(g.base);
        g.row_of = row_of;
        there.sides.grammar = &place[i].grammar;
        made.push_back(there);
    }
    Memory::write(place, made.data(), static_cast<int64_t>(made.size() * sizeof(DeviceRules)));
}

RecordLayout Loop::plan_records(int64_t steps) const {
    RecordLayout l{};
    int64_t programs = 0, depth = 0, ends = 0, places = 0, ring = 0, bias = 0;
    for (const auto& v : voices_) {
        const GrammarHead& h = *v->follower.rules().grammar.head;
        programs = std::max(programs, h.programs);
        depth = std::max(depth, h.depth);
        ends = std::max(ends, v->follower.grammar().capacity);
        ring = std::max<int64_t>(ring, static_cast<int64_t>(v->recent.size()));
        bias = std::max<int64_t>(bias, static_cast<int64_t>(v->bias.rows.size()));
        for (const SidePlaces& bar : v->follower.sides().bars) places = std::max(places, bar.count);
    }
    l.ends_capacity = ends;
    l.places_capacity = places + steps + 1;
    l.words = W_;
    int64_t next = up(sizeof(Record), 16);
    const auto take = [&](int64_t size) {
        const int64_t from = next;
        next = up(next + size, 16);
        return from;
    };
    l.begun = take(8 * programs);
    l.rows = take(8 * programs * kPitches);
    l.ends = take(8 * ends);
    l.places = take(8 * 2 * kBarsKept * l.places_capacity);
    l.masks = take(8 * W_ * kMasks);
    l.ring = take(4 * ring);
    l.counts = take(4 * V_);
    l.bias = take(4 * bias);
    l.bias_row_of = take(4 * kProgramNumbers);
    l.size = up(next, 256);
    next = 0;
    l.changes_each = depth;
    l.changes = take(static_cast<int64_t>(sizeof(GrammarChange)) * depth * kThreads);
    l.legal = take(8 * W_);
    l.wanted = take(8 * W_);
    l.noise = take(4 * V_);
    l.candidates = take(4 * V_);
    l.masses = take(8 * V_);
    l.scratch_size = up(next, 256);
    return l;
}

void Loop::pack(int64_t lane, const RecordLayout& l, unsigned char* record, unsigned char* device) const {
    const Voice& host = *voices_[lane];
    auto& follower = const_cast<Voice&>(host).follower;
    const GrammarState& g = follower.grammar();
    const SideState& s = follower.sides();
    const int64_t programs = host.follower.rules().grammar.head->programs;
    Record& v = *at<Record>(record, 0);
    v = Record{};
    v.grammar = *g.r;
    v.state = {reinterpret_cast<GrammarRegisters*>(device + offsetof(Record, grammar)),
               at<int64_t>(device, l.begun), at<int64_t>(device, l.rows), at<int64_t>(device, l.ends),
               g.capacity};
    std::copy_n(g.begun, programs, at<int64_t>(record, l.begun));
    std::copy_n(g.rows, programs * kPitches, at<int64_t>(record, l.rows));
    std::copy_n(g.ends, g.r->ends, at<int64_t>(record, l.ends));
    v.sides.r = s.r;
    v.sides.capacity = l.places_capacity;
    for (int64_t k = 0; k < kBarsKept; ++k) {
        const int64_t places = l.places + 8 * 2 * k * l.places_capacity,
                      tokens = places + 8 * l.places_capacity;
        v.sides.bars[k] = {s.bars[k].bar, s.bars[k].count, at<int64_t>(device, places),
                           at<int64_t>(device, tokens)};
        std::copy_n(s.bars[k].places, s.bars[k].count, at<int64_t>(record, places));
        std::copy_n(s.bars[k].tokens, s.bars[k].count, at<int64_t>(record, tokens));
    }
    const LaneFacts& f = facts_[lane];
    v.standing = f.standing;
    v.token = f.token;
    v.nll = f.nll;
    v.entropy = f.entropy;
    v.made = f.made;
    v.fed = f.fed;
    const LaneTerms& t = host.terms;
    v.tokens = t.tokens;
    v.pause = t.pause;
    v.stop_tick = t.stop_tick;
    auto* masks = at<uint64_t>(record, l.masks);
    const auto mask = [&](const uint64_t* from, int64_t which) -> int64_t {
        if (from != nullptr) std::copy_n(from, W_, masks + which * W_);
        return from != nullptr;
    };
    for (int i = 0; i < 3; ++i) {
        v.ticks[i] = t.ticks[i];
        v.late[i] = mask(t.late[i], kLateMasks + i);
    }
    v.exclude = mask(t.exclude, kExcludeMask);
    v.stop = mask(t.stop, kStopMask);
    v.biased = !host.bias.rows.empty();
    std::copy(host.bias.rows.begin(), host.bias.rows.end(), at<float>(record, l.bias));
    if (v.biased) mask(host.bias.members.data(), kMembersMask);
    v.exponent = host.bias.exponent;
    std::copy(host.bias.row_of.begin(), host.bias.row_of.end(), at<int32_t>(record, l.bias_row_of));
    v.top_p = host.sampling.top_p;
    v.min_p = host.sampling.min_p;
    v.log_min_p = v.min_p > 0.0 ? std::log(v.min_p) : 0.0;
    v.temperature = host.sampling.temperature;
    v.penalty = host.sampling.repetition_penalty;
    v.top_k = host.sampling.top_k;
    v.greedy = host.sampling.greedy;
    v.random_seed = host.random_seed;
    v.session = host.session;
    v.ring_size = static_cast<int64_t>(host.recent.size());
    v.ring_at = v.ring_size > 0 ? host.at % v.ring_size : 0;
    v.rules = host.rules;
    std::copy(host.recent.begin(), host.recent.end(), at<int32_t>(record, l.ring));
    for (const int32_t token : host.recent)
        if (token >= 0 && (host.follower.rules().traits[token] & engine::Rules::kBeginsNote))
            at<int32_t>(record, l.counts)[token] += 1;
}

// Whether the lane pauses.
bool Loop::unpack(int64_t lane, const RecordLayout& l, const unsigned char* from) {
    auto* record = const_cast<unsigned char*>(from);
    Voice& host = *voices_[lane];
    const Record& v = *at<Record>(record, 0);
    GrammarState& g = host.follower.grammar();
    const int64_t programs = host.follower.rules().grammar.head->programs;
    *g.r = v.grammar;
    std::copy_n(at<int64_t>(record, l.begun), programs, g.begun);
    std::copy_n(at<int64_t>(record, l.rows), programs * kPitches, g.rows);
    std::copy_n(at<int64_t>(record, l.ends), v.grammar.ends, g.ends);
    const int64_t* registers = &v.sides.r.bar;
    std::vector<int64_t> flat(registers, registers + sizeof(SideRegisters) / sizeof(int64_t));
    for (int64_t bar = std::max<int64_t>(v.sides.r.bar - 2, -1); bar <= v.sides.r.bar; ++bar) {
        const int64_t k = (bar + kBarsKept) % kBarsKept;
        if (v.sides.bars[k].bar != bar) continue;
        const int64_t* places = at<int64_t>(record, l.places + 8 * 2 * k * l.places_capacity);
        const int64_t* tokens = places + l.places_capacity;
        for (int64_t i = 0; i < v.sides.bars[k].count; ++i)
            flat.insert(flat.end(), {bar, places[i] >> 32, places[i] & 0x7FFFFFFF, tokens[i]});
    }
    host.follower.set_sides(flat.data(), static_cast<int64_t>(flat.size()));
    LaneFacts& f = facts_[lane];
    f = {v.standing, v.token, v.nll, v.entropy, v.made, v.fed};
    host.terms.tokens = v.tokens;
    host.at = v.ring_at;
    std::copy_n(at<int32_t>(record, l.ring), host.recent.size(), host.recent.begin());
    return v.pauses != 0;
}

bool Loop::launch(int64_t steps) {
    const int64_t B = count();
    const RecordLayout layout = plan_records(steps);
    std::vector<unsigned char> records(static_cast<size_t>(B * layout.size), 0);
    auto* device = records_.of<unsigned char>(B * layout.size);
    std::vector<int64_t> made;
    for (int64_t lane = 0; lane < B; ++lane) {
        pack(lane, layout, records.data() + lane * layout.size, device + lane * layout.size);
        made.push_back(facts_[lane].made);
    }
    std::vector<int32_t> tokens(static_cast<size_t>(B * steps));
    std::vector<double> nll(tokens.size()), entropy(tokens.size());
    Job job;
    job.steps = steps;
    job.rules = rules_.of<DeviceRules>(1);
    job.record = &layout;
    job.records = records.data();
    job.device_records = device;
    job.tokens = tokens.data();
    job.nll = nll.data();
    job.entropy = entropy.data();
    lanes_->set_logits(logits_.data());
    std::vector<int64_t> taken;
    for (const LaneFacts& f : facts_) taken.push_back(f.is(engine::Standing::taken));
    lanes_->run(job);
    bool pauses = false;
    for (int64_t lane = 0; lane < B; ++lane) {
        pauses = unpack(lane, layout, records.data() + lane * layout.size) || pauses;
        Voice& v = *voices_[lane];
        const int64_t n = facts_[lane].made - made[lane], from = lane * steps + taken[lane];
        v.tokens.insert(v.tokens.end(), tokens.begin() + from, tokens.begin() + from + n);
        v.nll.insert(v.nll.end(), nll.begin() + from, nll.begin() + from + n);
        v.entropy.insert(v.entropy.end(), entropy.begin() + from, entropy.begin() + from + n);
    }
    std::copy_n(lanes_->logits(), B * V_, logits_.data());
    return pauses;
}

Stopped Loop::run(int64_t steps, int64_t microseconds, const int32_t* flag) {
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::microseconds(microseconds);
    const int64_t chosen = decoder_.options.launch_steps;
    for (const auto& voice : voices_) voice->follower.check();
    for (int64_t done = 0;;) {
        bool asked = count() == 0;
        for (int64_t lane = 0; lane < count(); ++lane) {
            LaneFacts& facts = facts_[lane];
            if (facts.is(engine::Standing::ready) && voices_[lane]->terms.tokens <= 0)
                facts.set(engine::Standing::asks);
            asked = asked || facts.over();
        }
        if (asked) return Stopped::lane;
        if (flag != nullptr && __atomic_load_n(flag, __ATOMIC_RELAXED) != 0) return Stopped::flag;
        int64_t n = chosen > 0 ? chosen : launch_steps_;
        if (steps > 0) n = std::min(n, steps - done);
        const auto begun = Clock::now();
        const bool pauses = launch(n);
        const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
        if (seconds < kLaunchSeconds / 2 && n == launch_steps_)
            launch_steps_ = std::min<int64_t>(2 * n, 8192);
        if (seconds > kLaunchSeconds) launch_steps_ = std::max<int64_t>(1, launch_steps_ / 2);
        done += n;
        if (pauses) return Stopped::pause;
        for (const LaneFacts& facts : facts_)
            if (facts.over()) return Stopped::lane;
        if (done == steps) return Stopped::steps;
        if (microseconds > 0 && Clock::now() >= until) return Stopped::time;
    }
}

}  // namespace melodia::cuda::decode
