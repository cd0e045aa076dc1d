// Conversions of 16-bit floats against their bit-level definitions.
#include "kernels/dtype.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/error.h"
#include "kernels/philox.h"

namespace kvsim {
namespace {

/// IEEE 754 binary16, from its definition.
double half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

std::vector<Fp16> all_halves() {
  std::vector<Fp16> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i].bits = static_cast<std::uint16_t>(i);
  return all;
}

/// The nearest 16-bit value by search over the ordered positive values, ties to the even code.
std::uint16_t nearest_half(float value) {
  const double target = std::fabs(static_cast<double>(value));
  std::uint16_t low = 0;
  while (low < 0x7C00 && half_value(static_cast<std::uint16_t>(low + 1)) <= target) ++low;
  const double below = half_value(low);
  const double above = low + 1 == 0x7C00 ? 65536.0 : half_value(static_cast<std::uint16_t>(low + 1));
  const bool up = low < 0x7C00 &&
                  (target - below > above - target || (target - below == above - target && (low & 1) != 0));
  return static_cast<std::uint16_t>((low + (up ? 1 : 0)) | (std::signbit(value) ? 0x8000 : 0));
}

/// Runs the cases below once for every instruction set that this machine has.
class Dtype : public ::testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

std::vector<std::int64_t> instruction_sets() {
  std::vector<std::int64_t> sets;
  for (std::int64_t all = hwy::SupportedTargets(); all != 0; all &= all - 1) sets.push_back(all & -all);
  return sets;
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, Dtype, ::testing::ValuesIn(instruction_sets()),
                         [](const auto& set) { return std::string(hwy::TargetName(set.param)); });

TEST_P(Dtype, WidensEveryHalfExactly) {
  const auto in = all_halves();
  std::vector<float> out(in.size());
  to_float(in, out);
  for (std::size_t i = 0; i < in.size(); ++i) {
    const double want = half_value(in[i].bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(out[i])) << i;
    } else {
      ASSERT_EQ(static_cast<double>(out[i]), want) << i;
      ASSERT_EQ(std::signbit(out[i]), (i & 0x8000) != 0) << i;
    }
  }
}

TEST_P(Dtype, WidensEveryBfloatToItsBits) {
  std::vector<Bf16> in(65536);
  for (std::size_t i = 0; i < in.size(); ++i) in[i].bits = static_cast<std::uint16_t>(i);
  std::vector<float> out(in.size());
  to_float(in, out);
  for (std::size_t i = 0; i < in.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), static_cast<std::uint32_t>(i) << 16) << i;
  }
}

TEST_P(Dtype, NarrowingAWidenedValueGivesItsBitsBack) {
  const auto halves = all_halves();
  std::vector<float> wide(halves.size());
  to_float(halves, wide);
  std::vector<Fp16> back(halves.size());
  from_float(wide, back);
  for (std::size_t i = 0; i < halves.size(); ++i) {
    if (!std::isnan(wide[i])) {
      ASSERT_EQ(back[i].bits, halves[i].bits);
    } else {
      ASSERT_TRUE(std::isnan(half_value(back[i].bits))) << i;
    }
  }
}

TEST_P(Dtype, RoundsHalvesToNearestEven) {
  std::vector<float> in{0.0f,     -0.0f,     1.0f,       1.0f + 0x1p-11f, 1.0f + 3 * 0x1p-11f,
                        65504.0f, 65519.99f, 65520.0f,   1e10f,           -1e10f,
                        0x1p-24f, 0x1p-25f,  0x1.8p-25f, 0x1.7p-15f,      3e-6f,
                        -6.1e-5f, INFINITY,  -INFINITY};
  Philox random(7, 1);
  for (int i = 0; i < 300; ++i) {
    in.push_back(static_cast<float>((random.next_double() - 0.5) *
                                    std::ldexp(1.0, static_cast<int>(random.next_below(40)) - 25)));
  }
  std::vector<Fp16> out(in.size());
  from_float(in, out);
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i].bits, nearest_half(in[i])) << in[i];
}

TEST_P(Dtype, RoundsBfloatsToNearestEvenAndKeepsNan) {
  const std::vector<std::uint32_t> bits{0x3F800000u, 0x3F808000u, 0x3F818000u, 0x3F808001u,
                                        0x7F7FFFFFu, 0x7F800000u, 0x7FC00001u, 0x7F800001u,
                                        0xFF800000u, 0x80000001u, 0x00008000u};
  // Halfway cases go to the even code; the largest float overflows to infinity; a NaN of low bits only stays
  // NaN.
  const std::vector<std::uint16_t> want{0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80,
                                        0x7FC0, 0x7FC0, 0xFF80, 0x8000, 0x0000};
  std::vector<float> in;
  for (const auto b : bits) in.push_back(std::bit_cast<float>(b));
  std::vector<Bf16> out(in.size());
  from_float(in, out);
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_EQ(out[i].bits, want[i]) << i;
}

TEST_P(Dtype, TreatsEveryRemainderLengthAlike) {
  const auto all = all_halves();
  for (std::size_t n = 0; n < 70; ++n) {
    const std::span<const Fp16> in(all.data() + 0x3B00, n);
    std::vector<float> out(n + 1, 42.0f);
    to_float(in, std::span(out).first(n));
    for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(static_cast<double>(out[i]), half_value(in[i].bits));
    ASSERT_EQ(out[n], 42.0f) << "wrote behind the end";
  }
}

TEST_P(Dtype, RefusesUnequalSizes) {
  std::vector<Fp16> in(3);
  std::vector<float> out(2);
  EXPECT_THROW(to_float(in, out), InternalError);
}

TEST_P(Dtype, FindsASingleBadValueAnywhere) {
  for (const std::size_t n : {std::size_t{1}, std::size_t{31}, std::size_t{64}, std::size_t{100}}) {
    std::vector<float> values(n, std::numeric_limits<float>::max());
    EXPECT_TRUE(all_finite(values));
    for (std::size_t i = 0; i < n; ++i) {
      for (const float bad : {NAN, INFINITY, -INFINITY}) {
        values[i] = bad;
        EXPECT_FALSE(all_finite(values)) << n << " " << i;
        values[i] = -0.0f;
      }
    }
  }
  EXPECT_TRUE(all_finite({}));
}

}  // namespace
}  // namespace kvsim
