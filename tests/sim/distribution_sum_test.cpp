// Joining distributions in one table gives what joining them in turn gives.
#include "sim/distribution_sum.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/philox.h"

namespace kvsim {
namespace {

Distribution of_values(std::uint64_t stream, bool strange) {
  Philox random(7, stream);
  Distribution distribution;
  for (int i = 0; i < 500; ++i) {
    const double uniform = static_cast<double>(random.next_u32()) / 4294967296.0;
    distribution.add(std::exp(20.0 * (uniform - 0.5)));
  }
  distribution.add(0.0);
  distribution.add(0.0);
  if (strange) {
    for (const double value : {-1.5, -1e-3, 1e-300, 1e300, -1.5, 5e-324}) distribution.add(value);
  }
  distribution.finish();
  return distribution;
}

void expect_same(const Distribution& a, const Distribution& b) {
  EXPECT_EQ(a.count, b.count);
  EXPECT_EQ(a.sum, b.sum);
  EXPECT_EQ(a.min, b.min);
  EXPECT_EQ(a.max, b.max);
  EXPECT_EQ(a.bins, b.bins);
}

TEST(DistributionSum, IsThatOfMergingInTurn) {
  DistributionSum sum;
  for (const bool strange : {false, true, false}) {  // and it is empty between uses
    Distribution merged;
    for (std::uint64_t stream = 0; stream < 5; ++stream) {
      const Distribution one = of_values(stream, strange && stream % 2 == 1);
      merged.merge(one);
      sum.add(one);
    }
    expect_same(sum.take(), merged);
  }
}

TEST(DistributionSum, OfNothingIsEmpty) {
  DistributionSum sum;
  sum.add(Distribution());
  expect_same(sum.take(), Distribution());
}

}  // namespace
}  // namespace kvsim
