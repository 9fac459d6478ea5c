// Arguments of the operators, on the CPU and on CUDA: types, and sizes in words.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "check.h"

namespace melodia {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// What a scan keeps for its backward pass: nothing, else an LSTM's cells, and with kGates the gates, too.
constexpr int64_t kNothing = 0, kGates = 2;

struct Extent {
    int64_t T, B, H;
};

inline std::string text(const Sizes& sizes) {
    std::string out = "[";
    for (size_t k = 0; k < sizes.size(); ++k) out += (k ? ", " : "") + std::to_string(sizes[k]);
    return out + "]";
}

inline const char* text(ScalarType type) {
    return type == ScalarType::Float      ? "float32"
           : type == ScalarType::BFloat16 ? "bfloat16"
           : type == ScalarType::Half     ? "float16"
                                          : "int64";
}

inline Sizes sizes_of(const Tensor& x) {
    Sizes sizes(static_cast<size_t>(x.dim()));
    for (size_t k = 0; k < sizes.size(); ++k) sizes[k] = x.size(static_cast<int64_t>(k));
    return sizes;
}

inline Tensor converted(const Tensor& x, ScalarType type) {
    return x.scalar_type() == type ? x : torch::stable::to(x, type);
}

}  // namespace melodia
