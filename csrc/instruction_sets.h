// Which of the compiled instruction sets runs: the best one this processor can run; MELODIA_CPU overrides
// downwards. Shared by the operators and the engine, whose tables of kernels carry these names.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace melodia {

#if defined(__x86_64__)
// Whether the processor has a matrix unit for bf16 and the system lets this process use it, which must be
// asked for.
inline bool may_use_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile) &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

// vnni: whether "avx512" and what builds on it was compiled with the products of bytes.
inline bool can_run(const char* name, [[maybe_unused]] bool vnni) {
#if defined(__x86_64__)
    if (std::strcmp(name, "avx2") == 0)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("fma") && (!vnni || __builtin_cpu_supports("avx512vnni"));
    if (std::strcmp(name, "avx512") == 0) return avx512;
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (std::strcmp(name, "avx512bf16") == 0) return bf16;
    if (std::strcmp(name, "amx") == 0) return bf16 && may_use_amx();
#elif defined(__aarch64__)
    if (std::strcmp(name, "neon") == 0) return true;  // every 64-bit ARM has it
#if defined(__APPLE__)
    if (std::strcmp(name, "neondot") == 0) return true;
#elif defined(__linux__)
    if (std::strcmp(name, "neondot") == 0) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
#endif
    return std::strcmp(name, "portable") == 0;
}

// The table of that name, or null where it is unknown or this processor cannot run it.
template <class Kernels, size_t N>
const Kernels* find_table(const Kernels* const (&best_first)[N], const char* name, bool vnni) {
    for (const Kernels* table : best_first) {
        if (std::strcmp(table->name, name) == 0) return can_run(name, vnni) ? table : nullptr;
    }
    return nullptr;
}

// The table that MELODIA_CPU names, or the best that this processor can run. "portable" always can.
template <class Kernels, size_t N>
const Kernels* choose_table(const Kernels* const (&best_first)[N], bool vnni) {
    if (const char* name = std::getenv("MELODIA_CPU")) {
        if (const Kernels* table = find_table(best_first, name, vnni)) return table;
    }
    for (const Kernels* table : best_first) {
        if (can_run(table->name, vnni)) return table;
    }
    return nullptr;
}

}  // namespace melodia
