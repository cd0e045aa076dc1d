// Tables as text.
#include "analysis/text_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kvsim {
namespace {

const TextTable kTable{{"variant", "error"}, {false, true}, {{"h2o()", "0.5"}, {"α,β|γ", "0.125"}}};

TEST(TextTable, AlignsByCharactersNotBytes) {
  EXPECT_EQ(kTable.render(TableFormat::table), "variant  error\nh2o()      0.5\nα,β|γ    0.125\n");
}

TEST(TextTable, WritesMarkdownWithBarsEscaped) {
  EXPECT_EQ(kTable.render(TableFormat::markdown),
            "| variant | error |\n|---------|------:|\n| h2o()   |   0.5 |\n| α,β\\|γ  | 0.125 |\n");
}

TEST(TextTable, QuotesCsvFields) {
  EXPECT_EQ(kTable.render(TableFormat::csv), "variant,error\nh2o(),0.5\n\"α,β|γ\",0.125\n");
}

TEST(ShortNumber, ShowsFourDigitsAndADashForUndefined) {
  EXPECT_EQ(short_number(0.123456), "0.1235");
  EXPECT_EQ(short_number(1e-9), "1e-09");
  EXPECT_EQ(short_number(std::nan("")), "-");
  EXPECT_EQ(exact_number(1.0 / 3), "0.3333333333333333");
  EXPECT_EQ(exact_number(std::nan("")), "");
}

}  // namespace
}  // namespace kvsim
