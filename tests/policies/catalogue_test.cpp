// The table of policies, its copy in the policies page, and the advice on what to record.
#include "policies/catalogue.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "kernels/error.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

TEST(PolicyTable, StandsInThePoliciesPageAsItIsGenerated) {
  std::ifstream file(KVSIM_SOURCE_DIR "/policies/README.md");
  std::stringstream page;
  page << file.rdbuf();
  ASSERT_FALSE(page.str().empty());
  EXPECT_NE(page.str().find(policy_table(TableFormat::markdown, false)), std::string::npos)
      << "copy the output of 'kvsim list policies --format md' into policies/README.md";
}

TEST(FormatTable, AlignsTextAndEscapesMarkdown) {
  EXPECT_EQ(format_table({{"a", "b"}, {"long", "x"}}, TableFormat::text), "a     b\nlong  x\n");
  EXPECT_EQ(format_table({{"a"}, {"x|y"}}, TableFormat::markdown), "| a |\n| --- |\n| x\\|y |\n");
}

TEST(PolicyPage, NamesParametersAndWhatToRecord) {
  const std::string page = policy_page("snapkv");
  EXPECT_NE(page.find("snapkv(window=64,kernel=5,pool=avg,group=mean,unit=kv)"), std::string::npos) << page;
  EXPECT_NE(page.find("--queries window:64"), std::string::npos) << page;
  EXPECT_NE(page.find("arXiv:2404.14469"), std::string::npos) << page;
  EXPECT_NE(policy_page("h2o").find("--stats"), std::string::npos);
  EXPECT_NE(policy_page("knorm").find("nothing special"), std::string::npos);
  EXPECT_THROW(policy_page("snapvk"), UserError);
}

TEST(NeedsText, NamesEveryNeed) {
  EXPECT_EQ(needs_text(Need::none), "positions");
  EXPECT_EQ(needs_text(Need::keys | Need::values | Need::window_queries | Need::prompt_attention |
                       Need::query_stats | Need::decode_queries),
            "keys, values, window queries, prompt attention, query statistics, decode queries");
}

}  // namespace
}  // namespace kvsim
