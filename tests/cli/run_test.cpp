// kvsim run as a user meets it: results, refusals, resume, shards.
#include <algorithm>

#include "tests/cli/program.h"

namespace kvsim::test {
namespace {

const std::string kSweep = " --policy 'snapkv(window={8,16})' --policy 'ada(score=snapkv(window=16))' --policy h2o --policy streaming_llm --budget 16..256*2,10% --quiet ";

std::string results_of(const std::string& command, const std::string& out, int expected = 0) {
  const Outcome run = shell(command);
  EXPECT_EQ(run.code, expected) << run.text;
  return read(out + "/results.csv");
}

TEST(Run, GivesTheSameBytesForThreadsShardsAndMemory) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  const std::string one = results_of("kvsim run " + trace + kSweep + "--threads 1 --out " + (folder / "one"), folder / "one");
  // 3 layers x 2 KV heads x (5 + 4 references) variants x 6 budgets, and the header
  EXPECT_EQ(lines(one), 3u * 2 * 9 * 6 + 1);
  EXPECT_EQ(results_of("kvsim run " + trace + kSweep + "--threads 3 --out " + (folder / "many"), folder / "many"), one);
  EXPECT_EQ(results_of("kvsim run " + trace + kSweep + "--memory 98M --out " + (folder / "tight"), folder / "tight"), one);
  for (int i = 1; i <= 3; ++i) {
    const Outcome shard = shell(fmt::format("kvsim run {} {} --shard {}/3 --out {}", trace, kSweep, i, folder / fmt::format("shard{}", i)));
    EXPECT_EQ(shard.code, 0) << shard.text;
    EXPECT_FALSE(std::filesystem::exists(folder / fmt::format("shard{}/results.csv", i)));
  }
  const std::string merged = results_of(fmt::format("kvsim merge {} {} {} --out {}", folder / "shard1", folder / "shard2", folder / "shard3", folder / "merged"), folder / "merged");
  EXPECT_EQ(merged, one);
  EXPECT_EQ(read(folder / "merged/summary.csv"), read(folder / "one/summary.csv"));
}

TEST(Run, GoesOnAfterBeingKilled) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  const std::string whole = results_of("kvsim run " + trace + kSweep + "--out " + (folder / "whole"), folder / "whole");
  const std::string out = folder / "killed";
  // Killed as soon as the first part is there.
  const Outcome killed = shell(fmt::format(
      "kvsim run {} {} --threads 1 --out {} & p=$!; for i in $(seq 2000); do ls {}/parts/*-000-*.h5 >/dev/null 2>&1 && break; sleep 0.002; done; kill -KILL $p; wait $p", trace, kSweep, out, out));
  EXPECT_NE(killed.code, 2) << killed.text;
  EXPECT_EQ(results_of("kvsim run " + trace + kSweep + "--out " + out, out), whole);
  // A part that was damaged meanwhile is done again.
  std::filesystem::path part;
  for (const auto& entry : std::filesystem::directory_iterator(out + "/parts"))
    if (entry.path().string().find("-001-") != std::string::npos) part = entry.path();
  ASSERT_FALSE(part.empty());
  std::filesystem::resize_file(part, 1000);
  std::filesystem::remove(out + "/results.csv");
  const Outcome again = shell("kvsim run " + trace + kSweep + "--out " + out);
  EXPECT_EQ(again.code, 0) << again.text;
  EXPECT_NE(again.text.find("is done again"), std::string::npos) << again.text;
  EXPECT_EQ(read(out + "/results.csv"), whole);
}

TEST(Run, StopsAtTheTimeLimitAndSaysHowToGoOn) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  const Outcome stopped = shell("kvsim run " + trace + kSweep + "--time-limit 0.000001s --out " + out);
  EXPECT_EQ(stopped.code, 75) << stopped.text;
  EXPECT_NE(stopped.text.find("give the same command again"), std::string::npos) << stopped.text;
  EXPECT_FALSE(std::filesystem::exists(out + "/results.csv"));
  EXPECT_GT(lines(results_of("kvsim run " + trace + kSweep + "--out " + out, out)), 1u);
}

TEST(Run, FullCacheIsExactEverywhere) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  const std::string csv = results_of("kvsim run " + trace + " --policy knorm --budget 5,100% --metrics output_error,set_consistency,query_consistency,miss_rate --out " + out, out);
  std::istringstream text(csv);
  std::string line;
  std::size_t checked = 0;
  while (std::getline(text, line)) {
    if (line.find(",full,") == std::string::npos && line.find(",100%,") == std::string::npos) continue;
    if (line.find("oracle_topk") != std::string::npos) continue;
    std::vector<std::string> cells;
    std::istringstream row(line);
    for (std::string cell; std::getline(row, cell, ',');) cells.push_back(cell);
    const std::size_t n = cells.size();
    EXPECT_LT(std::stod(cells[n - 4]), 1e-6) << line;  // output_error
    EXPECT_EQ(cells[n - 3], "1") << line;              // query_consistency
    EXPECT_EQ(cells[n - 2], "1") << line;              // set_consistency
    EXPECT_EQ(cells[n - 1], "0") << line;              // miss_rate
    ++checked;
  }
  EXPECT_EQ(checked, 3u * 2 * (2 + 3));  // full at both budgets; knorm, oracle_static and random at 100%
}

TEST(Run, ExtendAddsAndEqualsARunOfEverything) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "grown";
  results_of("kvsim run " + trace + " --policy knorm --budget 16,64 --out " + out, out);
  const Outcome other = shell("kvsim run " + trace + " --policy knorm --policy keydiff --budget 16,64 --out " + out);
  EXPECT_EQ(other.code, 2);
  EXPECT_NE(other.text.find("--extend"), std::string::npos) << other.text;
  const std::string grown = results_of("kvsim run " + trace + " --policy knorm --policy keydiff --budget 32 --extend --out " + out, out);
  const std::string whole = results_of("kvsim run " + trace + " --policy knorm --policy keydiff --budget 16,32,64 --out " + (folder / "whole"), folder / "whole");
  // The references were there before keydiff, so their order differs; the rows do not.
  const auto sorted = [](const std::string& csv) {
    std::vector<std::string> rows;
    std::istringstream text(csv);
    for (std::string line; std::getline(text, line);) rows.push_back(line);
    std::sort(rows.begin(), rows.end());
    return rows;
  };
  EXPECT_EQ(sorted(grown), sorted(whole));
  EXPECT_EQ(results_of("kvsim run --config " + out + "/run.ini --out " + (folder / "again"), folder / "again").size(), grown.size());
}

TEST(Run, ConfigFileHoldsTheSameNames) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  std::ofstream(folder / "sweep.ini") << "# a sweep\ntrace = " << trace << "\npolicy = snapkv(window={8,16})\npolicy = h2o\nbudget = 16, 10%\nmetrics = output_error\n";
  const std::string from_file = results_of("kvsim run --config " + (folder / "sweep.ini") + " --out " + (folder / "a"), folder / "a");
  const std::string from_line = results_of("kvsim run " + trace + " --policy 'snapkv(window={8,16})' --policy h2o --budget 16,10% --metrics output_error --out " + (folder / "b"), folder / "b");
  EXPECT_EQ(from_file, from_line);
  EXPECT_EQ(results_of("kvsim run --config " + (folder / "a/run.ini") + " --out " + (folder / "c"), folder / "c"), from_file);
  const std::string other_budget = results_of("kvsim run --config " + (folder / "sweep.ini") + " --budget 20 --out " + (folder / "d"), folder / "d");
  EXPECT_NE(other_budget.find(",20,20,"), std::string::npos);
  EXPECT_EQ(other_budget.find(",16,16,"), std::string::npos);
  std::ofstream(folder / "wrong.ini") << "polcy = h2o\n";
  const Outcome wrong = shell("kvsim run " + trace + " --budget 5 --config " + (folder / "wrong.ini") + " --out " + (folder / "e"));
  EXPECT_EQ(wrong.code, 2);
  EXPECT_NE(wrong.text.find("policy"), std::string::npos) << wrong.text;
}

TEST(Run, RefusesAChangedTraceOnResume) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  results_of("kvsim run " + trace + " --policy knorm --budget 16 --out " + out, out);
  std::filesystem::remove(trace);
  small_trace(folder, "small.h5", 2);
  const Outcome changed = shell("kvsim run " + trace + " --policy knorm --budget 16 --out " + out);
  EXPECT_EQ(changed.code, 2) << changed.text;
  EXPECT_EQ(lines(changed.text) <= 3, true) << changed.text;
}

TEST(Run, GoesOnWithoutARefusedVariant) {
  const Folder folder;
  const std::string trace = folder / "windowed.h5";
  ASSERT_EQ(shell("kvsim trace synth --layers 2 --query-heads 4 --kv-heads 2 --head-dim 16 --prompt 300 --decode 8 --dtype float16 --queries window:20 --seed 1 -o " + trace).code, 0);
  const Outcome some = shell("kvsim run " + trace + " --policy h2o --policy 'snapkv(window=16)' --budget 16 --out " + (folder / "some"));
  EXPECT_EQ(some.code, 3) << some.text;
  EXPECT_NE(some.text.find("--stats"), std::string::npos) << some.text;
  EXPECT_NE(read(folder / "some/results.csv").find("snapkv"), std::string::npos);
  const Outcome all = shell("kvsim run " + trace + " --policy h2o --policy snapkv --budget 16 --out " + (folder / "none"));
  EXPECT_EQ(all.code, 2) << all.text;
  EXPECT_FALSE(std::filesystem::exists(folder / "none"));
}

TEST(Run, KeepsFinishedPartsWhenTheDiskIsFull) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  const Outcome full = shell("trap '' XFSZ; ulimit -f 1; kvsim run " + trace + kSweep + "--out " + out);
  EXPECT_EQ(full.code, 2) << full.text;
  EXPECT_EQ(lines(full.text), 1u) << full.text;
  EXPECT_GT(lines(results_of("kvsim run " + trace + kSweep + "--out " + out, out)), 1u);
}

struct BadUse {
  const char* options;
  const char* expected;  // must be part of the one line that comes back
};

class RunBadUse : public testing::TestWithParam<BadUse> {};

TEST_P(RunBadUse, IsOneLineWithExitCodeTwoAndNothingWritten) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  const Outcome outcome = shell("kvsim run " + trace + " --out " + out + " " + GetParam().options);
  EXPECT_EQ(outcome.code, 2) << outcome.text;
  EXPECT_EQ(lines(outcome.text), 1u) << outcome.text;
  EXPECT_NE(outcome.text.find(GetParam().expected), std::string::npos) << outcome.text;
  EXPECT_FALSE(std::filesystem::exists(out));
}

INSTANTIATE_TEST_SUITE_P(
    Options, RunBadUse,
    testing::Values(BadUse{"--policy snapk --budget 5", "snapkv"}, BadUse{"--policy 'snapkv(windw=3)' --budget 5", "window"},
                    BadUse{"--policy knorm --budget 0", "above zero"}, BadUse{"--policy knorm --budget nan", "budget"},
                    BadUse{"--policy knorm --budget -3", "budget"}, BadUse{"--policy knorm --budget 5 --metrics output_eror", "output_error"},
                    BadUse{"--policy knorm --policy 'knorm()' --budget 5", "twice"}, BadUse{"--polcy knorm --budget 5", "--policy"},
                    BadUse{"--policy knorm", "no budget"}, BadUse{"--policy 'snapkv(window=16' --budget 5", "expected"},
                    BadUse{"--policy knorm --budget 5 --memory 1M", "--memory"}, BadUse{"--policy knorm --budget 5 --memory lots", "size"},
                    BadUse{"--policy knorm --budget 5 --device cuda:99", "--device cuda:99"}, BadUse{"--policy knorm --budget 5 --device gpu", "cuda:all"}, BadUse{"--policy knorm --budget 5 --shard 4/3", "--shard"},
                    BadUse{"--policy knorm --budget 5 --threads 0", "--threads"}, BadUse{"--policy knorm --budget 5 no-such-trace.h5", "no-such-trace.h5"},
                    BadUse{"--policy 'external(file=\"none.h5\",dataset=\"/x\")' --budget 5", "none.h5"},
                    BadUse{"--policy 'snapkv(window={1..200})' --budget 1..100", "--yes"}));

TEST(Program, NamesTheNearestSubcommand) {
  const Outcome outcome = shell("kvsim rnu");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.text.find("'run'"), std::string::npos) << outcome.text;
  EXPECT_EQ(shell("kvsim --help").code, 0);
  EXPECT_EQ(shell("kvsim run --help").code, 0);
  EXPECT_EQ(shell("kvsim").code, 2);
}

TEST(Plan, StartsNothingAndSaysWhatWouldHappen) {
  const Folder folder;
  const std::string trace = small_trace(folder);
  const Outcome plan = shell("cd " + (folder / ".") + " && kvsim plan " + trace + " --policy 'snapkv(window={8,16})' --budget 16..256*2");
  EXPECT_EQ(plan.code, 0) << plan.text;
  for (const char* word : {"variants  6", "units     3", "cells     30", "memory", "time", "one pass for all budgets"})
    EXPECT_NE(plan.text.find(word), std::string::npos) << word << "\n" << plan.text;
}

TEST(Plugin, BringsAPolicyToEverySubcommand) {
  // tests/plugin/middle.cpp is the example of CONTRIBUTING.md: one file, in the tree or outside of it.
  const Folder folder;
  const std::string plugin = std::string(" --plugin ") + KVSIM_BINARY_DIR + "/plugins/middle.so ", trace = small_trace(folder);
  EXPECT_NE(shell("kvsim list policies" + plugin).text.find("middle"), std::string::npos);
  EXPECT_EQ(shell("kvsim list policies").text.find("keeps the middle"), std::string::npos);
  EXPECT_NE(shell("kvsim help middle" + plugin).text.find("sinks"), std::string::npos);
  const std::string csv = results_of("kvsim run " + trace + plugin + "--policy 'middle(sinks={2,4})' --budget 16 --quiet --out " + (folder / "a"), folder / "a");
  EXPECT_NE(csv.find("middle(sinks=2)"), std::string::npos);
  EXPECT_EQ(results_of("kvsim run --config " + (folder / "a/run.ini") + " --quiet --out " + (folder / "b"), folder / "b"), csv);
}

TEST(Plugin, RefusesWhatDoesNotFit) {
  const Folder folder;
  const std::string plugin = read(std::string(KVSIM_BINARY_DIR) + "/plugins/middle.so");
  std::string other = plugin;
  const std::size_t mark = other.find("kvsim-policy-abi:1");
  ASSERT_NE(mark, std::string::npos);
  other[mark + 17] = '7';
  std::ofstream(folder / "other.so", std::ios::binary) << other;
  std::ofstream(folder / "text.so") << "no plugin";
  for (const auto& [file, expected] : {std::pair{"other.so", "abi:7"}, {"text.so", "is no kvsim plugin"}, {"missing.so", "missing.so"}}) {
    const Outcome refused = shell("kvsim list policies --plugin " + (folder / file));
    EXPECT_EQ(refused.code, 2);
    EXPECT_NE(refused.text.find(expected), std::string::npos) << refused.text;
    EXPECT_EQ(lines(refused.text), 1u);
  }
}

TEST(Run, TakesItsShardFromTheLauncher) {
  const Folder folder;
  const std::string trace = small_trace(folder), out = folder / "out";
  const std::string command = "kvsim run " + trace + " --policy knorm --budget 16 --quiet --shard auto --out " + out;
  for (int rank = 0; rank < 3; ++rank)
    EXPECT_EQ(shell(fmt::format("OMPI_COMM_WORLD_RANK={} OMPI_COMM_WORLD_SIZE=3 ; export OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE; {}", rank, command)).code, 0);
  EXPECT_EQ(read(out + "/results.csv"), results_of("kvsim run " + trace + " --policy knorm --budget 16 --quiet --out " + (folder / "one"), folder / "one"));
  EXPECT_EQ(shell(command).code, 2);
}

TEST(SelfTest, Passes) {
  const Outcome outcome = shell("kvsim selftest");
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_EQ(outcome.text.find("DIFFER"), std::string::npos) << outcome.text;
}

}  // namespace
}  // namespace kvsim::test
