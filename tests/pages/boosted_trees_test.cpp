// Boosted trees learn what they should, and LRB and the label predictor are better than nothing.
#include "policies/paging/boosted_trees.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/pages/page_run.h"

namespace kvsim::test {
namespace {

TEST(BoostedTrees, LearnAStepAndAnInteraction) {
  Philox philox(41, 1);
  constexpr std::size_t kRows = 4000;
  Matrix<float> features(kRows, 4);
  std::vector<float> targets(kRows);
  double variance = 0;
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t f = 0; f < 4; ++f) features(r, f) = static_cast<float>(philox.next_double());
    targets[r] = (features(r, 0) > 0.5f ? 2.0f : 0.0f) +
                 (features(r, 1) > 0.3f && features(r, 2) > 0.6f ? 3.0f : 0.0f);
    variance += targets[r] * targets[r] / kRows;
  }
  PhiloxSource random(1, 1);
  BoostingOptions options;
  options.trees = 100;
  const BoostedTrees trees = BoostedTrees::fit(features.view(), targets, options, random);
  double error = 0;
  for (std::size_t r = 0; r < kRows; ++r) {
    const double difference = trees.predict({features.row(r), 4}) - static_cast<double>(targets[r]);
    error += difference * difference / kRows;
  }
  EXPECT_LT(error, 0.01 * variance);
}

TEST(BoostedTrees, ConstantTargetsAndAbsentFeatures) {
  Matrix<float> features(50, 2);
  for (std::size_t r = 0; r < 50; ++r)
    features(r, 0) = r % 2 == 0 ? std::nanf("") : std::numeric_limits<float>::infinity();
  const std::vector<float> targets(50, 3.0f);
  PhiloxSource random(1, 1);
  EXPECT_NEAR(BoostedTrees::fit(features.view(), targets, {}, random).predict({features.row(0), 2}), 3.0,
              1e-9);
}

/// Some pages come in a regular cycle, the others once: what has a rhythm should be kept.
Sequence rhythm() {
  Sequence s;
  Page fresh = 40;
  for (std::uint32_t t = 0; t < 60000; ++t) s.pages.push_back(t % 3 == 0 ? (t / 3) % 40 : fresh++);
  return s;
}

TEST(Lrb, LearnsToDropPagesThatComeOnce) {
  const Sequence s = rhythm();
  EXPECT_EQ(misses("lru", s, 60), 60000u);
  // 40000 pages come once. A third of the rest may be lost before the first training.
  EXPECT_LT(misses("lrb(batch=2048)", s, 60), 47000u);
  EXPECT_EQ(misses("lrb(batch=2048)", s, 60), misses("lrb(batch=2048)", s, 60));
}

TEST(Gbm, FollowsBeladyAfterItsTraining) {
  const Sequence s = rhythm();
  EXPECT_LT(misses("follow_labels(predictor=gbm)", s, 60), 50000u);
  EXPECT_LT(misses("guard(base=follow_labels(predictor=gbm))", s, 60), 60000u);
}

}  // namespace
}  // namespace kvsim::test
