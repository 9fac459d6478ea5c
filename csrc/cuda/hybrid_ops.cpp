// hybrid_step for CUDA tensors: from lists of tensors to the launch of hybrid.h.
#include "cuda/hybrid.h"
#include "cuda/tensors.h"
#include "lists.h"

namespace melodia::cuda {
namespace {

// Takes the tensors of a list one after the other and keeps them alive.
class Reader : public Taker {
  public:
    Reader(const Where& where, const Tensors& list, const char* name, Tensors& kept)
        : Taker(list, name), where_(where), kept_(kept) {}

    // Gates and matrices, of one type.
    const void* matrix(const Sizes& sizes, ScalarType type) { return data(keep(next(), sizes, type)); }
    // States and vectors, of any type.
    Numbers numbers(const Sizes& sizes) {
        const Tensor& x = next();
        return {data(keep(x, sizes, x.scalar_type())), type_of(x, name())};
    }

  private:
    const Tensor& keep(const Tensor& x, const Sizes& sizes, ScalarType type) {
        kept_.push_back(checked(where_, x, name(), sizes, type));
        return kept_.back();
    }

    const Where& where_;
    Tensors& kept_;
};

std::tuple<Tensor, Tensors> hybrid_step(Tensors gates_x, Tensors state, Tensors weights,
                                        std::vector<int64_t> levels, bool layer_norm, bool residual) {
    MELODIA_CHECK(!levels.empty() && !state.empty() && !gates_x.empty(),
                  "a stack has one level at least (received none)");
    MELODIA_CHECK(levels.size() <= kMaxLevels, "a stack has ", kMaxLevels,
                  " levels at most on CUDA (received ", levels.size(), "); use the reference backend");
    MELODIA_CHECK(state[0].dim() == 2, "`state` must be tensors of the shape [B, H] (received ",
                  text(sizes_of(state[0])), ")");
    const Where where(state[0]);
    const int64_t B = state[0].size(0), H = state[0].size(1);
    const ScalarType type = gates_x[0].scalar_type();
    Tensors kept, after;
    Reader of_gates(where, gates_x, "gates_x", kept), of_state(where, state, "state", kept),
        of_weights(where, weights, "weights", kept);
    const auto state_like = [&](size_t at) {
        after.push_back(made(state[0], {B, H}, state[at].scalar_type()));
        return mutable_data(after.back());
    };
    StepLevel built[kMaxLevels] = {};
    for (size_t i = 0; i < levels.size(); ++i) {
        const int64_t level = levels[i];
        check_level(level);
        StepLevel& to = built[i];
        to.join = level == Level::concat  ? Join::concat
                  : level == Level::sum   ? Join::sum
                  : level == Level::gated ? Join::gated
                                          : Join::none;
        for (int k = 0; k < (to.join == Join::none ? 1 : 2); ++k) {
            StepCell& cell = to.cell[k];
            cell.lstm = to.join == Join::none ? level == Level::lstm : k == 0;
            const int64_t G = cell.lstm ? 4 : 3;
            if (i == 0) {
                cell.gates_x = of_gates.matrix({B, G * H}, type);
            } else {
                cell.weight_ih = of_weights.matrix({G * H, H}, type);
                cell.bias_ih = of_weights.numbers({G * H});
            }
            cell.weight_hh = of_weights.matrix({G * H, H}, type);
            cell.bias_hh = of_weights.numbers({G * H});
            cell.h = of_state.numbers({B, H});
            cell.h_n = state_like(after.size());
            if (!cell.lstm) continue;
            cell.c = of_state.numbers({B, H});
            cell.c_n = state_like(after.size());
        }
        if (to.join == Join::concat || to.join == Join::gated) {
            to.mix = of_weights.matrix({H, 2 * H}, type);
            to.mix_bias = of_weights.numbers({H});
        }
        if (layer_norm) {
            to.norm_weight = of_weights.numbers({H});
            to.norm_bias = of_weights.numbers({H});
        }
    }
    of_gates.finish();
    of_state.finish();
    of_weights.finish();
    const Tensor output = made(state[0], {B, H}, state[0].scalar_type());
    const StepStack stack{B,
                          H,
                          static_cast<int32_t>(levels.size()),
                          residual,
                          built,
                          mutable_data(output),
                          type_of(output, "state")};
    if (B * H == 0) return {output, after};
    const Tensor workspace = made(output, {stack_workspace(stack)}, ScalarType::Byte);
    const char* error = stack_step(type_of(gates_x[0], "gates_x"), stack, options, mutable_data(workspace),
                                   where.stream(), &chosen);
    MELODIA_CHECK(error == nullptr, error ? error : "");
    return {output, after};
}

MELODIA_OPERATORS(m) { m.impl("hybrid_step", TORCH_BOX(&hybrid_step)); }

}  // namespace
}  // namespace melodia::cuda
