// Weights in the form of the decode kernel, each block's share side by side (decode_product.h).
#pragma once

#include <cstring>
#include <vector>

#include "cuda/decode_device.h"

namespace melodia::cuda::decode {

using engine::Panels;

inline int64_t columns_of(engine::Weights w) {
    return w == engine::Weights::fp32 ? 8 : w == engine::Weights::bf16 ? 16 : 32;
}

// A number of packed weights (engine/plan.h), as its bits.
inline uint32_t bits_at(const Panels& p, int64_t panel, int64_t n, int64_t k) {
    const char* data = p.data + panel * p.stride;
    const int64_t rows = p.rows();
    uint32_t bits = 0;
    if (p.weights == engine::Weights::fp32) {
        std::memcpy(&bits, data + 4 * (k * rows + n), 4);
    } else if (p.weights == engine::Weights::bf16) {
        std::memcpy(&bits, data + 2 * ((k / 2 * rows + n) * 2 + k % 2), 2);
    } else {
        std::memcpy(&bits, data + (k / 4 * rows + n) * 4 + k % 4, 1);
    }
    return bits;
}

// Where a number of a chunk stands (decode_product.h).
inline int64_t place_of(engine::Weights w, int64_t row, int64_t k) {
    if (w == engine::Weights::fp32) return (k / 4 * 16 + row) * 16 + k % 4 * 4;
    if (w == engine::Weights::bf16)
        return (row % 8 * 4 + k % 8 / 2) * 16 + (row / 8 + 2 * (k / 8)) * 4 + k % 2 * 2;
    return (k / 16 * 16 + row) * 16 + k % 16;
}

// Everything that a network has in device memory, first on the host; pointers are offsets until it is there.
class Blob {
  public:
    template <class T>
    T* take(int64_t count) {  // an offset
        const int64_t at = up(static_cast<int64_t>(bytes_.size()), 256);
        bytes_.resize(static_cast<size_t>(at + count * static_cast<int64_t>(sizeof(T))), 0);
        return reinterpret_cast<T*>(at);
    }
    template <class T>
    T* host(T* offset) {
        return reinterpret_cast<T*>(bytes_.data() + reinterpret_cast<intptr_t>(offset));
    }
    template <class T>
    const T* copy(const T* from, int64_t count) {
        T* to = take<T>(count);
        std::copy_n(from, count, host(to));
        return to;
    }
    const std::vector<unsigned char>& bytes() const { return bytes_; }

  private:
    std::vector<unsigned char> bytes_ = std::vector<unsigned char>(256, 0);  // no offset is null
};

struct Source {
    int64_t panel, n;  // panel -1: a row of zeros
};

// row(block, local row) and column(k) say where a number comes from; a column of -1 is zeros.
template <class Row, class Column>
Matrix pack(Blob& blob, const Panels& from, int64_t blocks, int64_t rows, int64_t K, Row row, Column column) {
    Matrix m{};
    const int64_t width = columns_of(from.weights), size = 32 / width;
    m.tiles = static_cast<int32_t>(parts(rows, 16));
    m.chunks = static_cast<int32_t>(parts(K, width));
    m.resident = -1;
    auto* data = blob.take<unsigned char>(blocks * m.tiles * m.chunks * kChunkBytes);
    const bool whole = from.weights == engine::Weights::int8;
    float* scale = whole ? blob.take<float>(blocks * m.tiles * 16) : nullptr;
    for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t r = 0; r < rows; ++r) {
            const Source at = row(b, r);
            if (at.panel < 0) continue;
            if (whole) blob.host(scale)[b * m.tiles * 16 + r] = from.scale[at.panel * from.rows() + at.n];
            for (int64_t k = 0; k < K; ++k) {
                const int64_t source = column(k);
                if (source < 0) continue;
                const uint32_t bits = bits_at(from, at.panel, at.n, source);
                const int64_t chunk = (b * m.tiles + r / 16) * m.chunks + k / width;
                std::memcpy(blob.host(data) + chunk * kChunkBytes + place_of(from.weights, r % 16, k % width),
                            &bits, static_cast<size_t>(size));
            }
        }
    }
    m.data = data;
    m.scale = scale;
    return m;
}

// [rows][Hp / 16][G][16] -> [rows][H][4]
inline const float* unit_rows(Blob& blob, const engine::Cell& cell, const float* from, int64_t rows) {
    if (from == nullptr) return nullptr;
    float* to = blob.take<float>(rows * cell.H * 4);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < cell.H; ++j)
            for (int64_t g = 0; g < cell.gates; ++g)
                blob.host(to)[(r * cell.H + j) * 4 + g] =
                    from[r * cell.gates * cell.Hp + (j / 16 * cell.gates + g) * 16 + j % 16];
    return to;
}

template <class T>
inline void rebase(T*& pointer, const unsigned char* base) {
    if (pointer != nullptr)
        pointer =
            reinterpret_cast<T*>(const_cast<unsigned char*>(base + reinterpret_cast<intptr_t>(pointer)));
}
inline void rebase(Matrix& m, const unsigned char* base) {
    rebase(m.data, base);
    rebase(m.scale, base);
}
inline void rebase(CellPart& cell, const unsigned char* base) {
    rebase(cell.input, base);
    rebase(cell.recurrent, base);
    rebase(cell.context, base);
    rebase(cell.bias, base);
    rebase(cell.bias_n, base);
    for (const float*& table : cell.tables) rebase(table, base);
}

}  // namespace melodia::cuda::decode
