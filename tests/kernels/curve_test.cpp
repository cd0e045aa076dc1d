// One-pass budget curves: against plain double loops over kept sets, and what they promise about bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "tests/kernels/peaky_head.h"
#include "tests/reference/attention.h"

namespace kvsim {
namespace {

std::vector<TokenIndex> with_decode_tokens(const PeakyHead& head, std::span<const TokenIndex> order,
                                           std::size_t count) {
  std::vector<TokenIndex> kept(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count));
  for (std::size_t j = head.shape.prompt; j < head.tokens(); ++j) kept.push_back(static_cast<TokenIndex>(j));
  return kept;
}

/// Largest deviation of a curve from the definition: |o' - o| / |o| of kept sets in double, and the mass
/// kept.
void expect_curve_matches(const PeakyHead& head, std::span<const TokenIndex> order,
                          std::span<const std::uint32_t> counts, const Curve& curve) {
  for (std::size_t r = 0; r < head.rows(); ++r) {
    const reference::Row exact =
        reference::attention(head.keys.view(), head.queries.row(r), head.position[r], head.rule);
    const reference::Row full = reference::output(exact, head.values.view());
    for (std::size_t s = 0; s < counts.size(); ++s) {
      const std::vector<TokenIndex> kept = with_decode_tokens(head, order, counts[s]);
      double mass = 0.0;
      for (const TokenIndex j : kept) mass += exact[j];
      EXPECT_NEAR(curve.recall(s, r), mass, 1e-6 * mass) << "count " << counts[s] << " row " << r;
      if (mass < 1e-15) continue;
      const reference::Row output = reference::output(
          reference::kept_attention(head.keys.view(), head.queries.row(r), head.position[r], head.rule, kept),
          head.values.view());
      const double error = reference::relative_error(output, full);
      EXPECT_NEAR(curve.error(s, r), error, 1e-6 + 2e-6 * error) << "count " << counts[s] << " row " << r;
    }
  }
}

TEST(CurvePass, MatchesKeptSetsInDoubleForAnyValueDim) {
  for (const std::size_t value_dim : {1u, 7u, 8u, 64u, 80u, 128u}) {
    PeakyShape shape;
    shape.value_dim = value_dim;
    const PeakyHead head(shape);
    const PreparedHead ready(head);
    const std::vector<TokenIndex> order = shuffled(shape.prompt, value_dim);
    const std::vector<std::uint32_t> counts = {0, 1, 1, 7, 64, 127, 128, 129, 200, 256, 299, 300};
    if (value_dim == 1) {  // a single channel may cancel, which the relative error then shows
      const Curve curve = run_curve(head, ready, order, counts);
      for (std::size_t r = 0; r < head.rows(); ++r) EXPECT_LT(curve.error(counts.size() - 1, r), 1e-4f);
      continue;
    }
    expect_curve_matches(head, order, counts, run_curve(head, ready, order, counts));
  }
}

TEST(CurvePass, MatchesKeptSetsInDoubleForAnyNumberOfRows) {
  for (std::size_t rows = 1; rows <= 100; rows += 11) {
    PeakyShape shape;
    shape.group = 1;
    shape.steps = rows;
    shape.prompt = 150;
    shape.value_dim = 9;
    const PeakyHead head(shape);
    const PreparedHead ready(head);
    const std::vector<TokenIndex> order = shuffled(shape.prompt, rows);
    const std::vector<std::uint32_t> counts = {1, 100, 150};
    expect_curve_matches(head, order, counts, run_curve(head, ready, order, counts));
  }
}

TEST(CurvePass, SlidingWindowsCountOnlyWhatIsSeen) {
  PeakyShape shape;
  shape.value_dim = 9;
  PeakyHead head(shape);
  head.rule.window = 200;
  const PreparedHead ready(head);
  const std::vector<TokenIndex> order = shuffled(shape.prompt, 5);
  const std::vector<std::uint32_t> counts = {10, 100, 300};
  expect_curve_matches(head, order, counts, run_curve(head, ready, order, counts));
}

TEST(CurvePass, MatchesFullAttentionWhenTheBudgetCoversAllTokens) {
  for (const double reach : {1.0, 20.0, 100.0}) {
    PeakyShape shape;
    shape.prompt = 3000;
    shape.value_dim = 64;
    shape.reach = reach;
    const PeakyHead head(shape);
    const PreparedHead ready(head);
    float worst = 0.0f;
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      const std::vector<std::uint32_t> counts = {static_cast<std::uint32_t>(shape.prompt)};
      const Curve curve = run_curve(head, ready, shuffled(shape.prompt, seed), counts);
      for (std::size_t r = 0; r < head.rows(); ++r) {
        worst = std::max(worst, curve.error(0, r));
        EXPECT_NEAR(curve.recall(0, r), 1.0f, 1e-6f);
      }
    }
    std::printf("logit reach %3.0f: output error of the full cache in shuffled order at most %.1e\n", reach,
                worst);
    EXPECT_LT(worst, 1e-6f);
  }
}

TEST(CurvePass, BitsDoNotDependOnTheOtherCounts) {
  const PeakyHead head(PeakyShape{});
  const PreparedHead ready(head);
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 1);
  std::vector<std::uint32_t> all(head.shape.prompt + 1);
  std::iota(all.begin(), all.end(), 0u);
  const Curve whole = run_curve(head, ready, order, all);
  for (const std::vector<std::uint32_t>& counts : {std::vector<std::uint32_t>{0},
                                                   {5},
                                                   {128},
                                                   {129},
                                                   {300},
                                                   {1, 2, 3, 127, 128, 255, 256, 257},
                                                   {4, 4, 4, 290}}) {
    const Curve some = run_curve(head, ready, order, counts);
    for (std::size_t s = 0; s < counts.size(); ++s) {
      EXPECT_EQ(std::memcmp(some.error.row(s), whole.error.row(counts[s]), head.rows() * sizeof(float)), 0);
      EXPECT_EQ(std::memcmp(some.recall.row(s), whole.recall.row(counts[s]), head.rows() * sizeof(float)), 0);
    }
  }
}

TEST(CurvePass, BitsDoNotDependOnTheTile) {
  PeakyShape shape;
  shape.steps = 50;
  shape.group = 3;
  const PeakyHead head(shape);
  const PreparedHead ready(head);
  const std::vector<TokenIndex> order = shuffled(shape.prompt, 1);
  const std::vector<std::uint32_t> counts = {3, 140, 300};
  const Curve whole = run_curve(head, ready, order, counts);
  for (const std::size_t step : {16u, 32u, 48u, 64u, 96u}) {
    for (std::size_t row = 0; row < head.rows(); row += step) {
      const std::size_t end = std::min(row + step, head.rows());
      Curve part(counts.size(), end - row);
      curve_pass(ready.input(head, order, counts), row, end, part.output());
      for (std::size_t s = 0; s < counts.size(); ++s) {
        EXPECT_EQ(std::memcmp(part.error.row(s), whole.error.row(s) + row, (end - row) * sizeof(float)), 0);
        EXPECT_EQ(std::memcmp(part.recall.row(s), whole.recall.row(s) + row, (end - row) * sizeof(float)), 0);
      }
    }
  }
}

TEST(CurvePass, MoreSnapshotsThanTokensInABlockAreFine) {
  const PeakyHead head(PeakyShape{});
  const PreparedHead ready(head);
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 1);
  const std::vector<std::uint32_t> counts(500, 60);
  const Curve curve = run_curve(head, ready, order, counts);
  const Curve one = run_curve(head, ready, order, std::vector<std::uint32_t>{60});
  for (std::size_t s = 0; s < counts.size(); ++s) {
    EXPECT_EQ(std::memcmp(curve.error.row(s), one.error.row(0), head.rows() * sizeof(float)), 0);
  }
}

TEST(CurvePass, KeptMassBelowTheFloorHasNoError) {
  PeakyShape shape;
  shape.reach = 100.0;
  PeakyHead head(shape);
  PreparedHead ready(head);
  // Nothing but the prompt counts: no decode tokens held.
  std::fill_n(ready.tail.data(), ready.tail.rows() * ready.tail.stride(), 0.0f);
  std::fill(ready.tail_weight.begin(), ready.tail_weight.end(), 0.0f);
  const std::vector<TokenIndex> order = reference::by_weight(
      [&] {
        std::vector<double> lightest_first(shape.prompt);
        for (std::size_t j = 0; j < shape.prompt; ++j)
          lightest_first[j] = -static_cast<double>(ready.weights(j, 0));
        return lightest_first;
      }(),
      0, shape.prompt);
  const std::vector<std::uint32_t> counts = {0, 5, static_cast<std::uint32_t>(shape.prompt)};
  const Curve curve = run_curve(head, ready, order, counts);
  EXPECT_TRUE(std::isnan(curve.error(0, 0)));
  EXPECT_EQ(curve.recall(0, 0), 0.0f);
  ASSERT_LT(curve.recall(1, 0), kRecallFloor);
  EXPECT_TRUE(std::isnan(curve.error(1, 0)));
  EXPECT_FALSE(std::isnan(curve.error(2, 0)));
}

TEST(CurvePass, AZeroExactOutputLeavesTheLengthOfTheOther) {
  Matrix<float> weights(2, 1, kRowPad), values(2, 2), nothing(2, 1, kRowPad), exact(2, 1, kRowPad);
  weights(0, 0) = 0.5f;
  weights(1, 0) = 0.5f;
  values(0, 0) = 3.0f, values(0, 1) = 4.0f;
  values(1, 0) = -3.0f, values(1, 1) = -4.0f;
  const std::vector<float> no_tail(kRowPad, 0.0f);
  const std::vector<TokenIndex> order = {0, 1};
  const std::vector<std::uint32_t> counts = {1, 2};
  Curve curve(2, 1);
  curve_pass({weights.view(), values.view(), order, counts, nothing.view(), no_tail, exact.view()}, 0, 1,
             curve.output());
  EXPECT_EQ(curve.error(0, 0), 5.0f);  // o' = (3, 4), o = 0
  EXPECT_EQ(curve.error(1, 0), 0.0f);
}

TEST(CurvePass, DifferencesExplainTheErrors) {
  PeakyShape shape;
  shape.value_dim = 11;
  shape.steps = 35;
  const PeakyHead head(shape);
  const PreparedHead ready(head);
  const std::vector<TokenIndex> order = shuffled(shape.prompt, 1);
  const std::vector<std::uint32_t> counts = {9, 200};
  const std::size_t stride = ready.exact.stride();
  std::vector<float> delta(counts.size() * 11 * stride, 77.0f);
  Curve curve(counts.size(), head.rows());
  CurveOutput out = curve.output();
  out.delta = delta.data();
  out.delta_stride = 11 * stride;
  curve_pass(ready.input(head, order, counts), 0, head.rows(), out);
  for (std::size_t s = 0; s < counts.size(); ++s) {
    for (std::size_t r = 0; r < head.rows(); ++r) {
      double squares = 0.0, length = 0.0;
      for (std::size_t c = 0; c < 11; ++c) {
        squares += std::pow(static_cast<double>(delta[s * 11 * stride + c * stride + r]), 2);
        length += std::pow(static_cast<double>(ready.exact(c, r)), 2);
      }
      EXPECT_NEAR(curve.error(s, r), std::sqrt(squares / length), 1e-6 * curve.error(s, r));
    }
  }
}

TEST(CurvePass, RefusesCountsThatFallOrExceedTheOrder) {
  const PeakyHead head(PeakyShape{});
  const PreparedHead ready(head);
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 1);
  EXPECT_THROW(run_curve(head, ready, order, std::vector<std::uint32_t>{5, 4}), InternalError);
  EXPECT_THROW(run_curve(head, ready, order, std::vector<std::uint32_t>{301}), InternalError);
}

TEST(CurvePass, ErrorStaysSmallOverALongCache) {
  // 40,000 tokens of nearly equal weight: the harshest case for a running float sum.
  const std::size_t n = 40000;
  Philox random(5, 5);
  Matrix<float> weights(n, 1, kRowPad), values(n, 4), nothing(4, 1, kRowPad), exact(4, 1, kRowPad);
  reference::Row wanted(4, 0.0);
  double mass = 0.0;
  for (std::size_t j = 0; j < n; ++j) {
    weights(j, 0) = static_cast<float>((1.0 + 0.1 * random.next_double()) / static_cast<double>(n));
    mass += static_cast<double>(weights(j, 0));
    for (std::size_t c = 0; c < 4; ++c) {
      values(j, c) = 1.0f + 0.1f * normal_number(random);
      wanted[c] += static_cast<double>(weights(j, 0)) * static_cast<double>(values(j, c));
    }
  }
  for (std::size_t c = 0; c < 4; ++c) exact(c, 0) = static_cast<float>(wanted[c] / mass);
  const std::vector<float> no_tail(kRowPad, 0.0f);
  const std::vector<std::uint32_t> counts = {static_cast<std::uint32_t>(n)};
  Curve curve(1, 1);
  curve_pass({weights.view(), values.view(), shuffled(n, 1), counts, nothing.view(), no_tail, exact.view()},
             0, 1, curve.output());
  std::printf("40,000 equal tokens: output error %.1e, recall off by %.1e\n", curve.error(0, 0),
              curve.recall(0, 0) / mass - 1.0);
  EXPECT_LT(curve.error(0, 0), 1e-6f);
  EXPECT_NEAR(curve.recall(0, 0), mass, 1e-6);
}

template <typename Rank>
class OwnOrderCurve : public testing::Test {};
using Ranks = testing::Types<std::uint16_t, std::uint32_t>;
TYPED_TEST_SUITE(OwnOrderCurve, Ranks);

TYPED_TEST(OwnOrderCurve, MatchesKeptSetsInDouble) {
  for (const std::size_t value_dim : {3u, 64u, 80u}) {
    for (const std::uint32_t window : {0u, 150u}) {
      PeakyShape shape;
      shape.value_dim = value_dim;
      shape.prompt = 200;
      shape.steps = 11;
      PeakyHead head(shape);
      head.rule.window = window;
      const PreparedHead ready(head);
      constexpr TypeParam kHiddenRank = std::numeric_limits<TypeParam>::max();
      Matrix<TypeParam> ranks(shape.prompt, head.rows(), kRowPad);
      std::vector<std::vector<TokenIndex>> orders(head.rows());
      for (std::size_t r = 0; r < head.rows(); ++r) {
        std::vector<float> weights(shape.prompt);
        for (std::size_t j = 0; j < shape.prompt; ++j) weights[j] = ready.weights(j, r);
        const auto row =
            reference::prompt_ranks(weights, shape.prompt, head.position[r], window, kHiddenRank);
        for (std::size_t j = 0; j < shape.prompt; ++j) ranks(j, r) = static_cast<TypeParam>(row[j]);
        for (const TokenIndex j : reference::by_weight(weights, 0, shape.prompt)) {
          if (reference::sees(head.position[r], window, j)) orders[r].push_back(j);
        }
      }
      const std::vector<std::uint32_t> counts = {0, 1, 5, 128, 140, 200};
      Curve curve(counts.size(), head.rows());
      own_order_curve<TypeParam>(ready.input(head, {}, counts), ranks.view(), 0, head.rows(), curve.output());
      for (std::size_t r = 0; r < head.rows(); ++r) {
        const reference::Row exact =
            reference::attention(head.keys.view(), head.queries.row(r), head.position[r], head.rule);
        for (std::size_t s = 0; s < counts.size(); ++s) {
          const auto kept =
              with_decode_tokens(head, orders[r], std::min<std::size_t>(counts[s], orders[r].size()));
          double mass = 0.0;
          for (const TokenIndex j : kept) mass += exact[j];
          const double error = reference::relative_error(
              reference::output(reference::kept_attention(head.keys.view(), head.queries.row(r),
                                                          head.position[r], head.rule, kept),
                                head.values.view()),
              reference::output(exact, head.values.view()));
          EXPECT_NEAR(curve.recall(s, r), mass, 1e-6 * mass);
          EXPECT_NEAR(curve.error(s, r), error, 2e-6 + 2e-6 * error) << "count " << counts[s] << " row " << r;
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvsim
