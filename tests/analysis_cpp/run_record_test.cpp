// The plan of a run: stored, compared, extended.
#include "analysis/run_record.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/analysis_cpp/sample_run.h"

namespace kvsim {
namespace {

using test::sample_record;
using test::TemporaryFolder;

TEST(RunRecord, ComesBackAsItWasWritten) {
  const TemporaryFolder folder;
  RunRecord record = sample_record();
  record.refusals.push_back({1, 2, "its query recording is too short"});
  EXPECT_FALSE(has_description(folder.path()));
  write_description(folder.path(), record);
  const RunRecord back = read_description(folder.path());
  EXPECT_TRUE(differences(record, back).empty());
  EXPECT_EQ(back.units, record.units);
  EXPECT_EQ(back.description.traces[1].budgets[0].request, "5%");
  EXPECT_EQ(back.description.traces[0].digest_key, 0xAAu);
  EXPECT_TRUE(back.description.variants[0].automatic);
  EXPECT_EQ(back.description.provenance.config, "seed = 7\n");
  ASSERT_EQ(back.refusals.size(), 1u);
  EXPECT_EQ(back.refusals[0].message, "its query recording is too short");
}

TEST(RunRecord, RefusesTwoVariantsWithOneLabel) {
  const TemporaryFolder folder;
  RunRecord record = sample_record();
  record.description.variants[2].spec = "h2o()";
  EXPECT_THROW(write_description(folder.path(), record), UserError);
}

TEST(RunRecord, ListsWhatChangedBetweenTwoPlans) {
  const RunRecord before = sample_record();
  RunRecord now = before;
  now.description.variants[1].spec = "tova()";
  now.description.traces[0].budgets.pop_back();
  now.description.traces[1].digest_key = 5;
  now.description.provenance.threads = 64;
  const auto lines = differences(before, now);
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_EQ(lines[0], "budget 2048 (2048 tokens) of trace essay is gone");
  EXPECT_NE(lines[1].find("another recording"), std::string::npos);
  EXPECT_EQ(lines[2], "policy tova() is new");
  EXPECT_EQ(lines[3], "policy h2o() is gone");
}

TEST(RunRecord, ExtendsByVariantsBudgetsAndTraces) {
  const RunRecord before = sample_record();
  RunRecord now = before;
  now.description.variants = {{"0000000000000004", "tova", "tova()", "", true, false, false},
                              before.description.variants[1]};
  now.description.traces.erase(now.description.traces.begin());
  now.description.traces[0].budgets = {{"256", 256}};
  now.units = {{0, 1}, {0, 2}};
  now.refusals = {{0, 0, "no"}};
  const RunRecord joined = extended(before, now);
  ASSERT_EQ(joined.description.variants.size(), 4u);
  EXPECT_EQ(joined.description.variants[3].spec, "tova()");
  ASSERT_EQ(joined.description.traces[1].budgets.size(), 4u);
  EXPECT_EQ(joined.description.traces[1].budgets[2].tokens, 256u);
  EXPECT_EQ(joined.units, (std::vector<UnitId>{{0, 0}, {0, 3}, {1, 1}, {1, 2}}));
  ASSERT_EQ(joined.refusals.size(), 1u);
  EXPECT_EQ(joined.refusals[0].trace, 1u);
  EXPECT_EQ(joined.refusals[0].variant, 3u);
  now.description.traces[0].digest_key = 99;
  EXPECT_THROW(extended(before, now), UserError);
}

}  // namespace
}  // namespace kvsim
