// Squared changes by removed tokens against the definition in double, for any cut of the rows and on every
// path.
#include "kernels/removal.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/instruction_path.h"
#include "kernels/philox.h"

namespace kvsim {
namespace {

/// Random weights (some 0, some 1), values and outputs; rows are not aligned to anything.
struct RemovalCase {
  RemovalCase(std::size_t tokens, std::size_t rows, std::size_t dim)
      : weights(tokens, rows), values(tokens, dim), outputs(dim, rows) {
    Philox random(7, tokens * 1000 + rows * 10 + dim);
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows; ++r) {
        const double x = random.next_double();
        weights(t, r) = x < 0.05 ? 0.0f : x > 0.95 ? 1.0f : static_cast<float>(x * x * x);
      }
    for (Matrix<float>* matrix : {&values, &outputs})
      for (std::size_t i = 0; i < matrix->rows() * matrix->stride(); ++i)
        matrix->data()[i] = static_cast<float>(2.0 * random.next_double() - 1.0);
  }

  std::vector<double> squares(std::span<const std::size_t> cuts) const {
    std::vector<double> sum(weights.rows(), 0.5);
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
      removal_squares(weights.view(), values.view(), outputs.view(), cuts[i], cuts[i + 1], sum);
    return sum;
  }

  Matrix<float> weights, values, outputs;
};

class RemovalSquares : public testing::TestWithParam<std::size_t> {};

TEST_P(RemovalSquares, AreTheDefinitionInDouble) {
  for (const std::size_t tokens : {1u, 4u, 7u})
    for (const std::size_t dim : {1u, 5u, 64u}) {
      const RemovalCase one(tokens, GetParam(), dim);
      const std::vector<double> got = one.squares(std::vector<std::size_t>{0, GetParam()});
      for (std::size_t t = 0; t < tokens; ++t) {
        double wanted = 0.5;
        for (std::size_t r = 0; r < GetParam(); ++r) {
          double squared = 0;
          for (std::size_t c = 0; c < dim; ++c) {
            const double difference =
                static_cast<double>(one.values(t, c)) - static_cast<double>(one.outputs(c, r));
            squared += difference * difference;
          }
          const double a = one.weights(t, r);
          const double share = a / std::max(1.0 - a, 0x1p-24);
          wanted += share * share * squared;
        }
        // Distances are rounded to float at every channel: 64 additions of half a unit of 2^-24 at most.
        EXPECT_NEAR(got[t], wanted, wanted * 4e-6) << "token " << t << " of " << tokens << ", dim " << dim;
      }
    }
}

TEST_P(RemovalSquares, AreTheSameBitsForAnyCutOfTheRowsAndOnEveryPath) {
  const std::size_t rows = GetParam();
  const RemovalCase one(9, rows, 24);
  const std::vector<double> whole = one.squares(std::vector<std::size_t>{0, rows});
  for (const std::string_view path : instruction_paths()) {
    use_instruction_path(path);
    EXPECT_EQ(one.squares(std::vector<std::size_t>{0, rows}), whole) << path;
    EXPECT_EQ(one.squares(std::vector<std::size_t>{0, rows / 3, rows / 2, rows}), whole) << path;
  }
  use_instruction_path({});
}

INSTANTIATE_TEST_SUITE_P(Rows, RemovalSquares, testing::Values(1u, 15u, 16u, 64u, 83u, 200u),
                         [](const auto& rows) { return std::to_string(rows.param); });

}  // namespace
}  // namespace kvsim
