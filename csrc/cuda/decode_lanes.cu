// The launches of sessions.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/decode_clusters.h"

namespace melodia::cuda::decode {

namespace {

// Which exchange, predicted (NOTES_decode.md, 2): a word takes a block 0.27 ns on its way in, a row next to
// nothing, but a row's counter two more ways to L2 in each stage, 0.75 us, as long as 2800 words.
// taken_in: numbers of a session that a block takes in, in all stages.
constexpr bool plain_pays(int64_t B, int64_t taken_in, int64_t stages) {
    return B * taken_in >= 2800 * stages;
}
static_assert(plain_pays(8, 3072, 3) && !plain_pays(1, 3072, 3), "LSTM 1024 beside GRU 1024");
static_assert(plain_pays(64, 1024, 3) && !plain_pays(8, 1024, 3), "LSTM 512, GRU 512");

// Whether compute blocks are to sample, predicted in half microseconds: of a session 1 us comes before the
// next step, 2.5 us behind its command. A block that samples only does these while others compute. room:
// processors without compute blocks.
constexpr bool joint_pays(int64_t B, int64_t room, int64_t blocks) {
    return room < 1 || 2 * parts(B, room) > 7 * parts(B, blocks);
}
static_assert(joint_pays(64, 4, 128) && !joint_pays(8, 4, 128) && !joint_pays(64, 68, 64), "as predicted");

// Clocks of a step that depend on how many sessions pass a stage together, predicted: each pass reads
// weights, 64 bytes a clock from L2, 128 from shared memory, and a group costs 2600 clocks, 1.5 us, in a
// stage that it comes into, for barriers and ways to L2; 1800 if there are others, whose counters are looked
// at ahead; 1200 where rows are asked for ahead.
int64_t clocks_of(const Decoder& decoder, int64_t B, const Way& way) {
    std::vector<Stage> stages = decoder.stages;
    std::vector<ReaderLevel> readers = decoder.readers;
    Own own{};
    try {
        (void)decoder.layout_of(B, way, stages, readers, own);
    } catch (const std::invalid_argument&) {
        return INT64_MAX;
    }
    int64_t reading = 0;
    const auto read = [&](const Matrix& m) {
        reading += int64_t{m.tiles} * m.chunks * kChunkBytes / (m.resident < 0 ? 64 : 128);
    };
    for (const Stage& s : stages) {
        read(s.product);
        for (const CellPart& cell : s.cell) read(cell.input), read(cell.recurrent);
    }
    const int64_t groups = parts(B, way.group), into = decoder.net.stages - decoder.net.folded;
    const bool once = decoder.plan.weights == engine::Weights::bf16;  // else for eight vectors each (Tile)
    const int64_t each = way.ahead ? 1200 : groups > 1 ? 1800 : 2600;
    return (once ? groups : parts(B, kLeastGroup)) * reading + groups * into * each;
}

Way way_of(const Decoder& decoder, int64_t B) {
    const Network& net = decoder.net;
    const Options& o = decoder.options;
    const int64_t taken_in = net.words - 1 - net.S - net.V;  // logits go to those who sample, each to one
    const int64_t room = decoder.device.processors - net.blocks;
    Way way;
    way.plain = o.counted != 0 ? o.counted > 0 : plain_pays(B, taken_in, net.stages);
    way.joint = o.samplers != 0 ? o.samplers < 0 : joint_pays(B, room, net.blocks);
    const int64_t most = way.joint ? net.blocks : std::max<int64_t>(1, room);
    way.samplers = std::min({B, most, o.samplers > 0 ? o.samplers : most});
    Way best = way;
    int64_t least = INT64_MAX;
    for (int64_t group = kLeastGroup; group <= kMostGroup && group < 2 * B; group *= 2) {
        if (o.group > 0 && group > o.group) break;
        for (const bool ahead : {false, true}) {
            if (ahead && (!way.plain || group >= B || o.ahead < 0)) continue;
            way.group = group;
            way.ahead = ahead;
            const int64_t clocks = clocks_of(decoder, B, way);
            if (clocks < least) best = way, least = clocks;
        }
    }
    return best;
}

}  // namespace

Lanes::Lanes(Decoder& decoder, int64_t count)
    : decoder_(decoder), B_(count), stages_(decoder.stages), readers_(decoder.readers) {
    if (count < 1 || count > 4096)
        throw std::invalid_argument("sessions must be 1 to 4096 (received " + std::to_string(count) + ")");
    const Network& net = decoder.net;
    if (decoder.options.threads > 0) threads_ = static_cast<int>(decoder.options.threads);
    const Way way = way_of(decoder, B_);
    args_.plain = way.plain;
    args_.ahead = way.ahead;
    args_.joint = way.joint;
    args_.samplers = static_cast<int32_t>(way.samplers);
    args_.layout = decoder.layout_of(B_, way, stages_, readers_, args_.own_layout);
    shared_bytes_ = std::max(args_.layout.compute_bytes, args_.layout.sampler_bytes);
    args_.net = net;
    args_.net.stage = device_stages_.upload(stages_.data(), static_cast<int64_t>(stages_.size()));
    args_.B = static_cast<int32_t>(B_);
    const int64_t groups = parts(B_, way.group);
    args_.group = static_cast<int32_t>(way.group);
    args_.groups = static_cast<int32_t>(groups);
    const Reader& reader = net.reader;
    // A wait is for a token, which takes microseconds; but other work may have the processors for a while,
    // and one thread may walk through thousands of byte pairs. Readings of all groups may come in front: 10
    // us for each step.
    const int64_t limit = 1000000 + 10 * groups * reader.levels * reader.block_max;
    args_.limit_ns =
        1000 * static_cast<uint64_t>(decoder.options.limit_us > 0 ? decoder.options.limit_us : limit);
    args_.edges = decoder.edges;
    counters_.of<uint32_t>(net.stages * groups + 1);
    words_.of<uint64_t>(2 * B_ * net.words);
    if (args_.plain) args_.rows = rows_.of<unsigned char>(B_ * net.row_bytes);
    if (reader.levels > 0) {
        args_.net.reader.level =
            device_readers_.upload(readers_.data(), static_cast<int64_t>(readers_.size()));
        const int64_t each = 1 + net.S, wide = 2 * reader.E;
        args_.reader_words = reader_words_.of<uint64_t>(B_ * reader.levels * reader.block_max * wide);
        args_.waiting = waiting_.of<uint32_t>(net.blocks * B_ * reader.block_max * each);
        args_.summaries = summaries_.of<float>(B_ * wide);
        args_.lengths = lengths_.of<int32_t>(B_);
    }
    if (decoder.options.cluster > 0) clusters_ = std::make_unique<Clusters>(decoder, B_, threads_);
    state_.assign(static_cast<size_t>(B_ * net.state_size), 0.0f);
    logits_.assign(static_cast<size_t>(B_ * net.V), 0.0f);
}

Lanes::~Lanes() = default;

void Lanes::read(int64_t lane, float* state) const {
    const int64_t size = decoder_.net.state_size;
    std::copy_n(state_.data() + lane * size, size, state);
}

void Lanes::write(int64_t lane, const float* state) {
    const int64_t size = decoder_.net.state_size;
    decoder_.plan.check_state(state);
    std::copy_n(state, size, state_.data() + lane * size);
}

void Lanes::advance(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all) {
    const engine::Plan& plan = decoder_.plan;
    const auto S = static_cast<int64_t>(plan.side_sizes.size());
    if (T < 1) throw std::invalid_argument("at least one step is needed");
    plan.check_steps(T * B_, tokens, sides);
    const int64_t eights = parts(B_, kLeastGroup);  // a launch is to take milliseconds
    const int64_t most = decoder_.options.launch_steps > 0 ? decoder_.options.launch_steps
                                                           : std::max<int64_t>(1, 1024 / eights);
    for (int64_t t = 0, n; t < T; t += n) {
        n = std::min(most, T - t);
        Job job;
        job.steps = n;
        job.given = tokens + t * B_;
        job.given_sides = sides + t * B_ * S;
        job.all_logits = all && logits != nullptr ? logits + t * B_ * plan.V : nullptr;
        run(job);
    }
    if (logits != nullptr && !all) std::copy(logits_.begin(), logits_.end(), logits);
}

void Lanes::run(const Job& job) {
    const Network& net = args_.net;
    const int64_t V = net.V, figures = B_ * job.steps;
    Args a = args_;
    a.steps = static_cast<int32_t>(job.steps);
    a.step_end = a.steps + 1;  // in one launch; `apart` says it for each of its own
    a.phase_end = net.stages + 1;
    a.first = a.last = 1;
    a.words = words_.of<uint64_t>(2 * B_ * net.words);
    a.gave_up = counters_.of<uint32_t>(1);
    a.counters = a.gave_up + 1;
    a.state_out = state_out_.of<float>(static_cast<int64_t>(state_.size()));
    a.kept = kept_.of<float>(int64_t{net.blocks} * a.own_layout.size);
    bool residual = false;
    for (const Stage& s : stages_) residual = residual || s.keeps;
    if (residual) a.below = below_.of<float>(int64_t{net.blocks} * net.levels * B_ * net.H);
    if (job.records == nullptr) {
        a.given = given_.upload(job.given, figures);
        a.given_sides =
            net.S > 0 ? given_sides_.upload(job.given_sides, figures * net.S) : given_sides_.of<int32_t>(1);
        if (job.all_logits != nullptr) a.all_logits = all_logits_.of<float>(figures * V);
    } else {
        a.record = *job.record;
        a.rules = job.rules;
        a.records = job.device_records;
        a.scratch = scratch_.of<unsigned char>(B_ * job.record->scratch_size);
        a.tokens = tokens_.of<int32_t>(figures);
        a.nll = nll_.of<double>(figures);
        a.entropy = entropy_.of<double>(figures);
    }
    // Everything that a launch which went wrong may have changed.
    const auto begin = [&] {
        a.logits = device_logits_.upload(logits_.data(), B_ * V);
        a.state_in = state_in_.upload(state_.data(), static_cast<int64_t>(state_.size()));
        if (job.records != nullptr) Memory::write(a.records, job.records, B_ * job.record->size);
        if (epoch_ > 0xF0000000u) {  // once in 4e9 steps
            for (Memory* words : {&words_, &reader_words_})
                if (words->size() > 0)
                    require(clear(words->of<uint64_t>(1), static_cast<size_t>(words->size()), nullptr));
            epoch_ = 1;
        }
        a.epoch = epoch_;
        epoch_ += static_cast<uint32_t>(job.steps) + 2;
        require(clear(counters_.of<uint32_t>(1), static_cast<size_t>(counters_.size()), nullptr));
    };
    bool done = false;
    if (clusters_ != nullptr && job.records != nullptr) {
        begin();
        done = in_clusters(a);
    }
    if (!done && decoder_.options.apart == 0) {
        begin();
        done = together(a);
    }
    if (!done) {
        begin();
        apart(a);
    }
    Memory::read(state_.data(), a.state_out, static_cast<int64_t>(sizeof(float) * state_.size()));
    if (job.records == nullptr) {
        if (job.all_logits != nullptr) {
            Memory::read(job.all_logits, a.all_logits, static_cast<int64_t>(sizeof(float)) * figures * V);
            std::copy_n(job.all_logits + (figures - B_) * V, B_ * V, logits_.data());
            return;
        }
    } else {
        Memory::read(job.records, a.records, B_ * job.record->size);
        Memory::read(job.tokens, a.tokens, 4 * figures);
        Memory::read(job.nll, a.nll, 8 * figures);
        Memory::read(job.entropy, a.entropy, 8 * figures);
    }
    Memory::read(logits_.data(), a.logits, static_cast<int64_t>(sizeof(float)) * B_ * V);
}

bool Lanes::failed(const std::string& why) {
    decoder_.fallbacks += 1;
    decoder_.fallback = why;
    return false;
}

bool Lanes::in_clusters(const Args& a) {
    if (!clusters_->obstacle.empty()) return failed(clusters_->obstacle);
    const char* failure = clusters_->run(a, static_cast<int>(decoder_.plan.weights));
    uint32_t gave_up = 0;
    Memory::read(&gave_up, a.gave_up, 4);  // waits for the clusters that did begin
    if (failure != nullptr) return failed(failure);
    return gave_up == 0 || failed("a block gave up waiting for its cluster");
}

bool Lanes::together(const Args& a) {
    const auto weights = static_cast<int>(decoder_.plan.weights);
    if (at_once_ < 0) {  // once, since nothing that it depends on changes
        int64_t blocks = 0;
        if (const char* failure = blocks_at_once(weights, threads_, shared_bytes_, &blocks))
            return failed(failure);
        at_once_ = blocks;
    }
    if (at_once_ < blocks_of(a))
        return failed("the device holds " + std::to_string(at_once_) + " blocks at once of " +
                      std::to_string(blocks_of(a)));
    if (const char* failure = start(weights, a, threads_, shared_bytes_, Together::grid, nullptr))
        return failed(failure);
    uint32_t gave_up = 0;
    Memory::read(&gave_up, a.gave_up, 4);
    return gave_up == 0 || failed("a block gave up waiting for the others");
}

void Lanes::apart(Args a) {
    const auto weights = static_cast<int>(decoder_.plan.weights);
    // Those of the decoder: weights are read where they are used, once.
    Memory stages, readers;
    a.net.stage = stages.upload(decoder_.stages.data(), static_cast<int64_t>(decoder_.stages.size()));
    a.net.reader.level =
        readers.upload(decoder_.readers.data(), static_cast<int64_t>(decoder_.readers.size()));
    const int64_t shared = std::max(a.layout.weights, a.layout.sampler_bytes);
    for (int32_t step = 0; step <= a.steps; ++step) {
        a.step_begin = step;
        a.step_end = step + 1;
        for (int32_t phase = 0; phase <= a.net.stages; ++phase) {
            a.phase_begin = phase;
            a.phase_end = phase + 1;
            a.first = step == 0 && phase == 0;
            a.last = step == a.steps && phase == a.net.stages;
            a.part = kWhole;
            if (phase == 1 && a.net.reader.levels > 0) {
                read_apart(a, shared);
                a.part = kRest;
            }
            require(start(weights, a, threads_, shared, Together::no, nullptr));
        }
    }
    uint32_t gave_up = 0;
    Memory::read(&gave_up, a.gave_up, 4);
    if (gave_up != 0) throw std::runtime_error("the device did not finish a stage in time");
}

void Lanes::read_apart(Args a, int64_t shared_bytes) {
    const auto weights = static_cast<int>(decoder_.plan.weights);
    std::vector<int32_t> lengths(static_cast<size_t>(B_));
    a.part = kCommands;
    Memory::write(a.lengths, lengths.data(), 4 * B_);
    require(start(weights, a, threads_, shared_bytes, Together::no, nullptr));
    Memory::read(lengths.data(), a.lengths, 4 * B_);
    const int32_t most = *std::max_element(lengths.begin(), lengths.end());
    a.part = kReading;
    for (a.reader_level = 0; most > 0 && a.reader_level < a.net.reader.levels; ++a.reader_level)
        for (a.reader_step = 0; a.reader_step <= most; ++a.reader_step)
            require(start(weights, a, threads_, shared_bytes, Together::no, nullptr));
}

}  // namespace melodia::cuda::decode
