// kvsim report beside what the real model did: columns of the divergence, rank correlations worked out by
// hand, damaged files.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "analysis/report.h"
#include "sim/cli/command.h"
#include "tests/cli/report_sample.h"
#include "traces/h5/file.h"

namespace kvsim {
namespace {

using test::report;
using test::report_record;
using test::ReportFolder;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "expected\n" << part << "\nin\n" << text;
}

struct JudgedCell {
  std::string trace, variant;
  std::int64_t tokens;
  double kl;  // mean over the steps
};

/// Four steps with 0.5, 1, 1.5 of a cell's KL and an undefined one; the likeliest token is the same at two of
/// three.
void write_closed(const std::string& path, const std::vector<JudgedCell>& cells,
                  const std::string& digest = "dt0") {
  std::vector<std::string> trace, variant;
  std::vector<std::int64_t> tokens;
  std::vector<double> kl, likelihood;
  std::vector<std::uint8_t> agree;
  for (const JudgedCell& cell : cells) {
    trace.push_back(cell.trace);
    variant.push_back(cell.variant);
    tokens.push_back(cell.tokens);
    kl.insert(kl.end(), {0.5 * cell.kl, cell.kl, 1.5 * cell.kl, kNaN});
    likelihood.insert(likelihood.end(), {-1, -3, kNaN, kNaN});
    agree.insert(agree.end(), {1, 1, 0, 255});
  }
  h5::File file = h5::File::create(path, h5::File::Create::replace);
  file.set_attribute("format", "kvsim-closed");
  file.set_attribute("version", "1.0");
  file.write_column("cells/trace", trace);
  file.write_column("cells/variant", variant);
  file.write_column("cells/budget_tokens", tokens);
  const h5::Shape shape{cells.size(), 4};
  file.write_array<double>("steps/kl", shape, kl);
  file.write_array<std::uint8_t>("steps/top1_agree", shape, agree);
  file.write_array<double>("steps/log_likelihood", shape, likelihood);
  h5::Group full = file.create_group("full/t0");
  full.set_attribute("digest", digest);
  full.write_column("log_likelihood", std::vector<double>{-2, -2, kNaN});
  file.close();
}

class ReportClosed : public testing::Test {
 protected:
  void SetUp() override { test::write_report_run(folder_.path(), report_record(1)); }
  std::string closed() const { return folder_.path() + "/closed.h5"; }
  /// By output_error the cells of h2o and snapkv at 10% and 50% are, from the best: s50 0.375, s10 0.675, h50
  /// 0.75, h10 1.35. By KL the first two have changed places: 1 - 6 * 2 / (4 * 15) = 0.8.
  std::vector<JudgedCell> judged() const {
    return {{"t0", "full()", 10, 0},
            {"t0", "h2o()", 10, 2},
            {"t0", "h2o()", 50, 1},
            {"t0", "snapkv(window=32)", 10, 0.25},
            {"t0", "snapkv(window=32)", 50, 0.5}};
  }
  ReportFolder folder_;
};

TEST(RankCorrelation, IsSpearmansWithTiesAtTheirMeanRank) {
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3, 4, 5}, {10, 20, 30, 50, 40}), 0.9);
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 3}, {3, 2, 1}), -1);
  // Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
  EXPECT_DOUBLE_EQ(rank_correlation({1, 2, 2, 3}, {1, 2, 3, 4}), 4.5 / std::sqrt(22.5));
  EXPECT_DOUBLE_EQ(rank_correlation({1, kNaN, 2, 3, 4}, {1, 9, 2, 4, 3}), 0.8);
  EXPECT_TRUE(std::isnan(rank_correlation({1, 2, kNaN}, {1, 2, 3})));
  EXPECT_TRUE(std::isnan(rank_correlation({1, 1, 1}, {1, 2, 3})));
}

TEST_F(ReportClosed, WarnsOfOpenLoopFiguresWhereTheModelWasNotAsked) {
  const auto printed = report({folder_.path(), "--y", "set_consistency"});
  expect_has(printed.out,
             "note: open-loop figures alone (set_consistency): they order policies only roughly");
  expect_has(printed.out, "'kvsim-judge " + folder_.path() + "'");
  EXPECT_EQ(printed.out.find("how well each figure orders"), std::string::npos);
  expect_has(report({folder_.path(), "--at", "set_consistency>=0.75"}).out, "note: open-loop figures alone");
  expect_has(report({folder_.path(), "--compare", "h2o", "snapkv"}).out, "note: open-loop figures alone");
}

TEST_F(ReportClosed, RanksByTheModelsOwnDivergenceAndLeavesUnjudgedCellsLast) {
  write_closed(closed(), {{"t0", "h2o()", 10, 0.25}});
  const auto printed = report({folder_.path(), "--budget", "10%"});
  EXPECT_EQ(printed.code, kDone) << printed.error;
  expect_has(
      printed.out,
      "#  variant              kl  top1_agreement  output_error  set_consistency  resident_tokens  remark\n"
      "1  h2o()              0.25          0.6667          1.35              0.1               10\n");
  expect_has(printed.out,
             "2  snapkv(window=32)     -               -         0.675             0.55               10  "
             "clamped\n");
  expect_has(printed.out, "with the kept sets of 1 of 3 cells");
  expect_has(printed.out, "a figure of kl is over 3 values per trace (decode steps)");
  EXPECT_EQ(printed.out.find("open-loop figures alone"), std::string::npos);
}

TEST_F(ReportClosed, ShowsHowWellEachFigureOrdersTheJudgedCells) {
  write_closed(closed(), judged());
  const auto printed = report({folder_.path()});
  expect_has(printed.out,
             "figure           rank correlation  cells\n"
             "output_error                 0.80      4\n"
             "set_consistency              0.80      4\n");
  expect_has(report({folder_.path(), "--format", "md"}).out,
             "| output_error    |             0.80 |     4 |");
  EXPECT_EQ(report({folder_.path(), "--format", "csv"}).out.find("how well each figure orders"),
            std::string::npos);
  EXPECT_EQ(
      report({folder_.path(), "--x", "layer", "--y", "output_error"}).out.find("how well each figure orders"),
      std::string::npos);
}

TEST_F(ReportClosed, CorrelatesMeansOverTracesAndEachTrace) {
  ReportFolder two;
  test::write_report_run(two.path(), report_record(2));
  auto cells = judged();
  // On the second trace the order by KL is that by output_error, and small, so that the means keep the first
  // trace's order.
  for (const auto& [variant, tokens, kl] :
       std::vector<std::tuple<std::string, std::int64_t, double>>{{"h2o()", 10, 0.04},
                                                                  {"h2o()", 50, 0.03},
                                                                  {"snapkv(window=32)", 10, 0.02},
                                                                  {"snapkv(window=32)", 50, 0.01}})
    cells.push_back({"t1", variant, tokens, kl});
  write_closed(two.path() + "/closed.h5", cells);
  const auto printed = report({two.path()});
  expect_has(printed.out,
             "figure           rank correlation  least of a trace  most of a trace  cells\n"
             "output_error                 0.80              0.80             1.00      4\n");
}

TEST_F(ReportClosed, GivesStatisticsOverStepsConditionsAndComparisons) {
  write_closed(closed(), judged());
  EXPECT_EQ(report({folder_.path(), "--y", "kl,top1_agreement,log_likelihood_change", "--filter",
                    "policy==h2o", "--budget", "10%", "--format", "csv"})
                .out,
            "variant,budget_request,budget_tokens,kl,top1_agreement,log_likelihood_change,traces\n"
            "h2o(),10%,10,2,0.6666666666666666,0,1\n");  // 1 better, then 1 worse
  // Of 1, 2, 3 and of 0, 1, 1: nearest rank, from the bad end.
  EXPECT_EQ(report({folder_.path(), "--y", "kl,top1_agreement", "--stat", "p95", "--filter", "policy==h2o",
                    "--budget", "10%", "--format", "csv"})
                .out,
            "variant,budget_request,budget_tokens,kl_p95,top1_agreement_p5,traces\nh2o(),10%,10,3,0,1\n");
  expect_has(report({folder_.path(), "--at", "kl<=1"}).out,
             "h2o()              50% (50)     1  not yet at 10% (10)");
  expect_has(report({folder_.path(), "--compare", "h2o", "snapkv", "--y", "kl", "--budget", "10%"}).out,
             "kl      10% (10)  2  0.25   1.75");
  EXPECT_EQ(report({folder_.path(), "--y", "kl", "--x", "layer"}).code, kWrongUse);
}

TEST_F(ReportClosed, ReadsNamedFilesAndRefusesThoseOfOtherRuns) {
  const std::string other = folder_.path() + "/other.h5";
  write_closed(other, judged());
  expect_has(report({folder_.path(), "--closed", other}).out, "how well each figure orders");
  EXPECT_EQ(report({folder_.path()}).out.find("how well each figure orders"), std::string::npos);
  write_closed(other, {{"elsewhere", "h2o()", 10, 1}});
  const auto none = report({folder_.path(), "--closed", other});
  EXPECT_EQ(none.code, kWrongUse);
  expect_has(none.error, "holds no cell of these results");
  write_closed(other, judged(), "another");
  const auto another = report({folder_.path(), "--closed", other});
  EXPECT_EQ(another.code, kWrongUse);
  expect_has(another.error, "the model judged another recording of t0");
  EXPECT_EQ(report({folder_.path(), "--closed", "/nowhere.h5"}).code, kWrongUse);
}

TEST_F(ReportClosed, RefusesDamagedFilesInOneLine) {
  const auto refuses = [&](const std::string& said) {
    const auto found = report({folder_.path()});  // by itself: the report goes on without it, and says so
    EXPECT_EQ(found.code, kDone) << said;
    expect_has(found.error, "left out: " + closed());
    expect_has(found.error, said);
    EXPECT_EQ(found.out.find("how well each figure orders"), std::string::npos);
    const auto printed = report({folder_.path(), "--closed", closed()});
    EXPECT_EQ(printed.code, kWrongUse) << said;
    expect_has(printed.error, said);
    EXPECT_EQ(printed.error.find('\n'), std::string::npos) << printed.error;
  };
  write_closed(closed(), {{"t0", "h2o()", 10, -1}});
  refuses("values that are no divergence");
  write_closed(closed(), {{"t0", "h2o()", 10, std::numeric_limits<double>::infinity()}});
  refuses("values that are no divergence");
  write_closed(closed(), {{"t0", "h2o()", 10, 1}, {"t0", "h2o()", 10, 1}});
  refuses("stands there twice");
  {
    h5::File file = h5::File::create(closed(), h5::File::Create::replace);
    file.set_attribute("format", "kvsim-closed");
    file.set_attribute("version", "1.0");
    file.write_column("cells/trace", std::vector<std::string>{"t0"});
    file.write_column("cells/variant", std::vector<std::string>{"h2o()"});
    file.write_column("cells/budget_tokens", std::vector<std::int64_t>{10});
    file.write_column("steps/kl", std::vector<double>{1});
    file.close();
  }
  refuses("/steps/kl is [1], not [1 cells, steps]");
  write_closed(closed(), judged());
  {
    const std::vector<std::uint8_t> seven(5 * 4, 7);
    h5::Dataset agree = h5::File::open_for_writing(closed()).dataset("steps/top1_agree");
    agree.write_raw(std::vector<std::uint64_t>{0, 0}, std::vector<std::uint64_t>{5, 4},
                    std::as_bytes(std::span(seven)));
  }
  refuses("something else than 0, 1 and 255");
  write_closed(closed(), judged());
  std::filesystem::resize_file(closed(), 1500);
  refuses("closed.h5");
  std::ofstream(closed()) << "no HDF5";
  refuses("closed.h5");
}

}  // namespace
}  // namespace kvsim
