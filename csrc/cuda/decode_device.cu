#include "cuda/decode_device.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/decode_packing.h"

namespace melodia::cuda::decode {

namespace {

int64_t warps_of(const Options& options) { return (options.threads > 0 ? options.threads : kThreads) / 32; }

// Warps without a tile of their own take a share of the columns.
void share_out(int64_t warps, Matrix& first, Matrix& second) {
    const int64_t tiles = first.tiles + second.tiles;
    const int64_t shares = tiles == 0 ? 1 : std::max<int64_t>(1, warps / tiles);
    for (Matrix* m : {&first, &second}) {
        m->shares = static_cast<int32_t>(shares);
        m->each = static_cast<int32_t>(parts(m->chunks, shares));
    }
}
void share_out(int64_t warps, CellPart (&cells)[2]) {
    share_out(warps, cells[0].input, cells[1].input);
    share_out(warps, cells[0].recurrent, cells[1].recurrent);
    share_out(warps, cells[0].context, cells[1].context);
}

}  // namespace

void require(const char* failure) {
    if (failure != nullptr) throw std::runtime_error(failure);
}

#if defined(MELODIA_EMULATOR)
namespace {
void copy(void* to, const void* from, const void* device, int64_t bytes) {
    if (bytes <= 0) return;
    if (!emulator::machine.memory.holds(device, static_cast<size_t>(bytes)))
        throw std::runtime_error("the device: a copy beside its memory");
    std::memcpy(to, from, static_cast<size_t>(bytes));
}
}  // namespace
void Memory::release() { emulator::machine.memory.give_back(data_); }
unsigned char* Memory::reserve(int64_t bytes) {  // not rounded up, so that what lies beside it is found
    if (bytes <= size_ && data_ != nullptr) return data_;
    release();
    size_ = std::max<int64_t>(bytes, 16);
    data_ = emulator::machine.memory.take(static_cast<size_t>(size_));
    return data_;
}
void Memory::write(void* device, const void* host, int64_t bytes) { copy(device, host, device, bytes); }
void Memory::read(void* host, const void* device, int64_t bytes) { copy(host, device, device, bytes); }
#else
namespace {
void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();
    throw std::runtime_error(std::string("the device: ") + cudaGetErrorString(error));
}
}  // namespace
void Memory::release() {
    if (data_ != nullptr) (void)cudaFree(data_);
    data_ = nullptr;
}
unsigned char* Memory::reserve(int64_t bytes) {
    if (bytes <= size_ && data_ != nullptr) return data_;
    release();
    size_ = up(std::max<int64_t>(bytes, 16), 256);
    check(cudaMalloc(&data_, static_cast<size_t>(size_)));
    check(cudaMemset(data_, 0, static_cast<size_t>(size_)));
    return data_;
}
void Memory::write(void* device, const void* host, int64_t bytes) {
    if (bytes > 0) check(cudaMemcpy(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice));
}
void Memory::read(void* host, const void* device, int64_t bytes) {
    if (bytes > 0) check(cudaMemcpy(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost));
}
#endif

namespace {

constexpr auto same(int64_t width) {
    return [=](int64_t k) { return k < width ? k : -1; };
}

// Rows of a product cut into shares, one for each block.
auto shared_rows(const Panels& p, int64_t share, int64_t total) {
    const int64_t rows = p.rows();
    return [=](int64_t b, int64_t r) {
        const int64_t j = b * share + r;
        return j < total ? Source{j / rows, j % rows} : Source{-1, 0};
    };
}

// Cuts a decoder's plan into stages: levels(), head(), rows(), encoder(), tables(), one after the other.
// Pointers are offsets in the blob.
struct Cutter {
    Decoder& decoder;
    const engine::Plan& plan = decoder.plan;
    Network& net = decoder.net;
    const int64_t V = plan.V, H = plan.H, D = plan.D, padded = up(H, 32), blocks = net.blocks;
    Blob blob{};
    Stage incoming{};   // what the next stage takes in
    int32_t state = 0;  // numbers of a session's state so far

    // A cell, `each` units in a block; width: of its input where no tables stand for it.
    CellPart cell_part(const engine::Cell& cell, int64_t each, int64_t width) {
        const int64_t G = cell.gates, size = cell.H;
        const auto gates = [=](int64_t b, int64_t r) {
            const int64_t j = b * each + r / G;
            return j < size ? Source{j / 16, r % G * 16 + j % 16} : Source{-1, 0};
        };
        const auto matrix = [&](const Panels& from, int64_t columns) {
            if (from.count == 0) return Matrix{};
            return pack(blob, from, blocks, each * G, up(columns, 32), gates, same(columns));
        };
        CellPart part{};
        part.lstm = cell.lstm;
        part.gates = static_cast<int32_t>(G);
        part.input = matrix(cell.input, width);
        part.recurrent = matrix(cell.recurrent, size);
        part.context = matrix(cell.context, plan.context);
        part.bias = unit_rows(blob, cell, cell.bias, 1);
        part.bias_n = unit_rows(blob, cell, cell.bias_n, 1);
        for (size_t t = 0; t < cell.tables.size(); ++t)
            part.tables[t] = unit_rows(blob, cell, cell.tables[t], t == 0 ? V : plan.side_sizes[t - 1]);
        return part;
    }

    template <class To>  // a Stage or a ReaderLevel
    void copy_norm(const engine::Norm& norm, int64_t size, To& to) {
        if (norm.weight == nullptr) return;
        to.norm_weight = blob.copy(norm.weight, size);
        to.norm_bias = blob.copy(norm.bias, size);
        to.norm_eps = norm.eps;
    }

    // The next stage takes in so many numbers of each of so many vectors.
    void take_in(int32_t vectors, int64_t size, int32_t shadow = -1) {
        incoming = Stage{};
        incoming.shadow = shadow;
        incoming.vectors = vectors;
        incoming.size = static_cast<int32_t>(size);
    }

    int32_t add(Stage stage) {
        stage.words = net.words;
        net.words += stage.rows;
        decoder.stages.push_back(stage);
        return static_cast<int32_t>(decoder.stages.size()) - 1;
    }

    void levels() {
        take_in(1, plan.folded ? 0 : D);
        for (size_t i = 0; i < plan.levels.size(); ++i) {
            const engine::Level& level = plan.levels[i];
            cells(level, i == 0 ? D : H);
            if (level.projection.count > 0) projection(level);
            incoming.level = static_cast<int32_t>(i);
            incoming.adds = level.combine == engine::Combine::sum;
            incoming.residual = level.residual;
            incoming.keeps = i + 1 < plan.levels.size() && plan.levels[i + 1].residual;
            copy_norm(level.norm, H, incoming);
            net.raw = net.raw || incoming.mixes();
        }
    }

    void cells(const engine::Level& level, int64_t width) {
        Stage stage = incoming;
        stage.kind = kCells;
        stage.cells = static_cast<int32_t>(level.cells.size());
        stage.rows = stage.cells * net.H;
        for (int32_t k = 0; k < stage.cells; ++k) {
            const engine::Cell& cell = level.cells[k];
            CellPart& part = stage.cell[k];
            part = cell_part(cell, net.units, width);
            part.slot = net.slots++;
            part.state = state;
            state += cell.lstm ? 2 * net.H : net.H;
        }
        take_in(stage.cells, H, add(stage));
    }

    void projection(const engine::Level& level) {
        Stage stage = incoming;
        stage.kind = kProjection;
        stage.gated = level.combine == engine::Combine::gated;
        stage.rows = net.H;
        stage.share = net.units;
        const auto column = [this](int64_t k) {
            const int64_t j = k % padded;
            return j < H ? k / padded * plan.Hp + j : -1;
        };
        stage.product = pack(blob, level.projection, blocks, net.units, 2 * padded,
                             shared_rows(level.projection, net.units, H), column);
        stage.bias = blob.copy(level.projection_bias, H);
        add(stage);
        take_in(1, H);
    }

    void head() {
        int64_t width = H;
        if (plan.head_projection.count > 0) {
            Stage stage = incoming;
            stage.kind = kHeadProjection;
            stage.rows = net.D;
            stage.share = static_cast<int32_t>(parts(D, blocks));
            stage.product = pack(blob, plan.head_projection, blocks, stage.share, padded,
                                 shared_rows(plan.head_projection, stage.share, D), same(H));
            add(stage);
            take_in(1, D);
            width = D;
        }
        Stage stage = incoming;
        stage.kind = kHead;
        stage.rows = net.V;
        stage.share = static_cast<int32_t>(parts(V, blocks));
        stage.product = pack(blob, plan.head, blocks, stage.share, up(width, 32),
                             shared_rows(plan.head, stage.share, V), same(width));
        stage.bias = blob.copy(plan.head_bias, V);
        add(stage);
        net.stages = static_cast<int32_t>(decoder.stages.size());
    }

    // Where the stages' numbers stand in rows.
    void rows() {
        std::vector<Stage>& stages = decoder.stages;
        for (size_t s = 0; s < stages.size(); ++s) {
            const Stage* next = s + 1 < stages.size() ? &stages[s + 1] : nullptr;
            const int64_t numbers = next == nullptr ? V : (next->vectors - 1) * padded + up(next->size, 32);
            stages[s].rounded = plan.weights == engine::Weights::bf16 && next != nullptr && !next->mixes();
            stages[s].row_bytes = static_cast<int32_t>(up(numbers * (stages[s].rounded ? 2 : 4), 16));
            stages[s].row = net.row_bytes;
            net.row_bytes += stages[s].row_bytes;
        }
    }

    void encoder() {
        const engine::Encoder& encoder = plan.encoder;
        if (!encoder.reads()) return;
        Reader& reader = net.reader;
        reader.levels = static_cast<int32_t>(encoder.levels.size());
        reader.E = static_cast<int32_t>(encoder.E);
        reader.units = static_cast<int32_t>(parts(encoder.E, blocks));
        reader.residual = encoder.residual;
        reader.block_max = static_cast<int32_t>(encoder.block_max);
        reader.start = blob.copy(encoder.start, plan.context);
        if (!encoder.opens.empty()) reader.opens = blob.copy(encoder.opens.data(), V);
        for (const engine::Encoder::Level& from : encoder.levels) {
            ReaderLevel level{};
            for (int k = 0; k < 2; ++k)
                level.cell[k] =
                    cell_part(from.cells[k], reader.units, decoder.readers.empty() ? D : 2 * encoder.E);
            level.cell[0].state = state;
            state += from.cells[0].lstm ? 2 * reader.E : reader.E;
            copy_norm(from.norm, plan.context, level);
            decoder.readers.push_back(level);
        }
        reader.state = state;
    }

    void tables() {
        for (size_t e = 0; e < plan.embeddings.size(); ++e) {
            const int64_t rows = e == 0 ? V : plan.side_sizes[e - 1];
            float* to = blob.take<float>(rows * D);
            for (int64_t r = 0; r < rows; ++r)
                std::copy_n(plan.embeddings[e] + r * plan.Dp, D, blob.host(to) + r * D);
            net.embeddings[e] = to;
        }
        float* ends = blob.take<float>(1025);  // as GumbelBounds has them
        for (uint32_t i = 0; i < 1024; ++i) blob.host(ends)[i] = static_cast<float>(gumbel_of(i << 22));
        blob.host(ends)[1024] = static_cast<float>(gumbel_of(~uint32_t{0}));
        decoder.edges = ends;
    }
};

}  // namespace

Decoder::Decoder(const int64_t* ints, int64_t int_count, const float* floats, int64_t float_count,
                 const Options& wanted)
    : plan(ints, int_count, floats, float_count), options(wanted) {
    require(device_of(&device));
    const int64_t H = plan.H;
    if (plan.side_sizes.size() > kMaxSides) throw engine::PlanError("there are too many side inputs");
    // A block for each processor, one of them to choose; never so many that a block has few units, because
    // tiles have 16 rows.
    int64_t most = std::max<int64_t>(1, options.blocks > 0 ? options.blocks : device.processors - 1);
    if (options.cluster > 0) most = std::min(most, std::max<int64_t>(1, options.cluster - 1));
    const int64_t units = std::max(options.least_units > 0 ? options.least_units : 4, parts(H, most));
    const int64_t blocks = parts(H, units);
    net.V = static_cast<int32_t>(plan.V);
    net.H = static_cast<int32_t>(H);
    net.D = static_cast<int32_t>(plan.D);
    net.S = static_cast<int32_t>(plan.side_sizes.size());
    net.blocks = static_cast<int32_t>(blocks);
    net.units = static_cast<int32_t>(units);
    net.folded = plan.folded;
    net.levels = static_cast<int32_t>(plan.levels.size());
    net.state_size = plan.state_size;
    net.words = 1 + net.S;
    net.raw = plan.weights == engine::Weights::int8 || plan.encoder.reads();

    Cutter cutter{*this};
    cutter.levels();
    cutter.head();
    cutter.rows();
    cutter.encoder();
    cutter.tables();
    const int64_t warps = warps_of(options);
    for (Stage& s : stages) {
        Matrix none{};
        share_out(warps, s.cell);
        share_out(warps, s.product, none);
    }
    for (ReaderLevel& level : readers) share_out(warps, level.cell);

    const std::vector<unsigned char>& bytes = cutter.blob.bytes();
    const unsigned char* base = memory.upload(bytes.data(), static_cast<int64_t>(bytes.size()));
    for (Stage& s : stages) {
        for (CellPart& cell : s.cell) rebase(cell, base);
        rebase(s.product, base);
        rebase(s.bias, base);
        rebase(s.norm_weight, base);
        rebase(s.norm_bias, base);
    }
    for (ReaderLevel& level : readers) {
        for (CellPart& cell : level.cell) rebase(cell, base);
        rebase(level.norm_weight, base);
        rebase(level.norm_bias, base);
    }
    rebase(net.reader.start, base);
    rebase(net.reader.opens, base);
    for (const float*& embedding : net.embeddings) rebase(embedding, base);
    rebase(edges, base);
}

namespace {

// The widest of what stages and the encoder's levels ask for.
struct Widest {
    int64_t in;     // numbers that come in
    int64_t tiles;  // of matrices that are multiplied together
};

Widest widest_of(const Network& net, const std::vector<Stage>& stages,
                 const std::vector<ReaderLevel>& readers, int64_t padded_x) {
    const int64_t padded = up(net.H, 32);
    Widest most{std::max(padded, 2 * padded_x), 1};
    const auto widen = [&](int64_t tiles, const CellPart(&cells)[2]) {
        const CellPart &x = cells[0], &y = cells[1];
        most.tiles = std::max({most.tiles, tiles + x.input.tiles + y.input.tiles,
                               int64_t{x.context.tiles} + y.context.tiles,
                               int64_t{x.recurrent.tiles} + y.recurrent.tiles});
    };
    for (const Stage& s : stages) {
        most.in = std::max(most.in, (s.vectors - 1) * padded + up(s.size, 32));
        widen(s.product.tiles, s.cell);
    }
    for (const ReaderLevel& level : readers) widen(0, level.cell);
    return most;
}

// Where stands what a block keeps of B sessions, and how many numbers that is. Places are cut to 32 bits,
// which is all of them where they fit; whoever calls asks that, of the number's 64.
int64_t own_of(const Network& net, int64_t B, int64_t cells, Own& own) {
    const Reader& reader = net.reader;
    const int64_t each = B * net.units, reader_each = B * reader.units;
    int64_t numbers = 0;
    const auto count = [&](int64_t some) {
        const int64_t from = numbers;
        numbers += some;
        return static_cast<int32_t>(from);
    };
    own = {};
    own.c = static_cast<int32_t>(each);
    own.sums = static_cast<int32_t>(2 * each);
    own.slot = static_cast<int32_t>(6 * each);
    (void)count(net.slots * 6 * each);
    own.tokens = count(2 * B);
    own.sides = count(B * net.S);
    if (reader.levels > 0) {
        own.reader = count(2 * reader.levels * 6 * reader_each);
        own.reader_c = static_cast<int32_t>(reader_each);
        own.reader_sums = static_cast<int32_t>(2 * reader_each);
        own.reader_slot = static_cast<int32_t>(6 * reader_each);
        numbers = up(numbers, 4);  // read 16 bytes at once
        own.share = count(cells * 4 * each);
        own.waiting = count(B);
        own.read = count(B);
        own.length = count(B);
    }
    own.size = static_cast<int32_t>(numbers);
    return numbers;
}

}  // namespace

Layout Decoder::layout_of(int64_t B, const Way& way, std::vector<Stage>& of,
                          std::vector<ReaderLevel>& readers_of, Own& own) const {
    const int64_t H = net.H, padded = up(H, 32), group = std::min(B, way.group);
    const int64_t warps = warps_of(options);
    const int64_t bytes = plan.weights == engine::Weights::fp32   ? 4
                          : plan.weights == engine::Weights::bf16 ? 2
                                                                  : 1;
    const Reader& reader = net.reader;
    const int64_t padded_e = up(reader.E, 32);
    const int64_t padded_x = reader.levels > 0 ? up(std::max(2 * reader.E, net.D), 32) : 0;
    const auto [in, tiles] = widest_of(net, of, readers_of, padded_x);
    const int64_t numbers = own_of(net, B, of[0].cells, own);

    Layout l{};
    int64_t at = 0;
    const auto take = [&](int64_t size) {
        const int64_t from = at;
        at = up(at + size, 128);
        return static_cast<int32_t>(from);
    };
    if (way.cluster) {
        (void)take(2 * B * net.words * static_cast<int64_t>(sizeof(uint64_t)));
        l.words = static_cast<int32_t>(at);
    }
    l.padded_h = static_cast<int32_t>(padded);
    l.padded_e = static_cast<int32_t>(padded_e);
    l.padded_x = static_cast<int32_t>(padded_x);
    l.states_stride = static_cast<int32_t>(in * bytes + 16);  // rows begin in different banks
    l.inputs_stride = l.states_stride;
    // A whole number's rows come in as floats, which are free sooner.
    if (way.ahead && bytes > 1) l.states_turn = static_cast<int32_t>(up(group * l.states_stride, 128));
    l.states = take(l.states_turn + group * l.states_stride);
    if (net.raw) l.inputs = take(group * l.inputs_stride);
    l.raw = l.states;
    l.raw_stride = l.states_stride;
    l.y = -1;
    if (net.raw && bytes < 4) {
        l.raw_stride = static_cast<int32_t>(in * 4 + 16);
        l.raw = take(group * l.raw_stride);
    }
    if (net.raw) {
        l.y_stride = static_cast<int32_t>(up(std::max<int64_t>(H, net.D), 32) * 4 + 16);
        l.y = take(group * l.y_stride);
    }
    l.raw_stride /= 4;  // floats
    l.y_stride /= 4;
    l.scales = take(4 * kMostGroup * 4);
    l.sums_stride = static_cast<int32_t>((group <= 8 ? 8 : group <= 16 ? 16 : 32) + 1);  // Tile<Bf16>
    const int64_t sums = std::max(tiles, warps) * 16 * l.sums_stride * 4;
    l.sums = take(sums);
    // One place for both where a barrier comes between them: behind what is posted in rows.
    l.shadow_sums = way.plain && reader.levels == 0 ? l.sums : take(sums);
    l.own = take(numbers * 4);
    l.flag = take(16);
    l.sampler = way.joint ? take(kSamplerBytes) : l.words;
    if (at > device.shared_bytes)
        throw std::invalid_argument("so many sessions do not fit into the shared memory of this device (" +
                                    std::to_string(device.shared_bytes) + " bytes); take fewer at once");
    l.weights = static_cast<int32_t>(at);
    // What a token waits for first, then what is made in the shadow.
    const int64_t space = options.streamed ? 0 : device.shared_bytes;
    const auto keep = [&](Matrix& m) {
        const int64_t size = int64_t{m.tiles} * m.chunks * kChunkBytes;
        m.resident = -1;
        if (m.tiles > 0 && at + size <= space) m.resident = take(size);
    };
    for (auto s = of.rbegin(); s != of.rend(); ++s) {
        keep(s->product);
        for (CellPart& cell : s->cell) keep(cell.input);
    }
    for (Stage& s : of)
        for (CellPart& cell : s.cell) keep(cell.recurrent);
    for (ReaderLevel& level : readers_of)
        for (CellPart& cell : level.cell) keep(cell.recurrent), keep(cell.input);
    for (CellPart& cell : of[0].cell) keep(cell.context);
    l.compute_bytes = static_cast<int32_t>(at);
    l.sampler_bytes = l.sampler + kSamplerBytes;
    l.choices = way.joint ? l.compute_bytes : l.sampler_bytes;
    if (B <= way.samplers && l.choices + 12 * int64_t{net.V} <= device.shared_bytes)
        l.sampler_bytes = l.choices + 12 * net.V;
    else
        l.choices = -1;
    return l;
}

}  // namespace melodia::cuda::decode
