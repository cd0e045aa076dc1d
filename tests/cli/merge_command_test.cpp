// kvsim merge: shards into one, missing units, wrong use.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "sim/cli/command.h"
#include "tests/cli/report_sample.h"

namespace kvsim {
namespace {

using test::merge;
using test::report_record;
using test::ReportFolder;

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(MergeCommand, MakesOfShardsTheBytesOfAWholeRun) {
  const ReportFolder whole, first, second, third, out;
  const RunRecord record = report_record(2);
  test::write_report_run(whole.path(), record);
  test::write_report_parts(first.path(), record, {{1, 0}});
  test::write_report_parts(second.path(), record, {{0, 1}, {1, 1}});
  test::write_report_parts(third.path(), record, {{0, 0}, {1, 1}});
  const auto printed = merge({third.path(), first.path(), second.path(), "--out", out.path() + "/joined"});
  EXPECT_EQ(printed.code, kDone) << printed.error;
  for (const char* name : {"/results.csv", "/summary.csv", "/layers.csv"}) {
    EXPECT_EQ(bytes_of(whole.path() + name), bytes_of(out.path() + "/joined" + name)) << name;
  }
}

TEST(MergeCommand, RemakesOneFolderFromItsParts) {
  const ReportFolder folder;
  test::write_report_run(folder.path(), report_record(1));
  const std::string before = bytes_of(folder.path() + "/results.csv");
  std::filesystem::remove(folder.path() + "/results.csv");
  EXPECT_EQ(merge({folder.path()}).code, kDone);
  EXPECT_EQ(bytes_of(folder.path() + "/results.csv"), before);
}

TEST(MergeCommand, ListsMissingUnitsAndWritesNothing) {
  const ReportFolder folder;
  test::write_report_parts(folder.path(), report_record(2), {{0, 0}, {0, 1}, {1, 1}});
  const auto printed = merge({folder.path()});
  EXPECT_EQ(printed.code, kWrongUse);
  EXPECT_NE(printed.error.find("t1 layer 0"), std::string::npos) << printed.error;
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/results.h5"));
  const auto partial = merge({folder.path(), "--partial"});
  EXPECT_EQ(partial.code, kDone);
  EXPECT_NE(partial.error.find("left out: t1 layer 0"), std::string::npos) << partial.error;
}

TEST(MergeCommand, RefusesWrongUse) {
  const ReportFolder first, second;
  test::write_report_run(first.path(), report_record(1));
  test::write_report_run(second.path(), report_record(1), 0.5);
  EXPECT_EQ(merge({}).code, kWrongUse);
  EXPECT_EQ(merge({first.path(), second.path()}).code, kWrongUse);
  const auto conflict = merge({first.path(), second.path(), "--out", first.path() + "/x"});
  EXPECT_EQ(conflict.code, kWrongUse);
  EXPECT_NE(conflict.error.find("different results of the same unit"), std::string::npos) << conflict.error;
  EXPECT_EQ(merge({"/nowhere"}).code, kWrongUse);
  EXPECT_EQ(merge({first.path(), "--partal"}).code, kWrongUse);
}

}  // namespace
}  // namespace kvsim
