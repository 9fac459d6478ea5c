#include "cpu/kernels.h"
#include "instruction_sets.h"

namespace melodia::cpu {
namespace {

constexpr const Kernels* best_first[] = {
#if defined(__x86_64__)
    &kernels_amx,      &kernels_avx512bf16, &kernels_avx512, &kernels_avx2,
#endif
    &kernels_portable,
};

const Kernels*& chosen() {
    static const Kernels* table = choose_table(best_first, false);
    return table;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

}  // namespace melodia::cpu

// For Python (ctypes): which instruction set runs, and, for tests and comparisons, another one.
extern "C" __attribute__((visibility("default"))) const char* melodia_cpu_name() {
    return melodia::cpu::kernels().name;
}

// 0, or 1 where the name is unknown or this processor cannot run it.
extern "C" __attribute__((visibility("default"))) int melodia_cpu_set(const char* name) {
    const auto* table = melodia::find_table(melodia::cpu::best_first, name, false);
    if (table == nullptr) return 1;
    melodia::cpu::chosen() = table;
    return 0;
}
