// What a decode kernel walks: the network cut into blocks, and what a launch is given.
//
// A token passes through the stages of the network one after the other: the cells of a level, the projection
// that joins a pair, the head's projection, the head. In a stage every compute block makes the numbers of the
// rows that it owns, for all sessions, and posts them; in the next stage every block takes all of them in.
// Sampler blocks, or compute blocks beside their other work, take in the logits, choose, and post the
// commands of the next step. A compute block owns hidden units with all their gates in all levels, and an
// equal share of the rows of projections and head. Where an encoder reads finished blocks of music
// (engine/blocks.cpp), that is done before the first stage (decode_reader.h), and a block owns units of the
// encoder, too.
//
// Letters: B sessions, V vocabulary, S side inputs, D embedding, H hidden, E units of the encoder in each
// direction, U units of a block.
#pragma once

#include "cuda/device.h"
#include "grammar.h"
#include "side_inputs.h"

namespace melodia::cuda::decode {

constexpr int kLeastGroup = 8;  // sessions that pass a stage together: the width of a product on tensor cores
constexpr int kMostGroup = 32;  // a bit each
constexpr int kMaxSides = 16;
constexpr int kChunkBytes = 512;         // of weights: 16 rows, 16 bytes for each lane of a warp
constexpr int kSamplerBytes = 768;       // of shared memory: two boxes for sums over the block, and a flag
constexpr uint32_t kEnd = ~uint32_t{0};  // the command that ends a session

enum class Standing : int64_t { ready, chosen, taken, stopped, asks, nothing, nan };  // as in engine/voices.h

struct Int8 {
    int8_t value;
};

// Rows of weights, every block's share in tiles of 16 rows; chunks follow the columns (decode_product.h).
struct Matrix {
    const unsigned char* data;  // [blocks][tiles][chunks][512]
    const float* scale;         // int8: [blocks][tiles][16]
    int32_t tiles, chunks;      // of a block, of a tile
    int32_t shares, each;       // warps that share out the columns of a tile, chunks of each (share_out)
    int32_t resident;           // its offset in the block's shared memory; -1: it stays in global memory
};

struct CellPart {
    int32_t lstm, gates;
    int32_t slot;                // cells counted from the bottom
    int32_t state;               // where h [H] stands in a session's state, c [H] of an LSTM behind it
    Matrix input;                // tiles 0: tables stand in its place
    Matrix recurrent;            // rows: unit after unit, its gates side by side
    Matrix context;              // the bottom's, of an encoder's summary [2E]; tiles 0: none
    const float *bias, *bias_n;  // [H][4], as in engine/plan.h
    const float* tables[1 + kMaxSides];  // the token's, then the side inputs': [rows][H][4]
};

enum StageKind : int32_t { kCells, kProjection, kHeadProjection, kHead };

struct Stage {
    int32_t kind;
    int32_t cells;  // of a level: 1 or 2
    int32_t gated;  // a projection that is a gate between the two cells
    int32_t rows;   // numbers that it makes of a session: cells H, H, D or V
    int32_t share;  // rows of a block, but for cells
    CellPart cell[2];
    Matrix product;     // of the others
    const float* bias;  // [rows], of the others; null: none
    // What comes in: `vectors` side by side of `size` numbers each.
    int32_t vectors, size;
    int32_t adds, residual, keeps;  // their sum; with what the level below kept; kept for the level above
    const float *norm_weight, *norm_bias;
    float norm_eps;
    int32_t
        shadow;     // the stage whose cells' states come in, so that their recurrent products can be made; -1
    int32_t level;  // of what comes in
    int64_t words;  // where its numbers begin in the words of a session [rows]
    // In rows: how many bytes a session's has, where they begin (bytes of all sessions' rows before, for one
    // session), and whether its numbers are rounded to the form of the weights.
    int32_t row_bytes, rounded;
    int64_t row;

    __host__ __device__ bool mixes() const { return adds || residual || keeps || norm_weight != nullptr; }
};

// A level of the encoder, and the norm of what it makes: [2E], or null.
struct ReaderLevel {
    CellPart cell[2];  // forward, which carries on from block to block; backward
    const float *norm_weight, *norm_bias;
    float norm_eps;
};

struct Reader {
    int32_t levels;  // 0: there is no encoder
    int32_t E, units, residual;
    int32_t block_max;     // tokens at which a block of music ends
    int32_t state;         // where the summary stands in a session's state, and the rest behind it
    const uint8_t* opens;  // [V] whether a token begins a block of music
    const float* start;    // [2E] the summary before the first
    const ReaderLevel* level;
};

// Offsets in bytes of a block's shared memory. One arithmetic for host and device: filled in by the host.
struct Layout {
    int32_t words;                         // bytes of a cluster's words, which stand in front
    int32_t raw, y;                        // floats [group][raw_stride], [group][y_stride]; -1: not needed
    int32_t states, inputs;                // numbers in the form of the weights
    int32_t states_stride, inputs_stride;  // bytes of a row
    int32_t states_turn;           // how far the rows of the group behind stand from these; 0: there are none
    int32_t raw_stride, y_stride;  // floats of a row
    int32_t scales;                // [4][kMostGroup] of states and inputs, two vectors each
    int32_t sums, shadow_sums;     // [shares x rows][sums_stride], which is odd
    int32_t sums_stride;
    int32_t own;  // what a block keeps of its sessions, see Own
    int32_t flag;
    int32_t weights;             // resident matrices
    int32_t sampler;             // what a block that samples adds up with: kSamplerBytes
    int32_t choices;             // masses [V] and candidates [V] of its session; -1: in scratch memory
    int32_t compute_bytes;       // of a compute block
    int32_t sampler_bytes;       // of a block that samples only
    int32_t padded_h;            // H rounded up to 32: where the second of two vectors begins
    int32_t padded_e, padded_x;  // E, and the greater of 2E and D: likewise in the encoder
};

// Numbers of 4 bytes that a block keeps: for each cell h [B][U], c [B][U], the recurrent sums [B][U][4]; then
// the tokens of this step and of the one before [2][B], kEnd where a session has ended, and side inputs
// [B][S]. With an encoder: the same for each of its cells and its units; the summary's share of the bottom's
// gates, for each cell [B][U][4]; for each session how many tokens wait, how many blocks of music were read,
// and how long the one is that is read in this step.
struct Own {
    int32_t slot, c, sums;  // numbers of a cell; where c and the sums begin in it
    int32_t tokens, sides;
    int32_t reader, reader_slot, reader_c, reader_sums;
    int32_t share, waiting, read, length;
    int32_t size;
};

struct Network {
    int32_t V, H, D, S, stages, slots;
    int32_t blocks, units;  // compute blocks, units of a block
    int32_t folded, raw;    // raw: what comes in is needed as floats
    int32_t levels;
    const Stage* stage;
    Reader reader;
    const float* embeddings[1 + kMaxSides];  // not folded: [rows][D]
    int64_t state_size;                      // floats of a session: h, then c of an LSTM, for each cell
    int64_t words;                           // of a session, all stages and the command
    int64_t row_bytes;                       // of a session, all stages
};

// The tables of one grammar in device memory.
struct DeviceRules {
    Grammar grammar;
    SideInputs sides;
    const int64_t* moves;   // [V]
    const uint8_t* traits;  // [V] engine::Rules::Trait
};

// The masks of a session: what may not come later than a tick, for each of three rules; what may not come at
// all; what a caller must take; what an opinion is about.
enum MaskPlace : int32_t { kLateMasks, kExcludeMask = 3, kStopMask, kMembersMask, kMasks };

// A session as its sampler sees it: the fixed part of a record; arrays follow (RecordLayout).
struct Record {
    GrammarRegisters grammar;
    GrammarState state;  // of them and the record's arrays
    SideState sides;
    int64_t standing, token;  // engine::Standing
    double nll, entropy;
    int64_t made, fed;
    int64_t tokens, pause, stop_tick, ticks[3];
    int64_t late[3], exclude, stop;  // whether there are such masks
    int64_t biased;                  // whether there is a bias
    double exponent, top_p, min_p, log_min_p;
    float temperature, penalty;
    int64_t top_k, greedy;
    uint64_t random_seed;
    int64_t session;
    int64_t ring_size, ring_at;    // ring_at < ring_size: the oldest
    int64_t rules;                 // which
    int64_t waits, pauses, ended;  // its logits are under way; it ends behind them; it has ended
    int64_t prepared;              // mask and noise of the next choice are made
};

// Offsets in bytes of a record's arrays.
struct RecordLayout {
    int64_t begun, rows, ends, places, masks, ring, counts, bias, bias_row_of, size;
    int64_t ends_capacity, places_capacity;
    int64_t words;         // of a mask
    int64_t changes_each;  // of a thread
    // Of a sampler's scratch, per session.
    int64_t changes, legal, wanted, noise, candidates, masses, scratch_size;
};

// What a launch does of the first stage where there is an encoder: all of it, or, in launches of their own,
// the commands, a step of the encoder, and what is left.
enum Part : int32_t { kWhole, kCommands, kReading, kRest };

// What a launch is given. Steps count from 0 in a run of the host; step t's epoch is epoch + t.
struct Args {
    Network net;
    Layout layout;
    Own own_layout;
    RecordLayout record;
    int32_t B, group, groups;        // sessions, how many pass a stage together, and how often that makes
    int32_t samplers;                // blocks that sample: block k has sessions k, k + samplers, ...
    int32_t joint;                   // they are the first compute blocks, not blocks behind those
    int32_t steps;                   // tokens at most
    int32_t step_begin, step_end;    // of this launch; step_end may be steps + 1: the end is commanded there
    int32_t phase_begin, phase_end;  // 0: sampler; 1 + s: stage s
    int32_t part, reader_level, reader_step;  // a Part, and which step of the encoder
    int32_t first, last;                      // the state comes in, goes out; else it is kept in `kept`
    int32_t ahead;    // a group's rows are asked for while the one before is worked on
    int32_t plain;    // numbers travel in rows, by counters; commands in words
    int32_t cluster;  // the launch is one cluster, and words travel in shared memory
    uint32_t epoch;
    uint64_t limit_ns;
    uint32_t* gave_up;
    uint64_t* words;         // [2][B][net.words]
    unsigned char* rows;     // stage after stage [B][row_bytes]
    uint32_t* counters;      // [stages][groups]
    uint64_t* reader_words;  // [B][levels][block_max][2E]
    uint32_t* waiting;       // [blocks][B][block_max][1 + S]: each block's own copy of the tokens that wait
    float* summaries;        // [B][2E], of the first block
    int32_t* lengths;        // [B], for the host: how long the block of music is that is read in this step
    const float* state_in;
    float* state_out;  // [B][state_size]
    float* kept;       // [blocks][own.size]
    float* below;      // [blocks][levels][B][H]: of residual levels
    const DeviceRules* rules;
    unsigned char *records, *scratch;    // [B][...]; records null: tokens are given
    const float* edges;                  // gumbel_of at the ends of 1024 intervals
    const int32_t *given, *given_sides;  // [steps][B], [steps][B][S]
    float* logits;                       // [B][V], of the last step
    float* all_logits;                   // given tokens: [steps][B][V], or null
    int32_t* tokens;                     // [B][steps]
    double *nll, *entropy;
};

// A thread's way through `rows` rows of `width` numbers, from number `first` on, `step` numbers on each time.
// Rows are few, so they are counted off: a division by a number known only here takes longer.
class ShortWalk {
  public:
    int row = 0, k;

    MELODIA_DEVICE ShortWalk(int rows, int width)
        : ShortWalk(rows, width, static_cast<int>(thread()), static_cast<int>(threads())) {}
    MELODIA_DEVICE ShortWalk(int rows, int width, int first, int step)
        : k(first), rows_(rows), width_(width), step_(step) {
        settle();
    }
    MELODIA_DEVICE bool there() const { return row < rows_; }
    MELODIA_DEVICE void next() {
        k += step_;
        settle();
    }

  private:
    MELODIA_DEVICE void settle() {
        for (; k >= width_ && row < rows_; ++row) k -= width_;
    }
    int rows_, width_, step_;
};

}  // namespace melodia::cuda::decode
