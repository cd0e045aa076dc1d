// Every instruction path of this machine gives the same bits, kernel by kernel.
#include "kernels/instruction_path.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "tests/kernels/peaky_head.h"

namespace kvsim {
namespace {

/// All results of all kernels for one head, as bytes.
std::string everything(const PeakyHead& head) {
  std::string bytes;
  const auto add = [&](const auto* data, std::size_t count) {
    bytes.append(reinterpret_cast<const char*>(data), count * sizeof(*data));
  };
  const auto add_matrix = [&](const auto& matrix) {
    for (std::size_t r = 0; r < matrix.rows(); ++r) add(matrix.row(r), matrix.cols());
  };
  const PreparedHead ready(head);
  add_matrix(ready.weights);
  add_matrix(ready.exact);
  add_matrix(ready.tail);
  add(ready.sum.data(), ready.rows);
  std::vector<double> sums(head.tokens());
  column_sums(ready.weights.view(), 1, head.rows(), sums);
  add(sums.data(), sums.size());

  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 1);
  const std::vector<std::uint32_t> counts = {0,   3,   100,
                                             128, 200, static_cast<std::uint32_t>(head.shape.prompt)};
  const Curve curve = run_curve(head, ready, order, counts);
  add_matrix(curve.error);
  add_matrix(curve.recall);

  Matrix<std::uint16_t> ranks(head.shape.prompt, head.rows(), kRowPad);
  RankOutput<std::uint16_t> out;
  std::vector<std::uint32_t> needed(2 * kMassFractions.size() * ranks.stride());
  out.ranks = ranks.view();
  for (std::size_t f = 0; f < kMassFractions.size(); ++f) {
    out.needed_total[f] = {needed.data() + 2 * f * ranks.stride(), ranks.stride()};
    out.needed_prompt[f] = {needed.data() + (2 * f + 1) * ranks.stride(), ranks.stride()};
  }
  rank_rows<std::uint16_t>(ready.weights.view(), head.shape.prompt, head.position, head.rule.window, 0,
                           head.rows(), out);
  add_matrix(ranks);
  add(needed.data(), needed.size());
  Curve own(counts.size(), head.rows());
  own_order_curve<std::uint16_t>(ready.input(head, {}, counts), ranks.view(), 0, head.rows(), own.output());
  add_matrix(own.error);
  add_matrix(own.recall);

  Matrix<std::uint32_t> limits(1, head.rows(), kRowPad), overlap(counts.size(), head.rows());
  std::fill_n(limits.data(), head.rows(), 90u);
  overlap_counts<std::uint16_t>(ranks.view(), order, counts, limits.view(), 0, head.rows(), overlap.view());
  add_matrix(overlap);

  Matrix<float> product(head.shape.value_dim, head.rows(), kRowPad);
  accumulate_product(ready.weights.view(), head.values.view(), product.view());
  add_matrix(product);
  return bytes;
}

class InstructionPath : public testing::Test {
 protected:
  void TearDown() override { use_instruction_path(""); }
};

TEST_F(InstructionPath, DoesNotChangeABitOfAnyResult) {
  const std::vector<std::string_view> paths = instruction_paths();
  std::printf("paths:");
  for (const std::string_view path : paths) std::printf(" %.*s", static_cast<int>(path.size()), path.data());
  std::printf("\n");
  ASSERT_GE(paths.size(), 1u);
  for (int variant = 0; variant < 6; ++variant) {
    PeakyShape shape;
    shape.seed = static_cast<std::uint64_t>(variant);
    shape.reach = variant % 2 == 0 ? 20.0 : 100.0;
    shape.steps = variant < 3 ? 24 : 19;
    shape.value_dim = variant < 2 ? 32 : (variant < 4 ? 7 : 80);
    shape.head_dim = variant < 4 ? 32 : 13;
    PeakyHead head(shape);
    head.rule.softcap = variant == 1 ? 30.0 : 0.0;
    head.rule.window = variant == 2 ? 200 : 0;
    use_instruction_path(paths.front());
    const std::string best = everything(head);
    for (const std::string_view path : paths) {
      use_instruction_path(path);
      ASSERT_EQ(instruction_path(), path);
      EXPECT_TRUE(everything(head) == best)
          << path << " differs from " << paths.front() << ", variant " << variant;
    }
  }
}

TEST_F(InstructionPath, IsRefusedWhenTheMachineHasNone) {
  EXPECT_THROW(use_instruction_path("AVX9"), UserError);
  EXPECT_EQ(instruction_path(), instruction_paths().front());
}

}  // namespace
}  // namespace kvsim
