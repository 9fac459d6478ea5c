// Prints the host's tilings, for tests/test_cuda_tilings.py. Each line of the input asks for one: units gates
// depth batch element_bytes blocks shared_bytes; its answer: units unit_tiles batch run shares unit_blocks
// batch_blocks chunk depth shared_bytes rows_of_a_round, or "none".
#include <cstdio>

#include "cuda/plan.h"

using namespace melodia::cuda;

int main() {
    long long asked[7];
    while (std::scanf("%lld %lld %lld %lld %lld %lld %lld", asked, asked + 1, asked + 2, asked + 3, asked + 4,
                      asked + 5, asked + 6) == 7) {
        const Product product{asked[0], asked[1], asked[2]};
        Tiling t{};
        int64_t rows = 0;
        if (plan_resident(&product, 1, asked[3], static_cast<int>(asked[4]), asked[5], asked[6], &t, &rows) <
            0.0) {
            std::puts("none");
            continue;
        }
        std::printf("%d %d %d %d %d %d %d %d %d %lld %lld\n", t.units, t.unit_tiles, t.batch, t.run, t.shares,
                    t.unit_blocks, t.batch_blocks, t.chunk, t.depth, static_cast<long long>(t.shared_bytes),
                    static_cast<long long>(rows));
    }
}
