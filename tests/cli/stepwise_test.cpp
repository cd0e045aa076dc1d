// Decode-time policies as a user meets them: beside prompt-time ones, the same for any threads, and what is refused.
#include <algorithm>

#include "tests/cli/program.h"

namespace kvsim::test {
namespace {

const std::string kBoth = " --policy decode:h2o --policy h2o --policy 'decode:streaming_llm(sinks={2,4})' --policy 'corm(window=16,recent=16)' --budget 24,64,200,400 --quiet ";

TEST(StepwiseRun, StandsBesidePromptTimePoliciesInOneTable) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  const Outcome run = shell("kvsim run " + trace + kBoth + "--save kept --detail steps --out " + out);
  ASSERT_EQ(run.code, 0) << run.text;
  const std::string rows = read(out + "/results.csv");
  // 3 layers x 2 KV heads x (5 + 4 references) variants x 4 budgets, and the header
  EXPECT_EQ(lines(rows), 3u * 2 * 9 * 4 + 1);
  EXPECT_NE(rows.find(",decode:h2o,"), std::string::npos);
  EXPECT_NE(rows.find(",h2o,"), std::string::npos);
  EXPECT_NE(rows.find(",decode:corm,"), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(out + "/kept.h5"));
}

TEST(StepwiseRun, GivesTheSameBytesForThreadsShardsAndMemory) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  const auto results = [&](const std::string& options, const std::string& out) {
    const Outcome run = shell("kvsim run " + trace + kBoth + options + " --out " + out);
    EXPECT_EQ(run.code, 0) << run.text;
    return read(out + "/results.csv");
  };
  const std::string one = results("--threads 1", folder / "one");
  EXPECT_EQ(results("--threads 3", folder / "many"), one);
  EXPECT_EQ(results("--memory 104M", folder / "tight"), one);
  for (int i = 1; i <= 2; ++i) EXPECT_EQ(shell(fmt::format("kvsim run {} {} --shard {}/2 --out {}", trace, kBoth, i, folder / fmt::format("s{}", i))).code, 0);
  EXPECT_EQ(shell(fmt::format("kvsim merge {} {} --out {}", folder / "s1", folder / "s2", folder / "merged")).code, 0);
  EXPECT_EQ(read(folder / "merged/results.csv"), one);
}

TEST(StepwiseRun, IsShownByListHelpAndPlan) {
  const Outcome list = shell("kvsim list policies");
  EXPECT_NE(list.text.find("decode:h2o "), std::string::npos);
  const Outcome help = shell("kvsim help decode:h2o");
  EXPECT_EQ(help.code, 0);
  for (const char* word : {"phase     decode", "recent", "block", "buffer", "every", "Capacity"}) EXPECT_NE(help.text.find(word), std::string::npos) << word;
  EXPECT_EQ(shell("kvsim help corm").code, 0);
  const Folder folder;
  const Outcome plan = shell("kvsim plan " + small_trace(folder) + " --policy decode:h2o --policy decode:streaming_llm --budget 32");
  EXPECT_EQ(plan.code, 0) << plan.text;
  EXPECT_NE(plan.text.find("step by step, a pass per budget"), std::string::npos) << plan.text;
}

TEST(StepwiseRun, FlagsCapacitiesBelowWhatIsProtected) {
  const Folder folder;
  const std::string out = folder / "out";
  const Outcome run = shell("kvsim run " + small_trace(folder) + " --policy 'decode:streaming_llm(sinks=40)' --budget 8 --no-bounds --quiet --out " + out);
  ASSERT_EQ(run.code, 0) << run.text;
  const std::string rows = read(out + "/results.csv");
  const std::string header = rows.substr(0, rows.find('\n'));
  EXPECT_NE(header.find(",evicted,clamped,"), std::string::npos);
  const auto column = std::count(header.begin(), header.begin() + static_cast<std::ptrdiff_t>(header.find(",clamped") + 1), ',');
  std::istringstream text(rows.substr(rows.find('\n') + 1));
  std::size_t seen = 0;
  for (std::string line; std::getline(text, line); ++seen) {
    // The variant is quoted, as its spec has commas.
    const std::size_t quote = line.rfind('"');
    std::istringstream rest(line.substr(quote + 2));
    std::string cell;
    for (auto i = 0; i <= column - 3; ++i) std::getline(rest, cell, ',');
    EXPECT_EQ(cell, "1") << line;
  }
  EXPECT_EQ(seen, 6u);
}

TEST(StepwiseRun, RefusesInOneLineWhatItCannotDo) {
  const Folder folder;
  const std::string windowed = folder / "windowed.h5";
  ASSERT_EQ(shell("kvsim trace synth --layers 1 --query-heads 4 --kv-heads 2 --head-dim 16 --prompt 300 --decode 8 --queries window:32 -o " + windowed).code, 0);
  const auto refused = [&](const std::string& policy, const std::string& why) {
    const Outcome run = shell("kvsim run " + windowed + " --policy '" + policy + "' --budget 32 --quiet --out " + (folder / "never"));
    EXPECT_EQ(run.code, 2) << policy << ": " << run.text;
    EXPECT_NE(run.text.find(why), std::string::npos) << run.text;
    EXPECT_EQ(lines(run.text), 1u) << run.text;
    EXPECT_FALSE(std::filesystem::exists(folder / "never"));
  };
  refused("decode:h2o", "--stats or --queries all");
  refused("decode:h2o(block=16)", "--queries all");
  refused("decode:scissorhands", "record with --queries all");
  refused("decode:corm(window=64)", "--queries window:64");
  refused("decode:h20", "did you mean 'decode:h2o'?");
  refused("decode:h2o(resent=0.2)", "did you mean 'recent'?");
  refused("decode:h2o(recent=2)", "expected 0 to 1");
  refused("decode:decoding(score=h2o)", "while decoding");
  refused("decode:streaming_llm(every=0)", "does not fit");
  // A trace without decode steps cannot exist (traces/FORMAT.md); cutting one to none is refused.
  const Outcome cut = shell("kvsim trace cut " + windowed + " --steps 0 -o " + (folder / "none.h5"));
  EXPECT_EQ(cut.code, 2) << cut.text;
}

}  // namespace
}  // namespace kvsim::test
