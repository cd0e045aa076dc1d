// Distributions: bins, quantiles, joining.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "analysis/packed_distribution.h"
#include "kernels/philox.h"
#include "sim/results.h"

namespace kvsim {
namespace {

Distribution distribution_of(const std::vector<double>& values) {
  Distribution d;
  for (const double value : values) d.add(value);
  d.finish();
  return d;
}

/// Peaky values over nine orders of magnitude, as errors of attention outputs are.
std::vector<double> peaky(std::size_t n, std::uint64_t stream) {
  Philox random(3, stream);
  std::vector<double> values(n);
  for (double& value : values) value = std::exp(-20.0 * random.next_double() * random.next_double());
  return values;
}

TEST(Distribution, QuantilesAreWithinOnePercentOfTheSortedValues) {
  std::vector<double> values = peaky(10000, 1);
  const Distribution d = distribution_of(values);
  std::sort(values.begin(), values.end());
  for (const double q : {0.01, 0.05, 0.5, 0.95, 0.99}) {
    const double exact = values[static_cast<std::size_t>(std::lround(q * 10000)) - 1];
    EXPECT_LE(std::fabs(d.quantile(q) - exact), 0.01 * exact) << q;
    EXPECT_LE(d.quantile(q), exact) << "the lower edge of a bin";
  }
  EXPECT_EQ(d.quantile(0), values.front());
  EXPECT_EQ(d.quantile(1), values.back());
}

TEST(Distribution, BinsAreAtMostOnePercentWideAndContainTheirValues) {
  for (const double value : {1e-300, 3.7e-12, 0.1, 0.999, 1.0, 1.0078, 6144.0, 1e200}) {
    const auto bin = Distribution::bin_of(value);
    EXPECT_LE(Distribution::bin_value(bin), value);
    EXPECT_GT(Distribution::bin_value(bin + 1), value);
    EXPECT_LE(Distribution::bin_value(bin + 1) / Distribution::bin_value(bin), 1.01);
    EXPECT_EQ(Distribution::bin_of(-value), -bin);
  }
  EXPECT_EQ(Distribution::bin_of(0.0), 0);
  EXPECT_EQ(Distribution::bin_of(-0.0), 0);
}

TEST(Distribution, ValuesThatAreAllEqualComeBackExactly) {
  const Distribution d = distribution_of(std::vector<double>(17, 0.3));
  for (const double q : {0.01, 0.5, 0.99}) EXPECT_EQ(d.quantile(q), 0.3);
}

TEST(Distribution, RanksOfRoundCountsAreNotShiftedByRounding) {
  std::vector<double> values(140);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i + 1);
  // 0.05 * 140 is 7.000000000000001 in doubles; the 7th value is meant.
  EXPECT_EQ(distribution_of(values).quantile(0.05), 7.0);
}

TEST(Distribution, JoinedPartsGiveTheSameQuantilesAsTheWhole) {
  const std::vector<double> values = peaky(9000, 2);
  Distribution joined;
  for (std::size_t part = 0; part < 3; ++part) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(part * 3000);
    joined.merge(distribution_of({first, first + 3000}));
  }
  const Distribution whole = distribution_of(values);
  EXPECT_EQ(joined.bins, whole.bins);
  EXPECT_EQ(joined.count, whole.count);
  EXPECT_EQ(joined.min, whole.min);
  EXPECT_EQ(joined.max, whole.max);
  EXPECT_NEAR(joined.sum, whole.sum, 1e-9 * whole.sum);
}

TEST(Distribution, NanIsLeftOutAndAnEmptyOneHasNoQuantile) {
  Distribution d;
  d.add(std::numeric_limits<double>::quiet_NaN());
  d.finish();
  EXPECT_EQ(d.count, 0u);
  EXPECT_TRUE(std::isnan(d.quantile(0.5)));
}

TEST(Distribution, NegativeAndZeroValuesSortBelowPositiveOnes) {
  const Distribution d = distribution_of({0.5, -0.5, 0.0, -0.25, 0.25});
  EXPECT_EQ(d.quantile(0.2), -0.5);
  EXPECT_EQ(d.quantile(0.5), 0.0);
  EXPECT_EQ(d.quantile(0.8), 0.25);
}

TEST(PackedDistribution, UnpacksToTheSameBits) {
  std::vector<double> values = peaky(3000, 4);
  values.push_back(-1.5);
  const Distribution d = distribution_of(values);
  std::vector<std::uint8_t> bytes;
  pack(d, bytes);
  pack(Distribution{}, bytes);
  std::span<const std::uint8_t> rest(bytes);
  Distribution back, empty;
  ASSERT_TRUE(unpack(rest, back));
  ASSERT_TRUE(unpack(rest, empty));
  EXPECT_TRUE(rest.empty());
  EXPECT_EQ(back.bins, d.bins);
  EXPECT_EQ(std::bit_cast<std::uint64_t>(back.sum), std::bit_cast<std::uint64_t>(d.sum));
  EXPECT_EQ(back.min, -1.5);
  EXPECT_EQ(empty.count, 0u);
}

TEST(PackedDistribution, CutBytesAreRefused) {
  std::vector<std::uint8_t> bytes;
  pack(distribution_of({1.0, 2.0, 3.0}), bytes);
  for (std::size_t keep = 0; keep < bytes.size(); ++keep) {
    std::span<const std::uint8_t> rest(bytes.data(), keep);
    Distribution back;
    EXPECT_FALSE(unpack(rest, back)) << keep;
  }
}

}  // namespace
}  // namespace kvsim
