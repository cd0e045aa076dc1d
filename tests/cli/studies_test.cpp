// kvsim trace lookahead, and the runs that analysis/studies prepares, on the shipped recording.
#include <gtest/gtest.h>

#include <string>

#include "sim/cli/command.h"
#include "tests/cli/program.h"
#include "traces/h5/file.h"

namespace kvsim::test {
namespace {

const std::string kSource = KVSIM_SOURCE_DIR;
const std::string kTrace = kSource + "/tests/data/smollm2-harbour.h5";

TEST(TraceLookahead, ReportsTokensCostAndLikeness) {
  const Folder folder;
  const Outcome outcome =
      shell(fmt::format("kvsim trace lookahead {} --window 8 --out {}", kTrace, folder / "out"));
  ASSERT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_NE(outcome.text.find("snapkv-128"), std::string::npos);
  EXPECT_NE(outcome.text.find("window-8, all pairs"), std::string::npos);
  const h5::File file = h5::File::open(folder / "out/lookahead.h5");
  EXPECT_EQ(file.string_attribute("format"), "kvsim-lookahead");
  EXPECT_EQ(file.read_strings("sources/name"), (std::vector<std::string>{"snapkv-128", "window-8"}));
  const auto source = file.read_column<std::int32_t>("alignment/source");
  const auto head = file.read_column<std::int64_t>("alignment/query_head");
  const auto distance = file.read_column<std::int64_t>("alignment/distance");
  const auto cosine = file.read_column<double>("alignment/cosine");
  const auto error = file.read_column<double>("alignment/logit_error");
  // The first pseudo token is the model's own first token, so in layer 0 its queries are the true ones.
  std::size_t same_place = 0;
  double same = 0, all = 0;
  for (std::size_t i = 0; i < source.size(); ++i) {
    EXPECT_GE(cosine[i], -1.0001);
    EXPECT_LE(cosine[i], 1.0001);
    EXPECT_GE(error[i], 0.0);
    if (source[i] != 0) continue;
    all += error[i];
    same += distance[i] == 0 ? error[i] : 0;
    same_place += distance[i] == 0 ? 1 : 0;
    EXPECT_LT(head[i], 9);
  }
  EXPECT_EQ(same_place, 8u * 9u);  // layers x query heads
  EXPECT_LT(same / static_cast<double>(same_place),
            all / static_cast<double>(std::count(source.begin(), source.end(), 0)));
  EXPECT_EQ(lines(read(folder / "out/passes.csv")), 2u);
  EXPECT_EQ(lines(read(folder / "out/alignment.csv")), source.size() + 1);
}

TEST(TraceLookahead, GivesTheSameBytesForAnyNumberOfThreads) {
  const Folder folder;
  for (const int threads : {1, 3})
    ASSERT_EQ(shell(fmt::format("kvsim trace lookahead {} --threads {} --out {}/{}", kTrace, threads,
                                folder / "out", threads))
                  .code,
              0);
  const std::string one = read(folder / "out/1/alignment.csv");
  EXPECT_GT(lines(one), 1000u);
  EXPECT_EQ(one, read(folder / "out/3/alignment.csv"));
}

TEST(TraceLookahead, NamesTheOptionThatATraceLacks) {
  const Folder folder;
  const Outcome none = shell("kvsim trace lookahead " + small_trace(folder));
  EXPECT_EQ(none.code, 2);
  EXPECT_NE(none.text.find("--lookahead 8 --lookahead-budget"), std::string::npos) << none.text;
  const Outcome window = shell(fmt::format("kvsim trace lookahead {} --window 900", kTrace));
  EXPECT_EQ(window.code, 2);
  EXPECT_NE(window.text.find("--queries window:900"), std::string::npos) << window.text;
  EXPECT_EQ(shell("kvsim trace lookahead").code, 2);
}

TEST(Studies, AllPromptHoldsMoreThanAHundredVariantsOverSixteenBudgets) {
  const Outcome plan = shell(
      fmt::format("kvsim plan {} --no-bounds --config {}/analysis/studies/all-prompt.ini", kTrace, kSource));
  ASSERT_EQ(plan.code, kSomeRefused) << plan.text;  // the shipped recording does not hold all prompt queries
  const std::size_t at = plan.text.find("variants  ");
  ASSERT_NE(at, std::string::npos) << plan.text;
  EXPECT_GT(std::stoi(plan.text.substr(at + 10)), 100);
  EXPECT_NE(plan.text.find("budgets   16:"), std::string::npos) << plan.text;
}

TEST(Studies, ConsistencyRunsOnTheShippedRecording) {
  const Folder folder;
  const Outcome run = shell(fmt::format(
      "kvsim run {} --config {}/analysis/studies/consistency.ini --budget 64,128 --quiet --out {}", kTrace,
      kSource, folder / "run"));
  ASSERT_EQ(run.code, 0) << run.text;
  const h5::File file = h5::File::open(folder / "run/results.h5");
  EXPECT_TRUE(file.has_dataset("detail/query_consistency"));
  const auto truth = file.read_column<double>("rows/score_truth");
  const auto variant = file.read_column<std::int32_t>("rows/variant");
  double sum = 0, count = 0;
  for (std::size_t i = 0; i < truth.size(); ++i) {
    if (variant[i] != 0) continue;
    EXPECT_LE(std::abs(truth[i]), 1.0);
    sum += truth[i];
    count += 1;
  }
  EXPECT_GT(sum / count, 0.2);  // snapkv(window=8); chance is 0
}

}  // namespace
}  // namespace kvsim::test
