// Ranks, needed sets, overlaps and sorts against naive loops.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/order.h"
#include "kernels/replay.h"
#include "tests/kernels/peaky_head.h"
#include "tests/reference/attention.h"

namespace kvsim {
namespace {

template <typename Rank>
struct RankBuffers {
  RankBuffers(std::size_t prompt, std::size_t rows) : ranks(prompt, rows, kRowPad) {
    for (auto& counts : total) counts.resize(ranks.stride());
    for (auto& counts : of_prompt) counts.resize(ranks.stride());
  }
  RankOutput<Rank> output() {
    RankOutput<Rank> out;
    out.ranks = ranks.view();
    for (std::size_t f = 0; f < kMassFractions.size(); ++f) {
      out.needed_total[f] = total[f];
      out.needed_prompt[f] = of_prompt[f];
    }
    return out;
  }
  Matrix<Rank> ranks;
  std::array<std::vector<std::uint32_t>, kMassFractions.size()> total, of_prompt;
};

template <typename Rank>
void expect_ranks_match(MatrixView<const float> weights, std::size_t prompt,
                        const std::vector<TokenIndex>& position, std::uint32_t window) {
  const std::size_t rows = position.size();
  RankBuffers<Rank> got(prompt, rows);
  rank_rows<Rank>(weights, prompt, position, window, 0, rows, got.output());
  for (std::size_t r = 0; r < rows; ++r) {
    std::vector<float> row(weights.rows);
    for (std::size_t j = 0; j < weights.rows; ++j) row[j] = weights(j, r);
    const auto ranks =
        reference::prompt_ranks(row, prompt, position[r], window, std::numeric_limits<Rank>::max());
    for (std::size_t j = 0; j < prompt; ++j)
      ASSERT_EQ(got.ranks(j, r), ranks[j]) << "row " << r << " token " << j;
    for (std::size_t f = 0; f < kMassFractions.size(); ++f) {
      const auto needed = reference::needed_set(row, position[r], window, kMassFractions[f]);
      const auto of_prompt =
          std::count_if(needed.begin(), needed.end(), [&](TokenIndex j) { return j < prompt; });
      EXPECT_EQ(got.total[f][r], needed.size()) << "row " << r << " fraction " << kMassFractions[f];
      EXPECT_EQ(got.of_prompt[f][r], of_prompt) << "row " << r << " fraction " << kMassFractions[f];
    }
  }
}

template <typename Rank>
class RankRows : public testing::Test {};
using Ranks = testing::Types<std::uint16_t, std::uint32_t>;
TYPED_TEST_SUITE(RankRows, Ranks);

TYPED_TEST(RankRows, MatchASortOnPeakyAttention) {
  for (const double reach : {0.0, 1.0, 20.0, 100.0}) {
    for (const std::uint32_t window : {0u, 1u, 100u, 310u}) {
      PeakyShape shape;
      shape.reach = reach;
      PeakyHead head(shape);
      head.rule.window = window;
      const PreparedHead ready(head);
      expect_ranks_match<TypeParam>(ready.weights.view(), shape.prompt, head.position, window);
    }
  }
}

TYPED_TEST(RankRows, WorkForAnyNumberOfRowsAndTokens) {
  for (std::size_t rows = 1; rows <= 100; rows += 7) {
    PeakyShape shape;
    shape.group = 1;
    shape.steps = rows;
    shape.prompt = 1 + rows * 2;
    const PeakyHead head(shape);
    const PreparedHead ready(head);
    expect_ranks_match<TypeParam>(ready.weights.view(), shape.prompt, head.position, 0);
  }
}

TYPED_TEST(RankRows, TiesGoToTheEarlierPosition) {
  Philox random(2, 2);
  const std::size_t tokens = 500, prompt = 470;
  Matrix<float> weights(tokens, 20, kRowPad);
  std::vector<TokenIndex> position(20, 499);
  for (std::size_t j = 0; j < tokens; ++j) {
    // Rows of few distinct values, of one value, of zeros, and of neighbours in the last bits.
    for (std::size_t r = 0; r < 20; ++r) {
      const float step = static_cast<float>(random.next_below(5));
      weights(j, r) = r < 8    ? step * 0.001f
                      : r < 10 ? 0.002f
                      : r < 12 ? 0.0f
                      : r < 16 ? std::bit_cast<float>(0x3b000000u + random.next_below(4))
                               : std::bit_cast<float>(0x3b000000u + random.next_below(1 << 20));
    }
  }
  expect_ranks_match<TypeParam>(weights.view(), prompt, position, 0);
}

TYPED_TEST(RankRows, ManyNeighboursInTheLastBitsStillSortExactly) {
  // Falling keys that agree in all but the lowest bits, the worst case for a sort that looks at the high bits
  // first.
  const std::size_t tokens = 3000;
  Matrix<float> weights(tokens, 17, kRowPad);
  for (std::size_t j = 0; j < tokens; ++j) {
    for (std::size_t r = 0; r < 17; ++r) {
      weights(j, r) =
          std::bit_cast<float>(0x39800000u + static_cast<std::uint32_t>((j * (2 * r + 1)) % tokens));
    }
  }
  expect_ranks_match<TypeParam>(weights.view(), 2900, std::vector<TokenIndex>(17, 2999), 0);
}

TYPED_TEST(RankRows, OneTokenIsAllThatIsNeeded) {
  Matrix<float> weights(1, 1, kRowPad);
  weights(0, 0) = 1.0f;
  RankBuffers<TypeParam> got(1, 1);
  rank_rows<TypeParam>(weights.view(), 1, std::vector<TokenIndex>{0}, 0, 0, 1, got.output());
  EXPECT_EQ(got.ranks(0, 0), 0);
  for (std::size_t f = 0; f < kMassFractions.size(); ++f) {
    EXPECT_EQ(got.total[f][0], 1u);
    EXPECT_EQ(got.of_prompt[f][0], 1u);
  }
}

TEST(RankRows, HandWorkedExample) {
  // Weights .1 .4 .1 | .4 with a prompt of three: order 1, 3, 0, 2; half of the mass needs tokens 1 and 3
  // (0.4 < 0.5).
  Matrix<float> weights(4, 1, kRowPad);
  weights(0, 0) = 0.1f, weights(1, 0) = 0.4f, weights(2, 0) = 0.1f, weights(3, 0) = 0.4f;
  RankBuffers<std::uint16_t> got(3, 1);
  rank_rows<std::uint16_t>(weights.view(), 3, std::vector<TokenIndex>{3}, 0, 0, 1, got.output());
  EXPECT_EQ(got.ranks(1, 0), 0);
  EXPECT_EQ(got.ranks(0, 0), 1);
  EXPECT_EQ(got.ranks(2, 0), 2);
  EXPECT_EQ(got.total[0][0], 2u);
  EXPECT_EQ(got.of_prompt[0][0], 1u);
  EXPECT_EQ(got.total[2][0], 4u);
  EXPECT_EQ(got.of_prompt[2][0], 3u);
}

template <typename Rank>
class OverlapCounts : public testing::Test {};
TYPED_TEST_SUITE(OverlapCounts, Ranks);

TYPED_TEST(OverlapCounts, MatchBruteForceWithOneLimitAndWithOnePerSnapshot) {
  for (const std::size_t rows : {1u, 16u, 17u, 48u, 83u}) {
    PeakyShape shape;
    shape.group = 1;
    shape.steps = rows;
    const PeakyHead head(shape);
    const PreparedHead ready(head);
    RankBuffers<TypeParam> ranked(shape.prompt, rows);
    rank_rows<TypeParam>(ready.weights.view(), shape.prompt, head.position, 0, 0, rows, ranked.output());
    const std::vector<TokenIndex> order = shuffled(shape.prompt, rows);
    std::vector<std::uint32_t> many(shape.prompt + 1);
    std::iota(many.begin(), many.end(), 0u);
    for (const std::vector<std::uint32_t>& counts :
         {std::vector<std::uint32_t>{0, 1, 1, 50, 129, 300}, std::vector<std::uint32_t>{77}, many}) {
      for (const int kind : {0, 1, 2, 3}) {  // one limit; the count itself; rising per row; in no order
        Matrix<std::uint32_t> limits(kind == 0 ? 1 : counts.size(), rows, kRowPad);
        for (std::size_t s = 0; s < limits.rows(); ++s) {
          for (std::size_t r = 0; r < rows; ++r) {
            limits(s, r) = static_cast<std::uint32_t>(kind == 0   ? 3 * r + 20
                                                      : kind == 1 ? counts[s]
                                                      : kind == 2 ? counts[s] / (1 + r % 3)
                                                                  : (s * 37 + r * 11) % 310);
          }
        }
        Matrix<std::uint32_t> overlap(counts.size(), rows);
        overlap_counts<TypeParam>(ranked.ranks.view(), order, counts, limits.view(), 0, rows, overlap.view());
        for (std::size_t r = 0; r < rows; ++r) {
          std::vector<std::uint32_t> ranks(shape.prompt);
          for (std::size_t j = 0; j < shape.prompt; ++j) ranks[j] = ranked.ranks(j, r);
          for (std::size_t s = 0; s < counts.size(); ++s) {
            ASSERT_EQ(overlap(s, r),
                      reference::overlap(ranks, order, counts[s], limits(kind == 0 ? 0 : s, r)))
                << "kind " << kind << " row " << r << " count " << counts[s];
          }
        }
      }
    }
  }
}

TYPED_TEST(OverlapCounts, MatchBruteForceWithMoreSnapshotsThanSixteenBitsCanPlace) {
  constexpr std::size_t kPrompt = 1500, kRows = 3;
  Matrix<TypeParam> ranks(kPrompt, kRows, kRowPad);
  for (std::size_t r = 0; r < kRows; ++r) {
    const std::vector<TokenIndex> own = shuffled(kPrompt, r);
    for (std::size_t j = 0; j < kPrompt; ++j) ranks(j, r) = static_cast<TypeParam>(own[j]);
  }
  const std::vector<TokenIndex> order = shuffled(kPrompt, kRows);
  std::vector<std::uint32_t> counts(kPrompt + 1);
  std::iota(counts.begin(), counts.end(), 0u);
  for (const std::uint32_t part : {1u, 2u}) {  // one table for all rows; one for each
    Matrix<std::uint32_t> limits(counts.size(), kRows, kRowPad), overlap(counts.size(), kRows);
    for (std::size_t s = 0; s < counts.size(); ++s)
      for (std::uint32_t r = 0; r < kRows; ++r) limits(s, r) = counts[s] / (part == 1 ? 1 : 1 + r);
    overlap_counts<TypeParam>(ranks.view(), order, counts, limits.view(), 0, kRows, overlap.view());
    for (std::size_t r = 0; r < kRows; ++r) {
      std::vector<std::uint32_t> of_row(kPrompt);
      for (std::size_t j = 0; j < kPrompt; ++j) of_row[j] = ranks(j, r);
      for (std::size_t s = 0; s < counts.size(); s += 7)
        ASSERT_EQ(overlap(s, r), reference::overlap(of_row, order, counts[s], limits(s, r)))
            << "row " << r << " count " << counts[s];
    }
  }
}

TYPED_TEST(OverlapCounts, HiddenTokensNeverCount) {
  Matrix<TypeParam> ranks(3, 1, kRowPad);
  ranks(0, 0) = std::numeric_limits<TypeParam>::max();
  ranks(1, 0) = 0;
  ranks(2, 0) = std::numeric_limits<TypeParam>::max();
  Matrix<std::uint32_t> limits(1, 1, kRowPad), overlap(1, 1);
  limits(0, 0) = std::numeric_limits<std::uint32_t>::max();
  overlap_counts<TypeParam>(ranks.view(), std::vector<TokenIndex>{2, 1, 0}, std::vector<std::uint32_t>{3},
                            limits.view(), 0, 1, overlap.view());
  EXPECT_EQ(overlap(0, 0), 1u);
}

TEST(SortDescending, IsStableForAnyFloats) {
  Philox random(1, 1);
  for (const std::size_t n : {0u, 1u, 2u, 100u, 5000u, 70000u}) {
    std::vector<float> scores(n);
    for (float& score : scores) {
      score = random.next_below(3) == 0 ? 0.0f : normal_number(random);
      if (random.next_below(10) == 0) score = -0.0f;
      if (random.next_below(50) == 0) score = INFINITY;
      if (random.next_below(50) == 0) score = -INFINITY;
    }
    std::vector<TokenIndex> order(n);
    sort_descending(scores, order);
    EXPECT_EQ(order, reference::by_weight(scores, 0, n));
  }
}

}  // namespace
}  // namespace kvsim
