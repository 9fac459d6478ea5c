// The rules, their followers and the loop for Python; see module.cpp.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/module.h"

namespace melodia::engine::python {
namespace {

using SharedRules = std::shared_ptr<Rules>;

// A follower of its own, of a lane, or of a lane of the CUDA engine.
struct BoundFollower {
    std::shared_ptr<Follower> follower;
    SharedRules rules;
    std::shared_ptr<std::atomic_flag> busy;  // the loop's, of a lane
};

std::shared_ptr<std::atomic_flag> idle() {
    auto flag = std::make_shared<std::atomic_flag>();
    flag->clear();
    return flag;
}

struct BoundLoop {
    BoundLoop(std::shared_ptr<BoundLanes> of, std::vector<SharedRules> each)
        : lanes(std::move(of)),
          rules(std::move(each)),
          loop(lanes->engine->plan, lanes->lanes, pointers().data(), static_cast<int64_t>(rules.size())) {}

    std::vector<const Rules*> pointers() const {
        std::vector<const Rules*> found;
        for (const SharedRules& of : rules) {
            if (of == nullptr) throw std::invalid_argument("every lane needs rules (received None)");
            found.push_back(of.get());
        }
        return found;
    }

    std::shared_ptr<BoundLanes> lanes;
    std::vector<SharedRules> rules;  // of each lane
    Loop loop;
    std::shared_ptr<std::atomic_flag> busy = idle();
};

constexpr char kLoop[] = "this loop is";

// Runs a body that leaves GrammarError where it fails; the object is held meanwhile.
template <class Bound, class F>
auto held(Bound& self, F&& body) -> decltype(body()) {
    const Use use(*self.busy, kLoop);
    return translated("GrammarError", "", std::forward<F>(body));
}

template <class Bound, class F>
auto held_computing(Bound& self, F&& body) -> decltype(body()) {
    const Use use(*self.busy, kLoop);
    return computed("GrammarError", "", std::forward<F>(body));
}

SharedRules make_rules(const py::array& ints) {
    const int64_t* numbers = numbers_of<int64_t>("ints", ints, {-1});
    const int64_t count = ints.shape(0);
    return computed("ConfigError", "the engine refuses this grammar: ", [&] {
        return std::make_shared<Rules>(numbers, count);
    });
}

std::unique_ptr<BoundFollower> follow(SharedRules rules) {
    auto follower = std::make_shared<Follower>(*rules);
    return std::make_unique<BoundFollower>(BoundFollower{std::move(follower), std::move(rules), idle()});
}

void check_token(const BoundFollower& self, int64_t token) {
    const int64_t V = self.rules->grammar.head->V;
    if (token < 0 || token >= V)
        throw std::invalid_argument("token " + std::to_string(token) + " is not in the vocabulary of " +
                                    std::to_string(V));
}

py::array mask(BoundFollower& self) {
    const int64_t V = self.rules->grammar.head->V;
    py::array_t<bool> out(V);
    bool* allowed = out.mutable_data();
    held_computing(self, [&] {
        thread_local std::vector<uint64_t> bits;
        bits.assign(static_cast<size_t>(V + 63) / 64, 0);
        self.follower->check();
        self.follower->mask(bits.data());
        for (int64_t v = 0; v < V; ++v) allowed[v] = bits[v / 64] >> (v % 64) & 1;
    });
    return out;
}

void set_grammar(BoundFollower& self, const py::array& registers, const py::array& programs,
                 const py::array& rows, const py::array& ends) {
    constexpr int64_t count = sizeof(GrammarRegisters) / sizeof(int64_t) - 1;
    const int64_t* numbers = numbers_of<int64_t>("registers", registers, {count});
    const int64_t* names = numbers_of<int64_t>("programs", programs, {-1});
    const int64_t* times = numbers_of<int64_t>("rows", rows, {programs.shape(0), kPitches});
    const int64_t* last = numbers_of<int64_t>("ends", ends, {-1});
    held(self,
         [&] { self.follower->set_grammar(numbers, programs.shape(0), names, times, ends.shape(0), last); });
}

// Where a lane's caller may read and write: the memory of the follower.
py::array registers(const py::object& self) {
    GrammarRegisters* r = self.cast<BoundFollower&>().follower->grammar().r;
    return view(&r->has_bars, {sizeof(GrammarRegisters) / sizeof(int64_t)}, self);
}

py::array begun(const py::object& self) {
    const auto& bound = self.cast<BoundFollower&>();
    return view(bound.follower->grammar().begun, {bound.rules->grammar.head->programs}, self);
}

py::array rows(const py::object& self) {
    const auto& bound = self.cast<BoundFollower&>();
    return view(bound.follower->grammar().rows, {bound.rules->grammar.head->programs, kPitches}, self);
}

py::array ends(const py::object& self) {
    const GrammarState& state = self.cast<BoundFollower&>().follower->grammar();
    return view(state.ends, {state.capacity}, self);
}

std::unique_ptr<BoundLoop> make_loop(std::shared_ptr<BoundLanes> lanes, std::vector<SharedRules> rules) {
    return translated("ConfigError", "the engine refuses this grammar: ", [&] {
        return std::make_unique<BoundLoop>(std::move(lanes), std::move(rules));
    });
}

int64_t check_lane(const BoundLoop& self, int64_t lane) {
    if (lane < 0 || lane >= self.loop.count())
        throw std::invalid_argument("there is no such lane: it must lie from 0 to " +
                                    std::to_string(self.loop.count() - 1) + " (received " +
                                    std::to_string(lane) + ")");
    return lane;
}

std::unique_ptr<BoundFollower> follower(BoundLoop& self, int64_t lane) {
    return held(self, [&] {
        check_lane(self, lane);
        return std::make_unique<BoundFollower>(
            BoundFollower{self.loop.share_follower(lane), self.rules[lane], self.busy});
    });
}

void begin(BoundLoop& self, int64_t lane, const Sampling& sampling, int64_t window, uint64_t random_seed,
           uint32_t session, int64_t fed, const std::vector<int64_t>& recent) {
    held(self, [&] {
        self.loop.begin(check_lane(self, lane), sampling, window, random_seed, session, fed, recent.data(),
                        static_cast<int64_t>(recent.size()));
    });
}

void set_bias(BoundLoop& self, int64_t lane, const py::array& rows, const py::array& row_of,
              const py::array& members, double exponent) {
    const float* numbers = numbers_of<float>("the rows of a bias", rows, {-1, self.lanes->engine->plan.V});
    const int32_t* places = numbers_of<int32_t>("row_of", row_of, {kProgramNumbers});
    const uint64_t* bits = numbers_of<uint64_t>("members", members, {self.loop.words()});
    held(self,
         [&] { self.loop.set_bias(check_lane(self, lane), numbers, rows.shape(0), places, bits, exponent); });
}

void set_terms(BoundLoop& self, int64_t lane, int64_t tokens, bool pause, int64_t bars_total,
               const std::optional<py::array>& exclude,
               const std::vector<std::pair<py::array, int64_t>>& late, const std::optional<py::array>& stop,
               int64_t stop_tick) {
    const int64_t W = self.loop.words();
    LaneTerms terms{};
    terms.tokens = tokens;
    terms.pause = pause;
    terms.bars_total = bars_total;
    terms.stop_tick = stop_tick;
    if (late.size() > LaneTerms::kRules)
        throw std::invalid_argument("late must be at most " + std::to_string(LaneTerms::kRules) +
                                    " classes of tokens (received " + std::to_string(late.size()) + ")");
    for (size_t i = 0; i < late.size(); ++i) {
        terms.late[i] = numbers_of<uint64_t>("late", late[i].first, {W});
        terms.ticks[i] = late[i].second;
    }
    if (exclude) terms.exclude = numbers_of<uint64_t>("exclude", *exclude, {W});
    if (stop) terms.stop = numbers_of<uint64_t>("stop", *stop, {W});
    held(self, [&] { self.loop.set_terms(check_lane(self, lane), terms); });
}

int64_t run(BoundLoop& self, int64_t steps, int64_t microseconds, const std::optional<py::array>& flag) {
    const int32_t* word = flag ? numbers_of<int32_t>("flag", *flag, {1}) : nullptr;
    const Use use(self.lanes->busy, "the sessions of this loop are");
    return held_computing(self,
                          [&] { return static_cast<int64_t>(self.loop.run(steps, microseconds, word)); });
}

void choose(BoundLoop& self, int64_t lane, const py::array& legal) {
    const int64_t V = self.lanes->engine->plan.V;
    const bool* mask = numbers_of<bool>("legal", legal, {V});
    held_computing(self, [&] {
        thread_local std::vector<uint64_t> bits;
        pack_bits(mask, V, bits);
        self.loop.choose(check_lane(self, lane), bits.data());
    });
}

py::tuple drain(BoundLoop& self, int64_t lane) {
    return held(self, [&] {
        const int64_t count = self.loop.facts()[check_lane(self, lane)].made;
        py::array_t<int32_t> tokens(count);
        py::array_t<double> nll(count), entropy(count);
        self.loop.drain(lane, tokens.mutable_data(), nll.mutable_data(), entropy.mutable_data());
        return py::make_tuple(tokens, nll, entropy);
    });
}

void keep(BoundLoop& self, std::shared_ptr<BoundLanes> lanes, const std::vector<int64_t>& kept) {
    held(self, [&] {
        if (lanes->engine != self.lanes->engine)
            throw std::invalid_argument("the sessions must be of the same network");
        self.loop.keep(lanes->lanes, kept.data(), static_cast<int64_t>(kept.size()));
    });
    for (size_t i = 0; i < kept.size(); ++i) self.rules[i] = self.rules[kept[i]];
    self.rules.resize(kept.size());
    self.lanes = std::move(lanes);
}

}  // namespace

void bind_rules(py::module_& module) {
    using namespace py::literals;
    py::class_<Rules, std::shared_ptr<Rules>> rules(module, "Rules", "A grammar and side inputs, checked.");
    rules
        .def(py::init(&make_rules), "ints"_a,
             "Read the tables of melodia.engine.rules.describe_rules, int64 [N]. Raises ConfigError where "
             "they "
             "do not hold together.")
        .def_property_readonly(
            "address", [](const Rules& self) { return reinterpret_cast<intptr_t>(&self); },
            "Where it lies, for the library of the CUDA engine.")
        .def("follow", &follow, "A follower of its own, at the beginning of music.");

    py::class_<BoundFollower>(module, "Follower",
                              "Where one sequence stands: the grammar's registers and the side inputs. One "
                              "thread at a time may use "
                              "it; that of a lane not while its loop runs (RuntimeError).")
        .def_static(
            "at",
            [](intptr_t address, std::shared_ptr<Rules> rules, const py::object&) {
                std::shared_ptr<Follower> follower(reinterpret_cast<Follower*>(address), [](Follower*) {});
                return BoundFollower{std::move(follower), std::move(rules), idle()};
            },
            "address"_a, "rules"_a, "owner"_a, py::keep_alive<0, 3>(),
            "The follower at an address that the library of the CUDA engine gave, part of `owner`.")
        .def("mask", &mask, "Which tokens may follow, bool [V]. Raises GrammarError on wrong registers.")
        .def(
            "advance",
            [](BoundFollower& self, int64_t token) {
                held(self, [&] {
                    check_token(self, token);
                    self.follower->check();
                    self.follower->advance_grammar(token);
                });
            },
            "token"_a, "Step the grammar behind a token. Raises GrammarError outside the vocabulary.")
        .def(
            "advance_side",
            [](BoundFollower& self, int64_t token) {
                py::array_t<int32_t> row(self.rules->sides.tables.S);
                int32_t* out = row.mutable_data();
                held(self, [&] {
                    check_token(self, token);
                    self.follower->advance_sides(token, out);
                });
                return row;
            },
            "token"_a, "Step the side inputs behind a token: int32 [S]. Raises GrammarError as `advance`.")
        .def(
            "set_grammar", &set_grammar, "registers"_a, "programs"_a, "rows"_a, "ends"_a,
            "Go on from registers, int64 [21], the rows of programs, int64 [P] and [P, 128], and ends, int64 "
            "[N]. Raises GrammarError for those of another vocabulary; the state stays then.")
        .def_property(
            "side",
            [](BoundFollower& self) {
                const std::vector<int64_t> flat = held(self, [&] { return self.follower->flat_sides(); });
                return py::array_t<int64_t>(static_cast<py::ssize_t>(flat.size()), flat.data());
            },
            [](BoundFollower& self, const py::array& flat) {
                const int64_t* numbers = numbers_of<int64_t>("side", flat, {-1});
                held(self, [&] { self.follower->set_sides(numbers, flat.shape(0)); });
            },
            "The side inputs as SideInputTracker.to_array() has them, int64 [N]; a copy.")
        .def_property_readonly("registers", &registers,
                               "The grammar's registers, and behind them how many ends "
                               "there are: the memory itself, int64 [22].")
        .def_property_readonly("begun", &begun,
                               "Whether each program has played: the memory itself, int64 [P].")
        .def_property_readonly("rows", &rows,
                               "Until when each pitch sounds: the memory itself, int64 [P, 128].")
        .def_property_readonly("ends", &ends, "When notes end: the memory itself, int64 [N].");
}

void bind_loop(py::module_& module, py::class_<BoundLanes, std::shared_ptr<BoundLanes>>& lanes) {
    using namespace py::literals;
    PYBIND11_NUMPY_DTYPE(LaneFacts, standing, token, nll, entropy, made, fed);
    py::class_<BoundLoop> loop(
        module, "Loop",
        "The loop over tokens of some sessions; see melodia.engine.loop. It keeps alive "
        "what it needs. One thread at a time may use it (RuntimeError otherwise).");
    lanes.def(
        "loop", &make_loop, "rules"_a,
        "The loop over tokens of these sessions, under rules for each. Raises ConfigError where rules and "
        "network differ.");
    loop.def("follower", &follower, "lane"_a, "Grammar and side inputs of a lane.")
        .def_property_readonly(
            "facts",
            [](const py::object& self) {
                auto& bound = self.cast<BoundLoop&>();
                return view(bound.loop.facts(), {bound.loop.count()}, self);
            },
            "The memory itself, [B] records of standing, token, nll, entropy, made, fed.")
        .def(
            "logits",
            [](const py::object& self, int64_t lane) {
                auto& bound = self.cast<BoundLoop&>();
                return held(bound, [&] {
                    return view(bound.loop.logits(check_lane(bound, lane)), {bound.lanes->engine->plan.V},
                                self);
                });
            },
            "lane"_a, "The logits of a lane's next token: the memory itself, float32 [V].")
        .def("begin", &begin, "lane"_a, "sampling"_a, "window"_a, "random_seed"_a, "session"_a, "fed"_a,
             "recent"_a,
             "What a lane's choices are made with: `recent` are the last tokens, the newest last, of which "
             "`window` count. Raises GrammarError for what lies outside its limits.")
        .def("set_bias", &set_bias, "lane"_a, "rows"_a, "row_of"_a, "members"_a, "exponent"_a,
             "What is pooled with the logits of every choice, as melodia.decode.Bias: float32 [R, V], int32 "
             "[129], uint64 [W]; they are copied. Raises GrammarError for what lies outside its limits.")
        .def("set_terms", &set_terms, "lane"_a, "tokens"_a, "pause"_a, "bars_total"_a, "exclude"_a, "late"_a,
             "stop"_a, "stop_tick"_a,
             "How a lane goes on, as melodia.engine.loop.Terms; masks are uint64 [W] and copied.")
        .def("run", &run, "steps"_a, "microseconds"_a, "flag"_a,
             "Go on until a lane needs its caller; why it came back. A flag, int32 [1], ends it when it is "
             "not "
             "0. Raises GrammarError where registers that were written to are wrong.")
        .def("choose", &choose, "lane"_a, "legal"_a,
             "Draw a token of bool [V] for a lane that asks or has stopped.")
        .def(
            "take",
            [](BoundLoop& self, int64_t lane) {
                held(self, [&] { self.loop.take(check_lane(self, lane)); });
            },
            "lane"_a, "Take the token at which a lane stopped.")
        .def("drain", &drain, "lane"_a,
             "The tokens since the last time, int32 [N], and their NLL and entropy, float64 [N].")
        .def("keep", &keep, py::arg("lanes").none(false), "kept"_a,
             "Go on with the lanes `kept`, ascending, in new sessions of the network with their states.");
}

}  // namespace melodia::engine::python
