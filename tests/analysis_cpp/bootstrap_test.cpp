// Intervals over traces.
#include "analysis/bootstrap.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/philox.h"

namespace kvsim {
namespace {

TEST(Bootstrap, GivesTheSameIntervalForTheSameSeed) {
  const std::vector<double> values{0.113, 0.472, 0.359, 0.811, 0.204, 0.637, 0.528, 0.043, 0.296, 0.781};
  Bootstrap first(7), second(7), other(8);
  // Another question in between must not move the draws.
  second.mean(std::vector<double>{1, 2, 3});
  const Estimate a = first.mean(values), b = second.mean(values), c = other.mean(values);
  EXPECT_EQ(a.low, b.low);
  EXPECT_EQ(a.high, b.high);
  EXPECT_NE(a.low, c.low);
  EXPECT_DOUBLE_EQ(a.mean, 0.4244);
  EXPECT_LT(a.low, a.mean);
  EXPECT_GT(a.high, a.mean);
}

TEST(Bootstrap, HasNoIntervalForOneValueAndNoMeanForNone) {
  Bootstrap bootstrap(0);
  const Estimate one = bootstrap.mean(std::vector<double>{0.25});
  EXPECT_EQ(one.mean, 0.25);
  EXPECT_TRUE(std::isnan(one.low));
  EXPECT_TRUE(std::isnan(one.high));
  EXPECT_TRUE(std::isnan(bootstrap.mean(std::vector<double>{}).mean));
}

TEST(Bootstrap, CoversTheTrueMeanAboutAsOftenAsItSays) {
  // 300 samples of 40 uniform numbers: a 95% percentile interval covers 0.5 in 92 to 98% of them (binomial, 3
  // sigma, and the known slight undercoverage of the percentile method).
  Bootstrap bootstrap(1, 500);
  int covered = 0;
  for (std::uint64_t sample = 0; sample < 300; ++sample) {
    Philox random(11, sample);
    std::vector<double> values(40);
    for (double& value : values) value = random.next_double();
    const Estimate estimate = bootstrap.mean(values);
    covered += estimate.low <= 0.5 && 0.5 <= estimate.high;
  }
  EXPECT_GE(covered, 270);
  EXPECT_LE(covered, 297);
}

TEST(Bootstrap, OfTwoValuesReachesFromOneToTheOther) {
  Bootstrap bootstrap(3);
  const Estimate estimate = bootstrap.mean(std::vector<double>{1, 2});
  EXPECT_EQ(estimate.low, 1);
  EXPECT_EQ(estimate.high, 2);
}

}  // namespace
}  // namespace kvsim
