// Chooses the instruction set, once, by what the processor can run; MELODIA_CPU overrides downwards.
#include <cstdlib>
#include <cstring>

#include "engine/kernels.h"

namespace melodia::engine {
namespace {

bool can_run(const Kernels& table) {
#if defined(__x86_64__)
    if (&table == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (&table == &kernels_avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
    }
#endif
    return &table == &kernels_portable;
}

constexpr const Kernels* best_first[] = {
#if defined(__x86_64__)
    &kernels_avx512,
    &kernels_avx2,
#endif
    &kernels_portable,
};

const Kernels* choose() {
    const char* name = std::getenv("MELODIA_CPU");
    if (name != nullptr) {
        if (const Kernels* table = find_kernels(name)) return table;
    }
    for (const Kernels* table : best_first) {
        if (can_run(*table)) return table;
    }
    return &kernels_portable;
}

}  // namespace

const Kernels* find_kernels(const char* name) {
    for (const Kernels* table : best_first) {
        if (std::strcmp(table->name, name) == 0) return can_run(*table) ? table : nullptr;
    }
    return nullptr;
}

const Kernels& kernels() {
    static const Kernels* table = choose();
    return *table;
}

}  // namespace melodia::engine
