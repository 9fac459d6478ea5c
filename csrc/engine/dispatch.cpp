#include "engine/kernels.h"
#include "instruction_sets.h"

namespace melodia::engine {
namespace {

constexpr const Kernels* best_first[] = {
#if defined(__x86_64__)
    &kernels_avx512bf16,
    &kernels_avx512,
    &kernels_avx2,
#elif defined(__aarch64__)
    &kernels_neondot,
    &kernels_neon,
#endif
    &kernels_portable,
};

}  // namespace

const Kernels* find_kernels(const char* name) { return find_table(best_first, name, true); }

const Kernels& kernels() {
    static const Kernels* table = choose_table(best_first, true);
    return *table;
}

}  // namespace melodia::engine
