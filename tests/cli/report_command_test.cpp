// kvsim report: tables worked out by hand, knees, comparisons, differences, wrong use.
#include <gtest/gtest.h>

#include "sim/cli/command.h"
#include "tests/cli/report_sample.h"

namespace kvsim {
namespace {

using test::report;
using test::report_record;
using test::ReportFolder;

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "expected\n" << part << "\nin\n" << text;
}

class ReportCommand : public testing::Test {
 protected:
  void SetUp() override { test::write_report_run(one_.path(), report_record(1)); }
  ReportFolder one_;
};

TEST_F(ReportCommand, RanksVariantsAtEveryBudgetWithReferencesMarked) {
  const auto printed = report({one_.path()});
  EXPECT_EQ(printed.code, kDone);
  // Layers 0 and 1: 0.9 and 1.8, mean 1.35, half of it for snapkv.
  expect_has(printed.out,
             "budget 10% (10 tokens)\n"
             "#  variant            output_error  set_consistency  resident_tokens  remark\n"
             "*  full()                        0                1              100\n"
             "1  snapkv(window=32)         0.675             0.55               10  clamped\n"
             "2  h2o()                      1.35              0.1               10\n");
  expect_has(printed.out, "budget 100% (100 tokens)");
  expect_has(printed.out, "note: open loop");
  expect_has(printed.out, "over 8 values per trace");
  expect_has(printed.out, "one trace: there is no interval");
  expect_has(printed.out, "2 of 6 cells evicted nothing");
  expect_has(printed.out, "1 of 6 cells are clamped");
}

TEST_F(ReportCommand, WritesCsvWithExactNumbersAndNoNotes) {
  const auto printed = report(
      {one_.path(), "--format", "csv", "--y", "output_error", "--filter", "policy!=full", "--budget", "10%"});
  EXPECT_EQ(printed.out,
            "variant,budget_request,budget_tokens,output_error,traces\n"
            "h2o(),10%,10,1.35,1\n"
            "snapkv(window=32),10%,10,0.675,1\n");
}

TEST_F(ReportCommand, PutsAnAxisAcross) {
  const auto printed = report({one_.path(), "--x", "budget", "--y", "set_consistency", "--format", "md"});
  expect_has(printed.out,
             "### set_consistency by budget\n\n"
             "| variant           |  10% |  50% | 100% |\n"
             "|-------------------|-----:|-----:|-----:|\n"
             "| full() *          |    1 |    1 |    1 |\n"
             "| h2o()             |  0.1 |  0.5 |    1 |\n"
             "| snapkv(window=32) | 0.55 | 0.75 |    1 |\n");
}

TEST_F(ReportCommand, ReadsRowsWhereLayersAreAskedFor) {
  const auto printed =
      report({one_.path(), "--x", "layer", "--y", "output_error", "--by", "policy", "--budget", "50%"});
  expect_has(printed.out,
             "policy     0    1\n"
             "full *     0    0\n"
             "h2o      0.5    1\n"
             "snapkv  0.25  0.5\n");
}

TEST_F(ReportCommand, ListsAMeasuredAxis) {
  const auto printed = report({one_.path(), "--x", "resident_tokens", "--y", "output_error", "--filter",
                               "variant==h2o()", "--format", "csv"});
  EXPECT_EQ(printed.out,
            "variant,budget_request,budget_tokens,resident_tokens,output_error,traces\n"
            "h2o(),10%,10,10,1.35,1\nh2o(),50%,50,50,0.75,1\nh2o(),100%,100,100,0,1\n");
}

TEST_F(ReportCommand, SortsBestFirstOrAsTold) {
  const auto best =
      report({one_.path(), "--budget", "10%", "--sort", "set_consistency", "--filter", "policy!=full"}).out;
  EXPECT_LT(best.find("snapkv"), best.find("h2o"));
  const auto worst =
      report({one_.path(), "--budget", "10%", "--sort", "set_consistency:asc", "--filter", "policy!=full"})
          .out;
  EXPECT_GT(worst.find("snapkv"), worst.find("h2o"));
}

TEST_F(ReportCommand, ShowsTheTailAtTheBadEndOfEachMetric) {
  const auto printed = report({one_.path(), "--stat", "p95", "--budget", "50%"});
  expect_has(printed.out, "output_error_p95");
  expect_has(printed.out, "set_consistency_p5");
  // h2o's errors at 50% are 0.5 and 1, four times each.
  expect_has(printed.out, "h2o()                             1                 0.5");
  EXPECT_EQ(report({one_.path(), "--stat", "p95", "--x", "layer"}).code, kWrongUse);
}

TEST_F(ReportCommand, FindsTheSmallestMeasuredBudgetThatReachesACondition) {
  const auto printed = report({one_.path(), "--at", "set_consistency>=0.75"});
  expect_has(printed.out, "snapkv(window=32)    50% (50)             0.75  not yet at 10% (10)");
  expect_has(printed.out, "h2o()              100% (100)                1  not yet at 50% (50)");
  expect_has(printed.out,
             "full() *             10% (10)                1  already at the smallest budget measured");
  const auto never = report({one_.path(), "--at", "output_error<0.3 and set_consistency>=0.75", "--budget",
                             "10%,50%", "--format", "csv"});
  expect_has(never.out, "h2o(),,,0.75,0.5,");
}

TEST_F(ReportCommand, ComparesTwoVariantsInPairs) {
  const auto printed = report({"--compare", "h2o", "snapkv(window=32)", one_.path(), "--y", "output_error"});
  EXPECT_EQ(printed.code, kDone) << printed.error;
  expect_has(printed.out, "A = h2o()\nB = snapkv(window=32)");
  expect_has(printed.out, "output_error    10% (10)  1.35  0.675  0.675");
  expect_has(printed.out, "0 of 1                   0 of 2");
  expect_has(printed.out, "one trace: there is no interval over traces");
}

TEST_F(ReportCommand, NamesTheNearestColumnAndTheOthers) {
  const auto printed = report({one_.path(), "--y", "output_eror"});
  EXPECT_EQ(printed.code, kWrongUse);
  expect_has(printed.error, "'output_eror'");
  expect_has(printed.error, "set_consistency");
  expect_has(printed.error, "did you mean 'output_error'?");
  for (const auto& wrong : std::vector<std::vector<std::string>>{{"--by", "polcy"},
                                                                 {"--sort", "errror"},
                                                                 {"--filter", "laier==3"},
                                                                 {"--stat", "p96"},
                                                                 {"--format", "cvs"},
                                                                 {"--budget", "11%"},
                                                                 {"--at", "set_consistency"},
                                                                 {"--compare", "h2o"},
                                                                 {"--filter", "policy==nobody"}}) {
    std::vector<std::string> arguments{one_.path()};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(report(arguments).code, kWrongUse) << wrong[0] << " " << wrong[1];
  }
  EXPECT_EQ(report({}).code, kWrongUse);
  EXPECT_EQ(report({"/nowhere"}).code, kWrongUse);
}

TEST_F(ReportCommand, DiffAnswersByItsExitCode) {
  const ReportFolder same, other;
  test::write_report_run(same.path(), report_record(1));
  test::write_report_run(other.path(), report_record(1), 1e-6);
  const auto equal = report({"--diff", one_.path(), same.path()});
  EXPECT_EQ(equal.code, kDone);
  expect_has(equal.out, "no difference");
  const auto differing = report({"--diff", one_.path(), other.path(), "--tolerance", "0"});
  EXPECT_EQ(differing.code, kFoundSomething);
  expect_has(differing.out, "rows/output_error: 2 differ");
  EXPECT_EQ(report({"--diff", one_.path(), other.path(), "--tolerance", "1e-5"}).code, kDone);
  EXPECT_EQ(report({"--diff", one_.path()}).code, kWrongUse);
  EXPECT_EQ(report({"--diff", one_.path(), other.path(), "--tolerance", "nan"}).code, kWrongUse);
}

TEST(ReportCommandOverTraces, AveragesTracesWithIntervals) {
  const ReportFolder folder;
  test::write_report_run(folder.path(), report_record(3));
  // Trace means of h2o at 50%: 0.75, 1.25, 1.75.
  const auto csv = report({folder.path(), "--format", "csv", "--y", "output_error", "--filter", "policy==h2o",
                           "--budget", "50%"});
  expect_has(csv.out,
             "variant,budget_request,budget_tokens,output_error,output_error_low,output_error_high,"
             "traces\nh2o(),50%,50,1.25,");
  const auto table = report({folder.path(), "--y", "output_error", "--budget", "50%"});
  expect_has(table.out, "1.25 [");
  expect_has(table.out, "95% bootstrap interval");
  EXPECT_EQ(table.out, report({folder.path(), "--y", "output_error", "--budget", "50%"}).out);
  const auto pairs = report({folder.path(), "--compare", "h2o()", "snapkv", "--y", "output_error", "--budget",
                             "50%", "--format", "csv"});
  expect_has(pairs.out, "output_error,50%,1.25,0.625,0.625,");
  expect_has(pairs.out, ",0 of 3,0 of 6");
  const auto by_trace =
      report({folder.path(), "--by", "trace", "--x", "policy", "--y", "output_error", "--budget", "50%"});
  expect_has(by_trace.out, "t1        0  1.25   0.625");
}

TEST(ReportCommandOverTraces, ReadsSeveralFoldersAsOne) {
  const ReportFolder first, second;
  RunRecord record = report_record(2);
  test::write_report_run(first.path(), record);
  for (auto& trace : record.description.traces) {
    trace.name += "b";
    trace.digest_key += 10;
  }
  test::write_report_run(second.path(), record);
  expect_has(report({first.path(), second.path(), "--budget", "10%"}).out, "; 4 traces");
  EXPECT_EQ(report({first.path(), first.path()}).code, kWrongUse);
}

}  // namespace
}  // namespace kvsim
