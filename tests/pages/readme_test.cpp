// The tables of policies/paging/README.md are what the program prints.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "sim/cli/pages_commands.h"

namespace kvsim::test {
namespace {

TEST(PagesReadme, HoldsTheGeneratedTables) {
  std::ostringstream text;
  text << std::ifstream(KVSIM_SOURCE_DIR "/policies/paging/README.md").rdbuf();
  // To mend: kvsim pages list policies --format md, kvsim pages list predictors --format md.
  EXPECT_NE(text.str().find(page_policy_table(true)), std::string::npos) << page_policy_table(true);
  EXPECT_NE(text.str().find(predictor_table(true)), std::string::npos) << predictor_table(true);
}

}  // namespace
}  // namespace kvsim::test
