// Every table of decode kernels that this processor can run against plain double arithmetic: products of all
// kinds of weights and shapes, cells, and the forms of activations.
//
// kernels_test [name]: the named one must be there; none: all that are.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels.h"

using namespace melodia::engine;

namespace {

int failures = 0;

void check(bool fine, const std::string& what) {
    if (fine) return;
    std::printf("failed: %s\n", what.c_str());
    ++failures;
}

float widened(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
}

// Products of random matrices of M rows of x, in the form of the weights, and NV groups.
void test_product(const Kernels& table, Weights weights, int64_t M, int64_t NV, int64_t K,
                  std::mt19937& random) {
    std::normal_distribution<float> normal;
    const int64_t rows = NV * kTile;
    std::vector<float> x(M * K), out(M * rows), expected(M * rows);
    for (float& value : x) value = normal(random);
    for (float& value : out) value = normal(random);
    expected = out;
    std::vector<double> w(rows * K), seen(M * K), sizes(M * rows, 1.0);
    std::vector<float> fp32(K * rows), scale(rows, 0.01f), x_scale(M);
    std::vector<uint16_t> bf16(K * rows), x16(M * K);
    std::vector<int8_t> int8(K * rows);
    std::vector<uint8_t> x8(M * K);
    std::vector<int32_t> offset(rows);
    for (int64_t n = 0; n < rows; ++n) {
        for (int64_t k = 0; k < K; ++k) {
            const float value = normal(random);
            if (weights == Weights::fp32) {
                fp32[k * rows + n] = value;
                w[n * K + k] = value;
            } else if (weights == Weights::bf16) {
                uint32_t whole;
                std::memcpy(&whole, &value, 4);
                const auto bits = static_cast<uint16_t>(whole >> 16);
                bf16[(k / 2 * rows + n) * 2 + k % 2] = bits;
                w[n * K + k] = widened(bits);
            } else {
                const int code = static_cast<int>(random() % 255) - 127;
                int8[(k / 4 * rows + n) * 4 + k % 4] = static_cast<int8_t>(code);
                w[n * K + k] = 0.01f * static_cast<float>(code);
                offset[n] += 128 * code;
            }
        }
    }
    std::vector<const void*> x_rows(M);
    std::vector<float*> out_rows(M);
    for (int64_t m = 0; m < M; ++m) {
        out_rows[m] = out.data() + m * rows;
        if (weights == Weights::fp32) {
            x_rows[m] = x.data() + m * K;
        } else if (weights == Weights::bf16) {
            table.halve(x.data() + m * K, K, x16.data() + m * K);
            x_rows[m] = x16.data() + m * K;
        } else {
            x_scale[m] = table.quantise(x.data() + m * K, K, x8.data() + m * K);
            x_rows[m] = x8.data() + m * K;
        }
        for (int64_t k = 0; k < K; ++k) {
            const int64_t i = m * K + k;
            seen[i] = weights == Weights::fp32   ? x[i]
                      : weights == Weights::bf16 ? widened(x16[i])
                                                 : double(x_scale[m]) * (x8[i] - 128);
            const double step = weights == Weights::fp32   ? 0.0
                                : weights == Weights::bf16 ? std::fabs(x[i]) / 256
                                                           : 0.51 * x_scale[m];
            check(std::fabs(seen[i] - x[i]) <= step, "the form of an activation");
        }
        for (int64_t n = 0; n < rows; ++n) {
            double sum = expected[m * rows + n];
            for (int64_t k = 0; k < K; ++k) {
                sum += seen[m * K + k] * w[n * K + k];
                sizes[m * rows + n] += std::fabs(seen[m * K + k] * w[n * K + k]);
            }
            expected[m * rows + n] = static_cast<float>(sum);
        }
    }
    Product p{};
    p.K = K;
    p.M = M;
    p.NV = NV;
    p.panel = weights == Weights::fp32   ? static_cast<const void*>(fp32.data())
              : weights == Weights::bf16 ? static_cast<const void*>(bf16.data())
                                         : static_cast<const void*>(int8.data());
    p.scale = scale.data();
    p.offset = offset.data();
    p.x = x_rows.data();
    p.x_scale = x_scale.data();
    p.out = out_rows.data();
    p.add = true;
    table.product(weights, p);
    for (int64_t i = 0; i < M * rows; ++i) {
        const bool fine = std::fabs(out[i] - expected[i]) <= 1e-6 * sizes[i];
        check(fine, "a product of weights " + std::to_string(static_cast<int>(weights)) + ", M " +
                        std::to_string(M) + ", NV " + std::to_string(NV) + ", K " + std::to_string(K));
        if (!fine) return;
    }
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

void test_cells(const Kernels& table, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 3.0f);
    float gates[4 * kTile], inside[3 * kTile], h[kTile], c[kTile], c_out[kTile], h_out[kTile];
    for (float* values : {gates, gates + 16, gates + 32, gates + 48, inside, inside + 16, inside + 32, h, c})
        for (int64_t k = 0; k < kTile; ++k) values[k] = normal(random);
    table.lstm(gates, c, c_out, h_out);
    for (int64_t k = 0; k < kTile; ++k) {
        const double cell = sigmoid(gates[16 + k]) * c[k] + sigmoid(gates[k]) * std::tanh(gates[32 + k]);
        check(std::fabs(c_out[k] - cell) < 4e-6, "an LSTM's cell");
        check(std::fabs(h_out[k] - sigmoid(gates[48 + k]) * std::tanh(cell)) < 4e-6, "an LSTM's output");
    }
    table.gru(gates, inside, h, h_out);
    for (int64_t k = 0; k < kTile; ++k) {
        const double r = sigmoid(gates[k] + inside[k]), z = sigmoid(gates[16 + k] + inside[16 + k]);
        const double n = std::tanh(gates[32 + k] + r * inside[32 + k]);
        check(std::fabs(h_out[k] - (n + z * (h[k] - n))) < 4e-6, "a GRU's output");
    }
    float row[37], sum[37];
    for (int64_t k = 0; k < 37; ++k) {
        row[k] = normal(random);
        sum[k] = 1.0f;
    }
    table.add(row, 37, sum);
    for (int64_t k = 0; k < 37; ++k) check(sum[k] == 1.0f + row[k], "a sum of rows");
}

}  // namespace

int main(int argc, char** argv) {
    int found = 0;
    for (const char* name : {"portable", "avx2", "avx512", "avx512bf16", "neon", "neondot"}) {
        const Kernels* table = find_kernels(name);
        if (table == nullptr || (argc > 1 && std::strcmp(argv[1], name) != 0)) continue;
        ++found;
        std::mt19937 random(1);
        for (int round = 0; round < 20; ++round) test_cells(*table, random);
        for (Weights weights : {Weights::fp32, Weights::bf16, Weights::int8})
            for (int64_t M = 1; M <= kMaxRows; ++M)
                for (int64_t NV = 1; NV <= kMaxGroups; ++NV)
                    for (int64_t K : {16, 48, 160}) test_product(*table, weights, M, NV, K, random);
        std::fprintf(stderr, "%s: %d failures so far\n", name, failures);
    }
    check(found > 0, "no such instruction set here");
    std::printf(failures == 0 ? "fine\n" : "not fine\n");
    return failures == 0 ? 0 : 1;
}
