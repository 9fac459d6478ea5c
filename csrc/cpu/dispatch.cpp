// Chooses the instruction set, once, by what the processor can run; MELODIA_CPU overrides downwards.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace melodia::cpu {
namespace {

bool can_run(const Kernels& table) {
#if defined(__x86_64__)
    if (&table == &kernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("fma");
    if (&table == &kernels_avx512) return avx512;
    if (&table == &kernels_avx512bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return &table == &kernels_portable;
}

constexpr const Kernels* best_first[] = {
#if defined(__x86_64__)
    &kernels_avx512bf16,
    &kernels_avx512,
    &kernels_avx2,
#endif
    &kernels_portable,
};

// The table of that name, or null where it is unknown or this processor cannot run it.
const Kernels* find(const char* name) {
    for (const Kernels* table : best_first) {
        if (std::strcmp(table->name, name) == 0) return can_run(*table) ? table : nullptr;
    }
    return nullptr;
}

const Kernels* choose() {
    const char* name = std::getenv("MELODIA_CPU");
    if (name != nullptr) {
        if (const Kernels* table = find(name)) return table;
    }
    for (const Kernels* table : best_first) {
        if (can_run(*table)) return table;
    }
    return &kernels_portable;
}

const Kernels*& chosen() {
    static const Kernels* table = choose();
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
    const auto* table = melodia::cpu::find(name);
    if (table == nullptr) return 1;
    melodia::cpu::chosen() = table;
    return 0;
}
