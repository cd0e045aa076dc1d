// Budgets as a person writes them.
#include "sim/budget.h"

#include <gtest/gtest.h>

#include "kernels/error.h"

namespace kvsim {
namespace {

std::vector<std::uint32_t> tokens(const std::vector<std::string>& texts, std::uint64_t prompt) {
  std::vector<std::uint32_t> list;
  for (const BudgetPoint& point : budget_points(parse_budgets(texts), prompt)) list.push_back(point.tokens);
  return list;
}

TEST(ParseBudgets, ReadsTokensPercentAndRanges) {
  EXPECT_EQ(tokens({"64..1024*2,10%"}, 1000), (std::vector<std::uint32_t>{64, 100, 128, 256, 512, 1024}));
  EXPECT_EQ(tokens({"5%..20%+5%", "7"}, 200), (std::vector<std::uint32_t>{7, 10, 20, 30, 40}));
  EXPECT_EQ(tokens({"1..5", "4..9+2"}, 100), (std::vector<std::uint32_t>{1, 2, 3, 4, 5, 6, 8}));
}

TEST(ParseBudgets, PercentIsAtLeastOneTokenAndFloors) {
  EXPECT_EQ(tokens({"0.1%"}, 100), (std::vector<std::uint32_t>{1}));
  EXPECT_EQ(tokens({"29%"}, 100), (std::vector<std::uint32_t>{29}));
  EXPECT_EQ(tokens({"33%"}, 10), (std::vector<std::uint32_t>{3}));
}

TEST(ParseBudgets, CurveSpansThePromptInLogSteps) {
  const auto list = tokens({"curve"}, 4096);
  EXPECT_EQ(list.front(), 1u);
  EXPECT_EQ(list.back(), 4096u);
  EXPECT_GT(list.size(), 140u);  // small sizes coincide after rounding
  EXPECT_LE(list.size(), kCurvePoints);
}

TEST(ParseBudgets, RefusesWhatIsNoBudget) {
  for (const char* text : {"0", "-5", "nan", "inf", "1.5", "101%", "", "64..32", "64..128*1", "64..10%", "abc", "64,,128", "1..9+0", "64..1024*nan"})
    EXPECT_THROW(parse_budgets({text}), UserError) << text;
}

TEST(BudgetPoints, KeepsRequestsThatFallTogether) {
  const auto points = budget_points(parse_budgets({"10%", "100"}), 1000);
  ASSERT_EQ(points.size(), 2u);
  EXPECT_EQ(points[0].request, "10%");
  EXPECT_EQ(points[1].request, "100");
}

}  // namespace
}  // namespace kvsim
