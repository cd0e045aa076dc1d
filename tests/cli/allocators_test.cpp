// Policies that share budget over layers, as a user runs them: the same bytes in shards and little memory, and what is refused.
#include <algorithm>

#include "tests/cli/program.h"

namespace kvsim::test {
namespace {

TEST(ModelWide, GivesTheSameBytesInShardsThreadsMemoryAndParts) {
  const Folder folder;
  const std::string command = "kvsim run " + small_trace(folder) +
                              " --policy 'cake(window=16,tau1=1.6,tau2=0.6)' --policy 'pool(score=snapkv(window=16),over=model)' --policy "
                              "'duo(sinks=4,recent=16)' --policy 'think(score=merging(score=snapkv(window=16)))' --budget 20,30% --no-bounds --quiet ";
  const Outcome one = shell(command + "--threads 1 --out " + (folder / "one"));
  ASSERT_EQ(one.code, 0) << one.text;
  const std::string whole = read(folder / "one/results.csv");
  EXPECT_EQ(lines(whole), 3u * 2 * 4 * 2 + 1);
  EXPECT_EQ(shell(command + "--threads 3 --memory 98M --out " + (folder / "tight")).code, 0);
  EXPECT_EQ(read(folder / "tight/results.csv"), whole);
  for (const int i : {3, 1, 2}) {
    const Outcome shard = shell(command + fmt::format("--shard {}/3 --out {}", i, folder / "shared"));
    EXPECT_EQ(shard.code, 0) << shard.text;
  }
  EXPECT_EQ(read(folder / "shared/results.csv"), whole);
  // A part that is missing is done again with the layers that it depends on.
  std::filesystem::path part;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "one/parts"))
    if (entry.path().string().find("-001-") != std::string::npos) part = entry.path();
  ASSERT_FALSE(part.empty());
  std::filesystem::remove(part);
  EXPECT_EQ(shell(command + "--out " + (folder / "one")).code, 0);
  EXPECT_EQ(read(folder / "one/results.csv"), whole);
}

TEST(ModelWide, IsAnnouncedByThePlan) {
  const Folder folder;
  const Outcome plan = shell("kvsim plan " + small_trace(folder) + " --policy 'cake(window=16)' --budget 20");
  EXPECT_EQ(plan.code, 0) << plan.text;
  EXPECT_NE(plan.text.find("ahead     3 layers are scored before the first is measured"), std::string::npos) << plan.text;
  EXPECT_EQ(shell("kvsim plan " + (folder / "small.h5") + " --policy 'snapkv(window=16)' --budget 20").text.find("ahead"), std::string::npos);
}

/// One line, exit 2, nothing written.
void expect_refused(const Folder& folder, const std::string& policy, const std::string& reason) {
  const Outcome run = shell("kvsim run " + (folder / "small.h5") + " --policy '" + policy + "' --budget 20 --out " + (folder / "out"));
  EXPECT_EQ(run.code, 2) << policy << ": " << run.text;
  EXPECT_NE(run.text.find(reason), std::string::npos) << run.text;
  EXPECT_EQ(lines(run.text), 1u) << run.text;
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
}

TEST(Allocators, RefuseWhatDoesNotFitInOneLine) {
  const Folder folder;
  small_trace(folder);
  expect_refused(folder, "per_layer(score=knorm,shares=[1,2])", "shares has 2 numbers, the model 3 layers");
  expect_refused(folder, "per_layer(score=knorm)", "per_layer needs shares=[...]");
  expect_refused(folder, "per_layer(score=cake,shares=[1,2,3])", "shares budget over the layers itself");
  expect_refused(folder, "lu(score=knorm)", "lu needs file=...");
  expect_refused(folder, "lu(score=knorm,file=" + (folder / "none.h5") + ")", "none.h5");
  expect_refused(folder, "duo(file=x.h5)", "file and dataset go together");
  expect_refused(folder, "simlayer(recent=1)", "last=1 leaves no token of recent=1");
  expect_refused(folder, "pool(score=ada)", "shares budget itself");
  expect_refused(folder, "dbudgetkv(score=cake)", "no single order");
  expect_refused(folder, "kvzip", "--second-pass repeat");
  expect_refused(folder, "kvcompose", "--second-pass repeat");
}

}  // namespace
}  // namespace kvsim::test
