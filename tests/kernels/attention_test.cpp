// Exact attention weights and outputs against plain double loops, on peaky inputs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/replay.h"
#include "tests/kernels/peaky_head.h"
#include "tests/reference/attention.h"

namespace kvsim {
namespace {

/// Largest relative error over weights above `floor`, and over outputs (L2 per row).
struct Reached {
  double weight = 0.0;
  double output = 0.0;
};

Reached compare_with_reference(const PeakyHead& head, double floor = 1e-30) {
  const PreparedHead ready(head);
  Reached reached;
  for (std::size_t r = 0; r < head.rows(); ++r) {
    const reference::Row exact =
        reference::attention(head.keys.view(), head.queries.row(r), head.position[r], head.rule);
    for (std::size_t j = 0; j < head.tokens(); ++j) {
      const double got = static_cast<double>(ready.weights(j, r));
      if (exact[j] > floor)
        reached.weight = std::max(reached.weight, std::fabs(got - exact[j]) / exact[j]);
      else
        EXPECT_LE(got, 2.0 * floor) << "row " << r << " token " << j;
    }
    const reference::Row wanted = reference::output(exact, head.values.view());
    reference::Row got(head.shape.value_dim);
    for (std::size_t c = 0; c < got.size(); ++c) got[c] = static_cast<double>(ready.exact(c, r));
    reached.output = std::max(reached.output, reference::relative_error(got, wanted));
  }
  return reached;
}

class AttentionReach : public testing::TestWithParam<double> {};

TEST_P(AttentionReach, WeightsAndOutputsMatchDoubleOnPeakyLogits) {
  for (const std::size_t value_dim : {1u, 7u, 64u, 80u, 128u}) {
    PeakyShape shape;
    shape.reach = GetParam();
    shape.value_dim = value_dim;
    const Reached reached = compare_with_reference(PeakyHead(shape));
    std::printf("logit reach %3.0f, value_dim %3zu: weights within %.1e, outputs within %.1e (relative)\n",
                GetParam(), value_dim, reached.weight, reached.output);
    EXPECT_LT(reached.weight, 1e-6);
    // One channel can cancel to almost nothing; several cannot all at once.
    EXPECT_LT(reached.output, value_dim == 1 ? 1e-4 : 1e-6);
  }
}
INSTANTIATE_TEST_SUITE_P(Peaky, AttentionReach, testing::Values(1.0, 20.0, 100.0));

TEST(AttentionWeights, ReachesLogitsOfAHundred) {
  PeakyShape shape;
  shape.reach = 100.0;
  const PeakyHead head(shape);
  double largest = 0.0, smallest = 0.0;
  for (std::size_t r = 0; r < head.rows(); ++r) {
    for (std::size_t j = 0; j < head.tokens(); ++j) {
      const double logit = reference::logit(head.keys.view(), head.queries.row(r), head.rule, j);
      largest = std::max(largest, logit);
      smallest = std::min(smallest, logit);
    }
  }
  EXPECT_GT(largest, 80.0);
  EXPECT_LT(smallest, -15.0);
}

TEST(AttentionWeights, SoftCapsAndWindowsMatchDouble) {
  for (const std::uint32_t window : {1u, 5u, 127u, 128u, 129u, 250u, 5000u}) {
    for (const double softcap : {0.0, 5.0, 50.0}) {
      PeakyHead head(PeakyShape{});
      head.rule.window = window;
      head.rule.softcap = softcap;
      const Reached reached = compare_with_reference(head);
      EXPECT_LT(reached.weight, 1e-6) << "window " << window << ", soft cap " << softcap;
      EXPECT_LT(reached.output, 1e-6) << "window " << window << ", soft cap " << softcap;
    }
  }
}

TEST(AttentionWeights, MatchDoubleForAnyNumberOfRowsAndTokens) {
  for (std::size_t rows = 1; rows <= 100; rows += rows < 20 ? 1 : 13) {
    PeakyShape shape;
    shape.group = 1;
    shape.steps = rows;
    shape.prompt = 1 + rows * 3;
    shape.head_dim = 1 + rows % 17;
    const Reached reached = compare_with_reference(PeakyHead(shape));
    EXPECT_LT(reached.weight, 1e-6) << rows << " rows";
  }
}

TEST(AttentionWeights, HiddenKeysAndPaddingRowsWeighNothing) {
  PeakyShape shape;
  shape.steps = 19;
  shape.group = 1;
  PeakyHead head(shape);
  head.rule.window = 40;
  Matrix<float> weights(head.tokens(), head.rows(), kRowPad);
  std::fill_n(weights.data(), head.tokens() * weights.stride(), -1.0f);
  attention_weights(head.keys.view(), head.queries.view(), head.position, head.rule, 0, head.rows(),
                    weights.view());
  for (std::size_t j = 0; j < head.tokens(); ++j) {
    for (std::size_t r = 0; r < weights.stride(); ++r) {
      const bool sees = r < head.rows() && reference::sees(head.position[r], head.rule.window, j);
      if (sees) continue;
      EXPECT_EQ(weights.row(j)[r], 0.0f) << "row " << r << " token " << j;
    }
  }
}

TEST(AttentionWeights, ARowThatSeesNoKeyWeighsNothing) {
  PeakyShape shape;
  PeakyHead head(shape);
  head.rule.window = 4;
  const std::size_t keys = 100;  // all of them lie before every query's window
  Matrix<float> weights(keys, head.rows(), kRowPad);
  std::fill_n(weights.data(), keys * weights.stride(), -1.0f);
  attention_weights(head.keys.view().rows_from(0, keys), head.queries.view(), head.position, head.rule, 0,
                    head.rows(), weights.view());
  EXPECT_EQ(std::count(weights.data(), weights.data() + keys * weights.stride(), 0.0f),
            static_cast<std::ptrdiff_t>(keys * weights.stride()));
}

TEST(AttentionWeights, OneTokenGetsEverything) {
  PeakyShape shape;
  shape.prompt = 0;
  shape.steps = 1;
  shape.group = 3;
  const PeakyHead head(shape);
  const PreparedHead ready(head);
  for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(ready.weights(0, r), 1.0f);
}

TEST(AttentionWeights, AddingAConstantToAllLogitsChangesNothingVisible) {
  PeakyHead head(PeakyShape{});
  const PreparedHead before(head);
  // An extra channel adds the same 64 to each logit of a query.
  PeakyShape wider = head.shape;
  wider.head_dim += 1;
  PeakyHead shifted(wider);
  for (std::size_t j = 0; j < head.tokens(); ++j) {
    std::copy_n(head.keys.row(j), head.shape.head_dim, shifted.keys.row(j));
    std::copy_n(head.values.row(j), head.shape.value_dim, shifted.values.row(j));
    shifted.keys(j, head.shape.head_dim) = 8.0f;
  }
  for (std::size_t r = 0; r < head.rows(); ++r) {
    std::copy_n(head.queries.row(r), head.shape.head_dim, shifted.queries.row(r));
    shifted.queries(r, head.shape.head_dim) = static_cast<float>(8.0 / head.rule.scale);
  }
  shifted.rule.scale = head.rule.scale;
  const PreparedHead after(shifted);
  for (std::size_t j = 0; j < head.tokens(); ++j) {
    for (std::size_t r = 0; r < head.rows(); ++r) {
      EXPECT_NEAR(after.weights(j, r), before.weights(j, r), 1e-6f * before.weights(j, r) + 1e-37f);
    }
  }
}

TEST(AttentionOutputs, PartsAddUpToTheWhole) {
  PeakyShape shape;
  shape.value_dim = 12;
  const PeakyHead head(shape);
  const PreparedHead ready(head);
  Matrix<float> front(12, head.rows(), kRowPad);
  std::vector<float> front_weight(front.stride());
  attention_outputs(ready.weights.view(), head.values.view(), 0, shape.prompt, 0, head.rows(), front.view(),
                    front_weight);
  for (std::size_t r = 0; r < head.rows(); ++r) {
    EXPECT_NEAR(front_weight[r] + ready.tail_weight[r], 1.0f, 1e-6f);
    EXPECT_NEAR(ready.sum[r], 1.0f, 1e-6f);
    for (std::size_t c = 0; c < 12; ++c)
      EXPECT_NEAR(front(c, r) + ready.tail(c, r), ready.exact(c, r), 3e-6f);
  }
}

TEST(ColumnSums, MatchDoubleForAnyRange) {
  const PeakyHead head(PeakyShape{});
  const PreparedHead ready(head);
  std::vector<double> sum(head.tokens());
  for (const auto& [begin, end] :
       {std::pair<std::size_t, std::size_t>{0, 48}, {0, 1}, {3, 41}, {5, 5}, {1, 48}}) {
    column_sums(ready.weights.view(), begin, end, sum);
    for (std::size_t j = 0; j < head.tokens(); ++j) {
      double wanted = 0.0;
      for (std::size_t r = begin; r < end; ++r) wanted += static_cast<double>(ready.weights(j, r));
      EXPECT_NEAR(sum[j], wanted, 1e-15 * (1.0 + wanted))
          << "rows " << begin << ".." << end << " token " << j;
    }
  }
}

TEST(SubsetOutput, MatchesDoubleEvenWhereTheSharedSoftmaxUnderflows) {
  PeakyShape shape;
  shape.reach = 100.0;
  shape.value_dim = 13;
  PeakyHead head(shape);
  for (const double softcap : {0.0, 30.0}) {
    head.rule.softcap = softcap;
    const std::vector<TokenIndex> held = {17, 40, 41, 77, 150, 299};
    for (std::size_t r = 0; r < head.rows(); ++r) {
      std::vector<double> got(13);
      subset_output(head.keys.view(), head.values.view(), head.queries.view().row_span(r), head.rule, held,
                    got);
      const reference::Row wanted = reference::output(
          reference::kept_attention(head.keys.view(), head.queries.row(r), head.position[r], head.rule, held),
          head.values.view());
      EXPECT_LT(reference::relative_error(got, wanted), 1e-12);
    }
  }
}

TEST(AccumulateProduct, AddsTheProductToWhatWasThere) {
  Philox random(3, 3);
  for (const auto& [inner, steps, columns] :
       {std::array<std::size_t, 3>{1, 1, 1}, {300, 20, 7}, {576, 64, 96}, {129, 50, 8}}) {
    Matrix<float> a(inner, steps, kRowPad), b(inner, columns), out(columns, steps, kRowPad);
    for (std::size_t k = 0; k < inner; ++k) {
      for (std::size_t s = 0; s < steps; ++s) a(k, s) = normal_number(random);
      for (std::size_t c = 0; c < columns; ++c) b(k, c) = normal_number(random);
    }
    for (std::size_t c = 0; c < columns; ++c) {
      for (std::size_t s = 0; s < steps; ++s) out(c, s) = static_cast<float>(c + s);
    }
    accumulate_product(a.view(), b.view(), out.view());
    for (std::size_t c = 0; c < columns; ++c) {
      for (std::size_t s = 0; s < steps; ++s) {
        double wanted = static_cast<double>(c + s);
        for (std::size_t k = 0; k < inner; ++k)
          wanted += static_cast<double>(a(k, s)) * static_cast<double>(b(k, c));
        EXPECT_NEAR(out(c, s), wanted, 1e-4) << inner << " x " << steps << " x " << columns;
      }
    }
  }
}

}  // namespace
}  // namespace kvsim
