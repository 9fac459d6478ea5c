// What operators on lists of tensors need (wave_scan, hybrid_step), on the CPU and on CUDA.
#pragma once

#include <initializer_list>
#include <vector>

#include "arguments.h"

namespace melodia {

using Tensors = std::vector<Tensor>;

// What a level of a stack is; the names are in melodia/kernels/reference.py.
enum Level : int64_t { lstm, gru, concat, sum, gated, level_count };

inline void check_level(int64_t level) {
    MELODIA_CHECK(level >= 0 && level < level_count, "`levels` must be within 0 and ", level_count - 1,
                  " (received ", level, ")");
}

// Takes the tensors of a list one after the other.
class Taker {
  public:
    Taker(const Tensors& list, const char* name) : list_(list), name_(name) {}
    const char* name() const { return name_; }
    const Tensor& next() {
        MELODIA_CHECK(at_ < list_.size(), "`", name_, "` has ", list_.size(),
                      " tensors and needs more; melodia/kernels/reference.py says how many");
        return list_[at_++];
    }
    void finish() const {
        MELODIA_CHECK(at_ == list_.size(), "`", name_, "` must have ", at_, " tensors (received ",
                      list_.size(), ")");
    }

  private:
    const Tensors& list_;
    const char* name_;
    size_t at_ = 0;
};

inline bool is_lstm(const Tensor& weight_hh) {
    MELODIA_CHECK(
        weight_hh.dim() == 2 && weight_hh.size(1) > 0 &&
            (weight_hh.size(0) == 4 * weight_hh.size(1) || weight_hh.size(0) == 3 * weight_hh.size(1)),
        "`weight_hh` must be [4H, H] of an LSTM or [3H, H] of a GRU");
    return weight_hh.size(0) == 4 * weight_hh.size(1);
}

// How many cells there are; every list has as many, or none where it may be left out.
inline size_t count_of(const Tensors& first, std::initializer_list<const Tensors*> lists,
                       const Tensors& lengths) {
    MELODIA_CHECK(!first.empty(), "a wave has one cell at least (received none)");
    for (const Tensors* list : lists)
        MELODIA_CHECK(list->size() == first.size(), "a wave of ", first.size(),
                      " cells needs as many tensors of each kind (received ", list->size(), ")");
    MELODIA_CHECK(lengths.empty() || lengths.size() == first.size(), "`lengths` must be empty or have ",
                  first.size(), " tensors (received ", lengths.size(), ")");
    return first.size();
}

inline Maybe length_of(const Tensors& lengths, size_t k) {
    if (lengths.empty()) return std::nullopt;
    return lengths[k];
}

inline void check_type(const Tensor& x, const Tensor& first) {
    MELODIA_CHECK(x.scalar_type() == first.scalar_type(), "all cells of a wave must have the same type");
}

}  // namespace melodia
