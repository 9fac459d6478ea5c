// The host's part of the scans: which path, which tiling, which launches. No kernel stands here.
#include "cuda/plan.h"
#include "cuda/scan_kernels.h"

namespace melodia::cuda {
namespace {

constexpr int64_t kFlagBytes = 256, kCounterBytes = kCounterStride * 4;

template <class Cell>
int64_t gates_of(const Cell& cell) {
    return cell.lstm ? 4 : 3;
}

// What differs between the passes.
template <class S>
struct Forward {
    using Cell = ScanCell;
    static constexpr const char *name = "scan_forward", *rows_name = "scan_forward_rows";
    static auto kernel() { return Kernels<S>::forward(); }
    static auto rows() { return Kernels<S>::forward_rows(); }
    static Product product(const Cell& cell) { return {cell.H, gates_of(cell), cell.H}; }
    static int64_t first(int64_t) { return 0; }
    static int64_t last(int64_t T) { return T; }
    static int64_t launches(int64_t T) { return T > 0 ? T : 1; }
    static void step(int64_t k, int64_t T, int64_t* from, int64_t* to) { *from = k, *to = T > 0 ? k + 1 : 0; }
};

template <class S>
struct Backward {
    using Cell = ScanCellBackward;
    static constexpr const char *name = "scan_backward", *rows_name = "scan_backward_rows";
    static auto kernel() { return Kernels<S>::backward(); }
    static auto rows() { return Kernels<S>::backward_rows(); }
    static Product product(const Cell& cell) { return {cell.H, 1, gates_of(cell) * cell.H}; }
    static int64_t first(int64_t T) { return T - 1; }
    static int64_t last(int64_t) { return -1; }
    static int64_t launches(int64_t T) { return T + 1; }
    static void step(int64_t k, int64_t T, int64_t* from, int64_t* to) { *from = *to = T - 1 - k; }
};

template <class Pass>
struct Run {
    using Cell = typename Pass::Cell;
    ScanLaunch<Cell> a{};
    int element_bytes;
    unsigned char* workspace;
    Stream stream;
    Device device{};

    // Everything in one launch whose blocks wait for each other; then the rescue, which mostly does nothing.
    // `fits` is false where this path cannot be taken.
    const char* resident(const ScanOptions& options, bool* fits) {
        *fits = false;
        Product products[kMaxCells] = {};
        for (int k = 0; k < a.count; ++k) products[k] = Pass::product(a.parts[k].cell);
        Tiling tilings[kMaxCells];
        int64_t round = 0;
        if (plan_resident(products, a.count, a.B, element_bytes, device.processors, device.shared_bytes,
                          tilings, &round) < 0.0)
            return nullptr;
        int64_t shared = 0, blocks = 0;
        for (int k = 0; k < a.count; ++k) {
            shared = tilings[k].shared_bytes > shared ? tilings[k].shared_bytes : shared;
            blocks += tilings[k].blocks();
        }
        int64_t most = 0;
        if (resident_blocks(Pass::kernel(), kThreads, static_cast<size_t>(shared), &most) != nullptr ||
            most < blocks || rows_bytes() > device.shared_bytes)
            return nullptr;
        *fits = true;
        for (int64_t begin = 0; begin < a.B; begin += round) {
            a.batch_begin = begin;
            a.batch_end = begin + round < a.B ? begin + round : a.B;
            a.limit_ns = options.spin_limit_ns;
            int total = 0;
            const int64_t used = place_round(options.exchange, products, tilings, &total);
            if (const char* error = clear(workspace, static_cast<size_t>(used), stream)) return error;
            const Shape shape{static_cast<unsigned>(total), kThreads, static_cast<size_t>(shared),
                              Together::grid};
            if (const char* error = launch(Pass::name, Pass::kernel(), shape, stream, a)) {
                // Refused: another process holds processors that the query counted. Steps ask for nothing.
                if (begin > 0 || options.path == Path::resident) return error;
                *fits = false;
                return nullptr;
            }
            if (const char* error = rows()) return error;
        }
        return nullptr;
    }

    // Sets up the parts for the round [batch_begin, batch_end): flag, counters and words stand in the
    // workspace one behind the other. Returns the bytes that they take; total: the blocks of all parts.
    int64_t place_round(Exchange exchange, const Product* products, const Tiling* tilings, int* total) {
        const int64_t batch = a.batch_end - a.batch_begin;
        a.gave_up = reinterpret_cast<uint32_t*>(workspace);
        int64_t used = kFlagBytes;
        for (int k = 0; k < a.count; ++k) {
            auto& part = a.parts[k];
            part.tiling = tilings[k];
            part.from = Pass::first(part.cell.T);
            part.to = Pass::last(part.cell.T);
            part.tiling.batch_blocks = static_cast<int>(ceil_div(batch, part.tiling.batch));
            part.blocks = part.tiling.blocks();
            *total += part.blocks;
            part.counters = reinterpret_cast<uint32_t*>(workspace + used);
            used += part.tiling.batch_blocks * kCounterBytes;
        }
        for (int k = 0; k < a.count; ++k) {
            auto& part = a.parts[k];
            // By prediction: words cost four times the bytes or more and save a round trip, where a thread
            // asks for all of its own in two.
            const int64_t rows = batch < part.tiling.batch ? batch : part.tiling.batch;
            const bool few = rows * products[k].depth <= 2 * kAhead * kThreads;
            const bool in_band = exchange == Exchange::in_band || (exchange == Exchange::automatic && few);
            part.words = in_band ? reinterpret_cast<uint64_t*>(workspace + used) : nullptr;
            if (in_band) used += 2 * part.tiling.batch_blocks * part.tiling.batch * products[k].depth * 8;
        }
        return used;
    }

    // What a block of `rows` has in shared memory.
    int64_t rows_bytes() const {
        int64_t most = 0;
        for (int k = 0; k < a.count; ++k) {
            const int64_t bytes = (gates_of(a.parts[k].cell) + 1) * a.parts[k].cell.H * 4;
            most = bytes > most ? bytes : most;
        }
        return most;
    }

    const char* rows() {
        const auto blocks = static_cast<unsigned>(a.count * (a.batch_end - a.batch_begin));
        const Shape shape{blocks, kThreads, static_cast<size_t>(rows_bytes()), Together::no};
        return launch(Pass::rows_name, Pass::rows(), shape, stream, a);
    }

    // All rows, whose blocks wait for nobody.
    void whole_batch() {
        a.batch_begin = 0;
        a.batch_end = a.B;
        a.gave_up = nullptr;
    }

    const char* alone() {
        whole_batch();
        return rows();
    }

    // A launch per step; blocks exchange nothing within one.
    const char* steps() {
        int64_t shared = 0, launches = 0;
        for (int k = 0; k < a.count; ++k) {
            auto& part = a.parts[k];
            if (!plan_step(Pass::product(part.cell), a.B, element_bytes, device.shared_bytes, &part.tiling))
                return "the device has too little shared memory";
            part.words = nullptr;
            part.counters = nullptr;
            launches = Pass::launches(part.cell.T) > launches ? Pass::launches(part.cell.T) : launches;
            shared = part.tiling.shared_bytes > shared ? part.tiling.shared_bytes : shared;
        }
        whole_batch();
        for (int64_t step = 0; step < launches; ++step) {
            int total = 0;
            for (int k = 0; k < a.count; ++k) {
                auto& part = a.parts[k];
                part.blocks = step < Pass::launches(part.cell.T) ? part.tiling.blocks() : 0;
                total += part.blocks;
                Pass::step(step, part.cell.T, &part.from, &part.to);
            }
            const Shape shape{static_cast<unsigned>(total), kThreads, static_cast<size_t>(shared),
                              Together::no};
            if (const char* error = launch(Pass::name, Pass::kernel(), shape, stream, a)) return error;
        }
        return nullptr;
    }
};

// Whether several scans cost more side by side, by prediction, than one after the other.
template <class Pass>
bool better_alone(const Device& device, int element_bytes, int64_t B, const typename Pass::Cell* cells,
                  int count) {
    Product products[kMaxCells] = {};
    Tiling tilings[kMaxCells];
    int64_t round = 0, longest = 0;
    double alone = 0.0;
    for (int k = 0; k < count; ++k) {
        products[k] = Pass::product(cells[k]);
        longest = cells[k].T > longest ? cells[k].T : longest;
        const double cost = plan_resident(&products[k], 1, B, element_bytes, device.processors,
                                          device.shared_bytes, tilings, &round);
        if (cost < 0.0) return true;  // that one goes step by step, and need not hold up the others
        alone += cost * static_cast<double>(cells[k].T);
    }
    const double together = plan_resident(products, count, B, element_bytes, device.processors,
                                          device.shared_bytes, tilings, &round);
    return together < 0.0 || together * static_cast<double>(longest) > alone;
}

template <class Pass>
const char* run(int element_bytes, int64_t B, const typename Pass::Cell* cells, int count,
                const ScanOptions& options, void* workspace, void* stream, Path* chosen) {
    Run<Pass> r{};
    r.a.count = count;
    r.element_bytes = element_bytes;
    r.workspace = static_cast<unsigned char*>(workspace);
    r.stream = static_cast<Stream>(stream);
    r.a.B = B;
    int64_t T = 0;
    for (int k = 0; k < count; ++k) {
        r.a.parts[k].cell = cells[k];
        T = cells[k].T > T ? cells[k].T : T;
    }
    if (const char* error = device_of(&r.device)) return error;
    // One step has nothing to exchange.
    const bool stays = options.path == Path::resident || (options.path == Path::automatic && T > 1);
    if (stays && count > 1 && better_alone<Pass>(r.device, element_bytes, B, cells, count)) {
        for (int k = 0; k < count; ++k)
            if (const char* error =
                    run<Pass>(element_bytes, B, &cells[k], 1, options, workspace, stream, chosen))
                return error;
        return nullptr;
    }
    if (stays) {
        bool fits = false;
        const char* error = r.resident(options, &fits);
        *chosen = Path::resident;
        if (error != nullptr || fits) return error;
        if (options.path == Path::resident) return "the weights do not fit on the chip; choose another path";
    }
    *chosen = options.path == Path::rows ? Path::rows : Path::steps;
    return options.path == Path::rows ? r.alone() : r.steps();
}

template <template <class> class Pass, class Cell>
const char* run_type(Type type, int64_t B, const Cell* cells, int count, const ScanOptions& options,
                     void* workspace, void* stream, Path* chosen) {
    switch (type) {
        case Type::float32:
            return options.tf32 ? run<Pass<Tf32>>(4, B, cells, count, options, workspace, stream, chosen)
                                : run<Pass<float>>(4, B, cells, count, options, workspace, stream, chosen);
        case Type::bfloat16:
            return run<Pass<Bf16>>(2, B, cells, count, options, workspace, stream, chosen);
        default:
            return run<Pass<Half>>(2, B, cells, count, options, workspace, stream, chosen);
    }
}

}  // namespace

const char* device_problem() { return obstacle_of_device(); }

int64_t scan_workspace(int64_t B, const int64_t* numbers, int count) {
    int64_t bytes = kFlagBytes;
    for (int k = 0; k < count; ++k)
        bytes += ceil_div(B, 8) * kCounterBytes + 2 * (ceil_div(B, 8) * 8 + 64) * numbers[k] * 8;
    return bytes;
}

const char* scan_forward(Type type, int64_t B, const ScanCell* cells, int count, const ScanOptions& options,
                         void* workspace, void* stream, Path* chosen) {
    return run_type<Forward>(type, B, cells, count, options, workspace, stream, chosen);
}

const char* scan_backward(Type type, int64_t B, const ScanCellBackward* cells, int count,
                          const ScanOptions& options, void* workspace, void* stream, Path* chosen) {
    return run_type<Backward>(type, B, cells, count, options, workspace, stream, chosen);
}

}  // namespace melodia::cuda
