// A whole sweep on the shipped recording, compared with a stored table byte for byte.
#include <gtest/gtest.h>

#include "kernels/instruction_path.h"
#include "sim/cli/command.h"
#include "tests/cli/program.h"

namespace kvsim::test {
namespace {

// tests/golden/summary.csv was made by tests/golden/update.sh, which runs the same command. It pins results, not truth:
// tests/sim compares with double-precision definitions. All instruction paths give the same bits, so it holds anywhere;
// to be sure of it, the sweep runs on the path that every machine has as well.
const std::string kSource = KVSIM_SOURCE_DIR;

Arguments golden_arguments(const std::string& out) {
  Arguments arguments;
  std::istringstream words(read(kSource + "/tests/golden/arguments.txt"));
  for (std::string word; words >> word;) arguments.push_back(word);
  arguments.insert(arguments.end(), {kSource + "/tests/data/smollm2-harbour.h5", "--quiet", "--out", out});
  return arguments;
}

std::string golden_run(const Folder& folder, const std::string& name) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_command(golden_arguments(folder / name)), kDone);
  testing::internal::GetCapturedStderr();
  return read(folder / name + "/summary.csv");
}

TEST(GoldenSweep, GivesTheStoredTable) {
  const Folder folder;
  const std::string expected = read(kSource + "/tests/golden/summary.csv");
  ASSERT_GT(lines(expected), 20u);
  EXPECT_EQ(golden_run(folder, "best"), expected);
}

TEST(GoldenSweep, GivesTheStoredTableOnEveryInstructionPath) {
  const Folder folder;
  const std::string expected = read(kSource + "/tests/golden/summary.csv");
  for (const std::string_view path : instruction_paths()) {
    if (path == "SCALAR") continue;  // minutes long; kernels_test and selftest compare it on smaller inputs
    use_instruction_path(path);
    EXPECT_EQ(golden_run(folder, std::string(path)), expected) << path;
  }
  use_instruction_path({});
}

}  // namespace
}  // namespace kvsim::test
