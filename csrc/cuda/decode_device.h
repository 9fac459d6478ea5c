// A network in device memory, cut into blocks, and sessions on it: the host's side of the decode kernel.
//
// Nothing that a launch makes counts before the launch is known to have gone well: states and records are
// read from one place and written to another. Where blocks cannot all be there at once, or one of them gave
// up waiting, the same stages run as launches of their own.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cuda/decode_kernel.h"
#include "engine/plan.h"

namespace melodia::cuda::decode {

constexpr int64_t parts(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
constexpr int64_t up(int64_t n, int64_t unit) { return parts(n, unit) * unit; }

// What a test or a measurement may choose; zeros: as the device wants it.
struct Options {
    int64_t threads = 0;       // of a block
    int64_t least_units = 0;   // of a block
    int64_t blocks = 0;        // compute blocks at most
    int64_t samplers = 0;      // sampler blocks at most; -1: none, compute blocks sample
    int64_t counted = 0;       // 1: exchange in rows, by counters; -1: in words
    int64_t apart = 0;         // 1: every stage is a launch of its own
    int64_t launch_steps = 0;  // tokens of a launch at most
    int64_t limit_us = 0;      // how long a block waits for another
    int64_t streamed = 0;      // 1: no weights in shared memory
    int64_t cluster = 0;       // blocks of a cluster, one of them to choose; 0: no clusters
    int64_t group = 0;         // sessions that pass a stage together at most: 8, 16 or 32
    int64_t ahead = 0;         // -1: no rows are asked for ahead
};

// Throws std::runtime_error with the sentence that comes from the device.
void require(const char* failure);

// Memory of the device: cudaMalloc, or the host's where the emulator runs.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }

    // At least so many bytes; what was there is gone if it has to grow. New memory is zero.
    unsigned char* reserve(int64_t bytes);
    template <class T>
    T* of(int64_t count) {
        return reinterpret_cast<T*>(reserve(count * static_cast<int64_t>(sizeof(T))));
    }
    template <class T>
    T* upload(const T* from, int64_t count) {
        T* to = of<T>(count);
        write(to, from, count * static_cast<int64_t>(sizeof(T)));
        return to;
    }
    static void write(void* device, const void* host, int64_t bytes);
    static void read(void* host, const void* device, int64_t bytes);  // waits for all launches
    int64_t size() const { return size_; }

  private:
    void release();
    unsigned char* data_ = nullptr;
    int64_t size_ = 0;
};

// How the blocks of a launch work together.
struct Way {
    bool cluster = false;         // words stand in shared memory
    bool plain = false;           // numbers travel in rows
    bool joint = false;           // compute blocks sample
    int64_t samplers = 1;         // blocks that sample
    int64_t group = kLeastGroup;  // sessions that pass a stage together
    bool ahead = false;           // rows of the next group are asked for while the present one is worked on
};

class Decoder {
  public:
    Decoder(const int64_t* ints, int64_t int_count, const float* floats, int64_t float_count,
            const Options& options);

    const engine::Plan plan;
    Options options;
    Device device{};
    Network net{};  // but for stages and the encoder's levels, which depend on how many sessions there are
    std::vector<Stage> stages;         // resident: -1
    std::vector<ReaderLevel> readers;  // likewise
    const float* edges = nullptr;
    Memory memory;
    int64_t fallbacks = 0;  // launches that were run again stage by stage
    std::string fallback;   // why the last was

    // For B sessions: where things stand, which matrices stay in shared memory; stages and readers are
    // changed.
    Layout layout_of(int64_t B, const Way& way, std::vector<Stage>& stages, std::vector<ReaderLevel>& readers,
                     Own& own) const;
};

// What `Lanes::run` is to do: choose (records) or take what is given.
struct Job {
    int64_t steps = 0;
    const int32_t *given = nullptr, *given_sides = nullptr;  // host, [steps][B], [steps][B][S]
    float* all_logits = nullptr;                             // host, [steps][B][V], or null
    const DeviceRules* rules = nullptr;                      // device
    const RecordLayout* record = nullptr;
    unsigned char* records = nullptr;  // host [B][record.size], pointers of the device; null: given
    unsigned char* device_records = nullptr;
    int32_t* tokens = nullptr;  // host [B][steps], and their figures
    double *nll = nullptr, *entropy = nullptr;
};

class Clusters;

// B sessions that advance together; see engine::Lanes, whose interface this is.
class Lanes {
  public:
    Lanes(Decoder& decoder, int64_t count);
    ~Lanes();
    int64_t count() const { return B_; }
    void advance(int64_t T, const int32_t* tokens, const int32_t* sides, float* logits, bool all);
    void read(int64_t lane, float* state) const;
    void write(int64_t lane, const float* state);

    // The states move on if it goes well; else they, the records and the rest stay as they were, and an
    // exception says why.
    void run(const Job& job);
    // [B][V] behind the last step.
    const float* logits() const { return logits_.data(); }
    void set_logits(const float* from) { std::copy_n(from, logits_.size(), logits_.begin()); }

  private:
    // false: it did not go well, and nothing changed.
    bool in_clusters(const Args& args);
    bool failed(const std::string& why);
    bool together(const Args& args);
    void apart(Args args);
    void read_apart(Args args, int64_t shared_bytes);  // a step's first stage where there is an encoder

    Decoder& decoder_;
    const int64_t B_;
    std::vector<Stage> stages_;
    std::vector<ReaderLevel> readers_;
    Args args_{};
    int64_t shared_bytes_ = 0;
    int64_t at_once_ = -1;  // blocks that the device holds; -1: not asked yet
    int threads_ = kThreads;
    std::unique_ptr<Clusters> clusters_;  // null: none are wanted
    uint32_t epoch_ = 1;
    std::vector<float> state_, logits_;
    Memory device_stages_, words_, rows_, counters_, state_in_, state_out_, kept_, below_, scratch_,
        device_logits_, all_logits_, given_, given_sides_, tokens_, nll_, entropy_;
    Memory device_readers_, reader_words_, waiting_, summaries_, lengths_;
};

}  // namespace melodia::cuda::decode
