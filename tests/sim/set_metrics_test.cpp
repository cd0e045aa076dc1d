// Set metrics on worked examples.
#include "sim/set_metrics.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvsim {
namespace {

// Worked example G0 of the policy reference: mean decode attention, kept {0,1,2,9}, oracle {0,1,2,5} (tie 1/9 to 1).
const std::vector<float> kMean{.35f, .05f, .20f, .02f, .01f, .25f, .03f, .01f, .03f, .05f};

UnitSelection kept(std::vector<TokenIndex> order, std::vector<std::uint32_t> counts, std::size_t protected_count) {
  UnitSelection unit;
  unit.order = std::move(order);
  unit.counts = std::move(counts);
  unit.protected_count = protected_count;
  unit.sort_counts();
  return unit;
}

TEST(SetMetrics, MatchesTheWorkedExample) {
  const OracleOrder oracle(kMean);
  EXPECT_EQ(std::vector<TokenIndex>(oracle.order.begin(), oracle.order.begin() + 4), (std::vector<TokenIndex>{0, 5, 2, 1}));
  const SetMetrics m = set_metrics(kept({9, 2, 1, 0, 3, 4, 5, 6, 7, 8}, {4, 10}, 0), oracle, {}, {});
  EXPECT_DOUBLE_EQ(m.consistency[0], .75);
  EXPECT_DOUBLE_EQ(m.jaccard[0], .6);
  EXPECT_NEAR(m.mass_ratio[0], .764706, 1e-6);
  EXPECT_EQ(m.consistency[1], 1.0);
  EXPECT_NEAR(m.mass_ratio[1], 1.0, 1e-12);
  EXPECT_TRUE(std::isnan(m.window_consistency[0]));
  EXPECT_TRUE(std::isnan(m.evidence[0]));
}

TEST(SetMetrics, FreeConsistencyLeavesProtectedPositionsOut) {
  // Protected 9 and 0. Free kept at n = 4: {1, 2}; free oracle order 5, 2, 1, ...: its best two are {5, 2}.
  const SetMetrics m = set_metrics(kept({9, 0, 1, 2, 3, 4, 5, 6, 7, 8}, {1, 2, 4, 10}, 2), OracleOrder(kMean), {}, {});
  EXPECT_TRUE(std::isnan(m.free_consistency[0]));
  EXPECT_TRUE(std::isnan(m.free_consistency[1]));
  EXPECT_DOUBLE_EQ(m.free_consistency[2], .5);
  EXPECT_DOUBLE_EQ(m.free_corrected[2], (.5 - .25) / .75);  // two of eight free positions: chance gives a quarter
  EXPECT_EQ(m.free_consistency[3], 1.0);
  EXPECT_TRUE(std::isnan(m.free_corrected[3]));
}

TEST(SetMetrics, WindowConsistencyComparesWithHindsight) {
  const std::vector<TokenIndex> hindsight{9, 0, 2, 1, 5, 3, 4, 6, 7, 8};
  const SetMetrics m = set_metrics(kept({9, 0, 1, 5, 3, 2, 4, 6, 7, 8}, {3, 4, 5}, 2), OracleOrder(kMean), hindsight, {});
  EXPECT_DOUBLE_EQ(m.window_consistency[0], 0.0);        // {1} against {2}
  EXPECT_DOUBLE_EQ(m.window_consistency[1], 0.5);        // {1,5} against {2,1}
  EXPECT_DOUBLE_EQ(m.window_consistency[2], 2.0 / 3.0);  // {1,5,3} against {2,1,5}
}

TEST(SetMetrics, CountsNeedNotAscend) {
  const OracleOrder oracle(kMean);
  const std::vector<TokenIndex> order{9, 2, 1, 0, 3, 4, 5, 6, 7, 8};
  const SetMetrics up = set_metrics(kept(order, {3, 5}, 1), oracle, order, {});
  const SetMetrics down = set_metrics(kept(order, {5, 3}, 1), oracle, order, {});
  EXPECT_EQ(up.consistency[0], down.consistency[1]);
  EXPECT_EQ(up.consistency[1], down.consistency[0]);
  EXPECT_EQ(up.mass_ratio[1], down.mass_ratio[0]);
  EXPECT_EQ(up.free_consistency[0], down.free_consistency[1]);
  EXPECT_NE(up.free_consistency[0], up.free_consistency[1]);
}

TEST(SetMetrics, EvidenceCountsMarkedTokensOnce) {
  const std::vector<std::pair<std::uint32_t, std::uint32_t>> evidence{{2, 5}, {4, 6}};  // tokens 2, 3, 4, 5
  const SetMetrics m = set_metrics(kept({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, {2, 3, 10}, 0), OracleOrder(kMean), {}, evidence);
  EXPECT_DOUBLE_EQ(m.evidence[0], 0.0);
  EXPECT_DOUBLE_EQ(m.evidence[1], 0.25);
  EXPECT_DOUBLE_EQ(m.evidence[2], 1.0);
}

TEST(Overlaps, EqualsBruteForceForEverySize) {
  const std::vector<TokenIndex> a{3, 1, 4, 0, 2}, b{2, 4, 1, 3, 0};
  const auto both = overlaps(a, places_in(b), std::vector<std::uint32_t>{0, 1, 2, 3, 4, 5});
  EXPECT_EQ(both, (std::vector<std::uint64_t>{0, 0, 0, 2, 3, 5}));
}

}  // namespace
}  // namespace kvsim
