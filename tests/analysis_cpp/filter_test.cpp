// Conditions on columns.
#include "analysis/filter.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/error.h"

namespace kvsim {
namespace {

TEST(Filter, SplitsAlternativesAndConjunctions) {
  const Filter filter = Filter::parse("output_error<0.1 and policy!=random or layer >= 3 && variant ~ 'a b'");
  ASSERT_EQ(filter.alternatives.size(), 2u);
  ASSERT_EQ(filter.alternatives[0].size(), 2u);
  EXPECT_EQ(filter.alternatives[0][0].column, "output_error");
  EXPECT_EQ(filter.alternatives[0][0].op, "<");
  EXPECT_EQ(filter.alternatives[0][0].number, 0.1);
  EXPECT_EQ(filter.alternatives[0][1].text, "random");
  EXPECT_FALSE(filter.alternatives[0][1].number.has_value());
  EXPECT_EQ(filter.alternatives[1][1].text, "a b");
  EXPECT_EQ(filter.columns(), (std::vector<std::string>{"output_error", "policy", "layer", "variant"}));
}

TEST(Filter, TakesSpecsWithBlanksInBracketsAsOneValue) {
  const Filter filter = Filter::parse("variant==ada(score=snapkv(window=32), alpha=0.2) and budget=10%");
  EXPECT_EQ(filter.alternatives[0][0].text, "ada(score=snapkv(window=32), alpha=0.2)");
  EXPECT_EQ(filter.alternatives[0][1].op, "==");
  EXPECT_EQ(filter.alternatives[0][1].text, "10%");
}

TEST(Filter, ComparesNumbersAndNeverAcceptsUndefinedOnes) {
  const auto holds = [](const char* text, double value) {
    return Filter::parse(text).alternatives[0][0].holds(value);
  };
  EXPECT_TRUE(holds("x<=1", 1));
  EXPECT_FALSE(holds("x<1", 1));
  EXPECT_TRUE(holds("x>=1", 1));
  EXPECT_FALSE(holds("x>1", 1));
  EXPECT_TRUE(holds("x=1", 1));
  EXPECT_TRUE(holds("x!=1", 2));
  for (const char* text : {"x<1", "x>1", "x==1", "x!=1"}) EXPECT_FALSE(holds(text, std::nan(""))) << text;
}

TEST(Filter, RefusesWhatItCannotMean) {
  for (const char* text : {"", "x", "x<", "<3", "x<3 y>2", "x=='open", "x<3 and"}) {
    EXPECT_THROW(Filter::parse(text), UserError) << text;
  }
  EXPECT_THROW(Filter::parse("policy<h2o").alternatives[0][0].holds(std::string("h2o")), UserError);
  EXPECT_THROW(Filter::parse("layer==first").alternatives[0][0].holds(3.0), UserError);
}

}  // namespace
}  // namespace kvsim
