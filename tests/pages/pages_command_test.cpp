// kvsim pages as a command: exit codes, files that appear, and one-line refusals.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/error.h"
#include "sim/cli/command.h"

namespace kvsim::test {
namespace {

std::string folder(const std::string& name) {
  const std::string path = ::testing::TempDir() + "/kvsim_pages_command_" + name;
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

std::string small_trace(const std::string& where) {
  const std::string path = where + "/trace.txt";
  std::ofstream out(path);
  for (int i = 0; i < 2000; ++i) out << (i * i + i / 7) % 61 << "\n";
  return path;
}

std::string content(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

TEST(PagesCommand, WritesResultsThatDoNotDependOnThreads) {
  const std::string where = folder("threads");
  const std::string trace = small_trace(where);
  for (const char* threads : {"1", "3"}) {
    const Arguments arguments{
        trace,        "--policy", "lru",     "--policy",           "guard(base={lru,random})",
        "--capacity", "5,10%,20", "--quiet", "--detail",           "phases",
        "--threads",  threads,    "--out",   where + "/" + threads};
    ASSERT_EQ(pages_command(arguments), kDone);
  }
  for (const char* file : {"results.csv", "summary.csv", "phases.csv"}) {
    const std::string one = content(where + "/1/" + file);
    EXPECT_GT(one.size(), 200u) << file;
    EXPECT_EQ(one, content(where + "/3/" + file)) << file;
  }
  EXPECT_TRUE(std::filesystem::exists(where + "/1/results.h5"));
  EXPECT_NE(content(where + "/1/results.csv").find("belady"), std::string::npos);
}

TEST(PagesCommand, CurvesAndSamples) {
  const std::string where = folder("curves");
  const std::string trace = small_trace(where);
  EXPECT_EQ(pages_command({trace, "--policy", "lru", "--policy", "sieve", "--curve", "--sample", "0.2",
                           "--quiet", "--out", where + "/c"}),
            kDone);
  const std::string curves = content(where + "/c/curves.csv");
  EXPECT_NE(curves.find(",stack"), std::string::npos);
  EXPECT_NE(curves.find(",sampled"), std::string::npos);
  EXPECT_EQ(pages_command({trace, "--policy", "lru", "--sample", "0.2", "--capacity", "20", "--quiet",
                           "--out", where + "/s"}),
            kDone);
}

TEST(PagesCommand, SomePoliciesRefusedIsThreeAndAllIsTwo) {
  const std::string where = folder("refused");
  const std::string trace = small_trace(where);
  const std::string out = where + "/out";
  EXPECT_EQ(pages_command({trace, "--policy", "lru", "--policy", "belady", "--stream", "--capacity", "5",
                           "--quiet", "--out", out}),
            kSomeRefused);
  EXPECT_EQ(
      pages_command({trace, "--policy", "belady", "--stream", "--capacity", "5", "--quiet", "--out", out}),
      kWrongUse);
  EXPECT_EQ(pages_command({trace, "--policy", "follow_scores", "--no-bounds", "--capacity", "5", "--quiet",
                           "--out", out}),
            kWrongUse);
}

TEST(PagesCommand, WrongUseIsOneLine) {
  const std::string where = folder("wrong");
  const std::string trace = small_trace(where);
  const auto line = [&](Arguments arguments) {
    arguments.insert(arguments.end(), {"--out", where + "/out"});
    try {
      pages_command(arguments);
    } catch (const UserError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  for (const Arguments& bad : {Arguments{trace, "--policy", "lru", "--capacity", "0"},
                               Arguments{trace, "--policy", "lru"}, Arguments{trace, "--capacity", "4"},
                               Arguments{trace, "--policy", "guard(base=arc)", "--capacity", "4"},
                               Arguments{trace, "--policy", "lruu", "--capacity", "4"},
                               Arguments{trace, "--policy", "lru", "--policy", "lru", "--capacity", "4"},
                               Arguments{"/nowhere", "--policy", "lru", "--capacity", "4"},
                               Arguments{trace, "--policy", "lru", "--capacity", "4", "--bytes"},
                               Arguments{trace, "--policy", "sieve", "--curve"},
                               Arguments{trace, "--policy", "lru", "--capacity", "4", "--sample", "0.9"},
                               Arguments{trace, "--policy", "lru", "--capacity", "4", "--warmup", "x"},
                               Arguments{trace, "--policy", "lru", "--capacity", "4", "--output-error"},
                               Arguments{trace, "--policy", "lru", "--capacity", "5%", "--stream"},
                               Arguments{trace, "--policy", "lru", "--capacity", "4", "--detail", "steps"},
                               Arguments{trace, "--policy", "lru", "--capacity", "4", "--format", "xml"}}) {
    const std::string text = line(bad);
    EXPECT_FALSE(text.empty()) << ::testing::PrintToString(bad);
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

TEST(PagesCommand, LessMemoryThanTheInputReadsItAsAStream) {
  const std::string where = folder("memory");
  const std::string path = where + "/trace.txt";
  {
    std::ofstream out(path);
    for (int i = 0; i < 200000; ++i) out << i % 977 << "\n";
  }
  EXPECT_EQ(pages_command({path, "--policy", "lru", "--no-bounds", "--capacity", "100", "--memory", "64K",
                           "--quiet", "--out", where + "/out"}),
            kDone);
  EXPECT_NE(content(where + "/out/results.csv").find("200000"), std::string::npos);
}

}  // namespace
}  // namespace kvsim::test
