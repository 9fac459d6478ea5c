// melodia.engine._engine: the engine for Python. Its networks and sessions, and the choice by itself; the
// loop stands in module_loop.cpp.
#include "engine/module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "sampling.h"

namespace melodia::engine::python {

void raise(const char* type, const std::string& message) {
    const py::object error = py::module_::import("melodia.errors").attr(type);
    py::set_error(error, message.c_str());
    throw py::error_already_set();
}

void refuse(const char* name, char kind, size_t itemsize, std::initializer_list<int64_t> shape,
            const py::array& array) {
    const auto list = [](auto first, auto end) {
        std::string text;
        for (; first != end; ++first)
            text += (text.empty() ? "" : ", ") + (*first < 0 ? std::string("N") : std::to_string(*first));
        return " [" + text + "]";
    };
    const std::string type = kind == 'b' ? "bool"
                                         : (kind == 'f'   ? "float"
                                            : kind == 'u' ? "uint"
                                                          : "int") +
                                               std::to_string(8 * itemsize);
    const std::string received = py::str(array.dtype());
    const char* const fault = (array.flags() & py::array::c_style) == 0  ? ", not contiguous"
                              : (array.flags() & kReadable) != kReadable ? ", at an odd address"
                                                                         : "";
    throw std::invalid_argument(std::string(name) + " must be " + type + list(shape.begin(), shape.end()) +
                                " and contiguous (received " + received +
                                list(array.shape(), array.shape() + array.ndim()) + fault + ")");
}

void pack_bits(const bool* mask, int64_t V, std::vector<uint64_t>& bits) {
    bits.assign(static_cast<size_t>(V + 63) / 64, 0);
    for (int64_t v = 0; v < V; ++v) bits[v / 64] |= uint64_t{mask[v]} << (v % 64);
}

namespace {

Sampling sampling_of(double temperature, int64_t top_k, double top_p, double min_p, double penalty,
                     bool greedy) {
    Sampling sampling;
    sampling.temperature = static_cast<float>(temperature);
    sampling.top_k = static_cast<int32_t>(std::min<int64_t>(top_k, 1 << 30));
    sampling.top_p = top_p;
    sampling.min_p = min_p;
    sampling.repetition_penalty = static_cast<float>(penalty);
    sampling.greedy = greedy;
    return sampling;
}

py::tuple choose(const py::array& logits, const std::optional<py::array>& legal, std::vector<int32_t> recent,
                 const Sampling& sampling, uint64_t random_seed, uint32_t session, uint64_t position,
                 const std::optional<std::tuple<py::array, py::array, double>>& opinion) {
    const float* numbers = numbers_of<float>("logits", logits, {-1});
    const int64_t V = logits.shape(0);
    if (V < 1 || V > (1 << 20)) throw std::invalid_argument("logits must be 1 to 1048576");
    const bool* allowed = legal ? numbers_of<bool>("legal", *legal, {V}) : nullptr;
    Opinion other;
    const bool* members = nullptr;
    if (opinion) {
        other.row = numbers_of<float>("the row of an opinion", std::get<0>(*opinion), {V});
        members = numbers_of<bool>("the members of an opinion", std::get<1>(*opinion), {V});
        other.exponent = std::get<2>(*opinion);
    }
    const Choice choice = computed(nullptr, "", [&] {
        thread_local Chooser chooser(0);
        thread_local std::vector<uint64_t> bits, about;
        if (allowed != nullptr) pack_bits(allowed, V, bits);
        if (members != nullptr) pack_bits(members, V, about);
        other.members = about.data();
        std::sort(recent.begin(), recent.end());
        recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
        if (!recent.empty() && (recent.front() < 0 || recent.back() >= V))
            throw std::invalid_argument("a recent token is not in the vocabulary of " + std::to_string(V));
        return chooser.choose(numbers, static_cast<int32_t>(V), allowed == nullptr ? nullptr : bits.data(),
                              recent.data(), static_cast<int32_t>(recent.size()), sampling, random_seed,
                              session, position, true, other);
    });
    return py::make_tuple(choice.token, choice.nll, choice.entropy);
}

py::dict facts_of(const Engine& engine) {
    const Plan& plan = engine.plan;
    py::dict facts;
    facts["V"] = plan.V;
    facts["S"] = plan.side_sizes.size();
    facts["context"] = plan.context;
    facts["state_size"] = plan.state_size;
    facts["step_bytes"] = plan.step_bytes;
    facts["memory"] = plan.arena.size();
    facts["threads"] = engine.team.threads();
    facts["stalls"] = engine.team.stalls();
    return facts;
}

constexpr char kLanes[] = "these sessions are";

const int32_t* sides_of(const BoundLanes& self, const std::optional<py::array>& sides,
                        std::initializer_list<int64_t> shape) {
    const bool wanted = !self.engine->plan.side_sizes.empty();
    if (sides && wanted) return numbers_of<int32_t>("side inputs", *sides, shape);
    if (sides) throw std::invalid_argument("side inputs must be left out: this network has none");
    if (wanted)
        throw std::invalid_argument("side inputs must be given: this network has " +
                                    std::to_string(self.engine->plan.side_sizes.size()) + " at every token");
    return nullptr;
}

py::array step(BoundLanes& self, const py::array& tokens, const std::optional<py::array>& sides) {
    const int64_t B = self.lanes.count(), S = static_cast<int64_t>(self.engine->plan.side_sizes.size());
    const int32_t* ids = numbers_of<int32_t>("tokens", tokens, {B});
    const int32_t* beside = sides_of(self, sides, {B, S});
    py::array_t<float> logits({B, self.engine->plan.V});
    float* out = logits.mutable_data();
    const Use use(self.busy, kLanes);
    computed(nullptr, "", [&] { self.lanes.advance(1, ids, beside, out, false); });
    return logits;
}

py::array advance(BoundLanes& self, const py::array& tokens, const std::optional<py::array>& sides,
                  bool every) {
    const int64_t B = self.lanes.count(), S = static_cast<int64_t>(self.engine->plan.side_sizes.size());
    const int64_t V = self.engine->plan.V;
    const int32_t* ids = numbers_of<int32_t>("tokens", tokens, {-1, B});
    const int64_t T = tokens.shape(0);
    const int32_t* beside = sides_of(self, sides, {T, B, S});
    auto logits = every ? py::array_t<float>({T, B, V}) : py::array_t<float>({B, V});
    float* out = logits.mutable_data();
    const Use use(self.busy, kLanes);
    computed(nullptr, "", [&] { self.lanes.advance(T, ids, beside, out, every); });
    return logits;
}

void check_lane(const BoundLanes& self, int64_t lane) {
    if (lane < 0 || lane >= self.lanes.count())
        throw std::invalid_argument("there is no such session: it must lie from 0 to " +
                                    std::to_string(self.lanes.count() - 1) + " (received " +
                                    std::to_string(lane) + ")");
}

py::array read(BoundLanes& self, int64_t lane) {
    check_lane(self, lane);
    py::array_t<float> state(self.engine->plan.state_size);
    float* out = state.mutable_data();
    const Use use(self.busy, kLanes);
    computed(nullptr, "", [&] { self.lanes.read(lane, out); });
    return state;
}

void write(BoundLanes& self, int64_t lane, const py::array& state) {
    check_lane(self, lane);
    const float* numbers = numbers_of<float>("a state", state, {self.engine->plan.state_size});
    const Use use(self.busy, kLanes);
    computed(nullptr, "", [&] { self.lanes.write(lane, numbers); });
}

std::shared_ptr<Engine> make_engine(const py::array& ints, const py::array& floats, int threads) {
    const int64_t* whole = numbers_of<int64_t>("ints", ints, {-1});
    const float* numbers = numbers_of<float>("floats", floats, {-1});
    const int64_t whole_count = ints.shape(0), count = floats.shape(0);
    return computed("ConfigError", "the engine refuses this network: ", [&] {
        return std::make_shared<Engine>(whole, whole_count, numbers, count, threads);
    });
}

std::shared_ptr<BoundLanes> make_lanes(std::shared_ptr<Engine> engine, int64_t count) {
    const std::string before = "no room for " + std::to_string(count) + " sessions: ";
    return computed("ConfigError", before.c_str(),
                    [&] { return std::make_shared<BoundLanes>(std::move(engine), count); });
}

}  // namespace

PYBIND11_MODULE(_engine, module) {
    using namespace py::literals;
    module.doc() =
        "The engine for generating on the CPU, compiled (csrc/engine). Use melodia.engine, which says why "
        "where "
        "this is missing; arrays come in here as they are, of the right type and contiguous.\n\n"
        "Letters: B sessions, T steps, V vocabulary, S side inputs, N numbers of a state, W words of a mask.";
    module.def(
        "instruction_set", [] { return kernels().name; },
        "The instruction set that runs on this processor, or the one that MELODIA_CPU named.");
    module.def("cores", &allowed_cores, "Cores that this process may use.");

    py::class_<Sampling>(module, "Sampling", "The settings of a choice, checked by the caller.")
        .def(py::init(&sampling_of), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a,
             "greedy"_a, "top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.")
        .def_readonly("temperature", &Sampling::temperature)
        .def_readonly("top_k", &Sampling::top_k)
        .def_readonly("top_p", &Sampling::top_p)
        .def_readonly("min_p", &Sampling::min_p)
        .def_readonly("repetition_penalty", &Sampling::repetition_penalty)
        .def_readonly("greedy", &Sampling::greedy);
    module.def(
        "choose", &choose, "logits"_a, "legal"_a.none(true), "recent"_a, "sampling"_a, "random_seed"_a,
        "session"_a, "position"_a, "opinion"_a.none(true) = py::none(),
        "Filter logits, float32 [V], and draw a token of `legal`, bool [V] or None: (token, NLL, entropy). "
        "`opinion`: melodia.decode.Opinion or None; the NLL is of the logits alone. "
        "A token of -1: nothing is legal; of -2: a logit is not a number. Raises ValueError for arrays of "
        "another kind and recent tokens outside the vocabulary.");

    py::class_<Engine, std::shared_ptr<Engine>> engine(
        module, "Engine", "A network, packed and ready, with the threads that run it.");
    engine
        .def(py::init(&make_engine), "ints"_a, "floats"_a, "threads"_a,
             "Pack a description, int64 [N] and float32 [M]; neither is kept. Raises ConfigError where it is "
             "wrong.")
        .def("facts", &facts_of,
             "V, S, context, state_size (floats), step_bytes (weights read per token), memory, threads, "
             "stalls.")
        .def("lanes", &make_lanes, "count"_a,
             "Sessions that advance together, at the beginning of music. They keep the network alive. Raises "
             "ConfigError unless they are 1 to 65536.");

    py::class_<BoundLanes, std::shared_ptr<BoundLanes>> lanes(
        module, "Lanes",
        "B sessions of a network. One thread at a time may use them (RuntimeError otherwise), several may "
        "each "
        "use their own.");
    lanes
        .def("step", &step, "tokens"_a, "sides"_a = py::none(),
             "One token for each session: int32 [B], side inputs int32 [B, S] -> logits float32 [B, V]. "
             "Raises "
             "ValueError for what lies outside its limits; the states stay then.")
        .def("advance", &advance, "tokens"_a, "sides"_a = py::none(), "every"_a = true,
             "T steps: int32 [T, B], side inputs int32 [T, B, S] -> logits float32 [T, B, V], or [B, V] of "
             "the "
             "last unless `every`. Raises ValueError as `step`.")
        .def("read", &read, "lane"_a, "The state of a session, float32 [N].")
        .def("write", &write, "lane"_a, "state"_a,
             "Set the state of a session, float32 [N]. Raises ValueError for numbers that no state has.")
        .def_property_readonly("count", [](const BoundLanes& self) { return self.lanes.count(); }, "B.");
    bind_rules(module);
    bind_loop(module, lanes);
}

}  // namespace melodia::engine::python
