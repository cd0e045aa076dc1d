// Merging: the same bytes whatever came first, CSV text, missing units, conflicts.
#include "analysis/result_store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <functional>
#include <iterator>
#include <sstream>

#include "analysis/csv.h"
#include "analysis/part_file.h"
#include "kernels/error.h"
#include "tests/analysis_cpp/sample_run.h"
#include "traces/h5/file.h"

namespace kvsim {
namespace {

using test::sample_record;
using test::sample_unit;
using test::slurp;
using test::TemporaryFolder;

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream text(slurp(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

TEST(MergeResults, WritesRowsInTheDocumentedOrder) {
  const TemporaryFolder folder;
  test::write_sample_run(folder.path(), sample_record());
  const MergeOutcome outcome = merge_results({folder.path()}, folder.path());
  EXPECT_EQ(outcome.rows, 3u * 2 * 3 * 3);
  EXPECT_TRUE(outcome.kept);
  const auto lines = lines_of(folder / "results.csv");
  ASSERT_EQ(lines.size(), outcome.rows + 1);
  EXPECT_EQ(lines[0],
            "trace,policy,variant,layer,kv_head,budget_request,budget_tokens,resident_tokens,peak_tokens,"
            "evicted,clamped,"
            "near_ties,output_error,set_consistency,miss_rate");
  EXPECT_TRUE(lines[1].starts_with("essay,full,full(),0,0,5%,51,51.1,56,973,1,0,"));
  EXPECT_TRUE(lines[4].starts_with("essay,h2o,h2o(),0,0,5%,51,"));
  EXPECT_TRUE(lines[7].starts_with("essay,snapkv,\"snapkv(window=32,pool=avg)\",0,0,5%,51,"));
  EXPECT_TRUE(lines[10].starts_with("essay,full,full(),0,1,5%,"));
  EXPECT_TRUE(lines[19].starts_with("essay,full,full(),3,0,5%,"));
  EXPECT_TRUE(lines[37].starts_with("\"news, \"\"late\"\"\",full,full(),1,0,5%,52,"));
}

TEST(MergeResults, SummarisesMetricsOfWholeTracesOverTheirSteps) {
  const TemporaryFolder folder;
  RunRecord record = sample_record();
  record.description.provenance.config += "detail = steps\n";
  for (const char* metric : {"predicted_kl", "predicted_kl_linear", "projected_sum"})
    record.description.metrics.emplace_back(metric);
  test::write_sample_run(folder.path(), record);
  merge_results({folder.path()}, folder.path());
  const h5::File file = h5::File::open(folder / "results.h5");
  const auto levels = file.read_strings("metrics/level");
  EXPECT_EQ(levels.back(), "trace");
  const h5::Group summary = file.group("summary");
  // The first trace has layers 0 and 3 (of 4), both with responses {1 + v, -1/2} and {b / 4, 3}, norms {4,
  // 2}, {1/2, 1/8}.
  const auto linear = summary.read_column<double>("predicted_kl_linear_mean");
  EXPECT_DOUBLE_EQ(linear[0], (2 + 0 + 1 + 6) / 4.0);            // variant 0, budget 0
  EXPECT_DOUBLE_EQ(linear[5], (2 * 2 + 2 * 0.5 + 1 + 6) / 4.0);  // variant 1, budget 2
  EXPECT_DOUBLE_EQ(summary.read_column<double>("projected_sum_mean")[5], 6.0);
  EXPECT_DOUBLE_EQ(summary.read_column<double>("projected_sum_max")[5], 8.0);
  EXPECT_EQ(summary.read_column<std::int64_t>("projected_sum_count")[5], 2);
  EXPECT_NEAR(summary.read_column<double>("predicted_kl_mean")[5], 4.6 * (0.25 + 0.015625) / 2,
              1e-12);  // the layer at full depth alone
  const h5::Group detail = file.group("trace_detail");
  EXPECT_EQ(detail.read_column<std::int64_t>("cell/budget_tokens").size(), 3u * 3 * 2);
  EXPECT_EQ(detail.dataset("projected_sum").read<float>()[0], 8.0f);
}

TEST(MergeResults, UndefinedIsEmptyInCsvAndNanInHdf5) {
  const TemporaryFolder folder;
  test::write_sample_run(folder.path(), sample_record());
  merge_results({folder.path()}, folder.path());
  const auto lines = lines_of(folder / "results.csv");
  EXPECT_NE(lines[13].find(",,"), std::string::npos) << lines[13];
  const h5::File file = h5::File::open(folder / "results.h5");
  EXPECT_TRUE(std::isnan(file.group("rows").read_column<double>("set_consistency")[12]));
}

TEST(MergeResults, HoldsTheSameValuesInHdf5AndCsv) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  test::write_sample_run(folder.path(), record);
  merge_results({folder.path()}, folder.path());
  const h5::File file = h5::File::open(folder / "results.h5");
  EXPECT_EQ(file.string_attribute("format"), "kvsim-results");
  EXPECT_EQ(file.string_attribute("instruction_path"), "AVX2");
  const auto error = file.group("rows").read_column<double>("output_error");
  const auto variant = file.group("rows").read_column<std::int32_t>("variant");
  const auto lines = lines_of(folder / "results.csv");
  ASSERT_EQ(error.size() + 1, lines.size());
  for (std::size_t i = 0; i < error.size(); ++i) {
    std::string text = ",";
    append_number(text, error[i]);
    EXPECT_NE(lines[i + 1].find(text + ","), std::string::npos) << lines[i + 1];
    EXPECT_NE(lines[i + 1].find(record.description.variants[static_cast<std::size_t>(variant[i])].policy),
              std::string::npos);
  }
}

TEST(MergeResults, IsTheSameToTheByteWhateverTheOrderOfPartsAndFolders) {
  const TemporaryFolder whole, first, second, joined;
  const RunRecord record = sample_record();
  test::write_sample_run(whole.path(), record);
  merge_results({whole.path()}, whole.path());
  for (const auto* folder : {&first, &second}) write_description(folder->path(), record);
  write_part(second.path(), sample_unit(record, {1, 1}), record.description, "b0");
  write_part(second.path(), sample_unit(record, {0, 0}), record.description, "b0");
  write_part(first.path(), sample_unit(record, {0, 3}), record.description, "b0");
  write_part(first.path(), sample_unit(record, {0, 0}), record.description, "b0");  // both have it, equal
  merge_results({second.path(), first.path()}, joined.path());
  for (const char* name : {"results.csv", "summary.csv", "layers.csv"}) {
    EXPECT_EQ(slurp(whole / name), slurp(joined / name)) << name;
  }
  EXPECT_EQ(slurp(whole / "kept.h5"), slurp(joined / "kept.h5"));
}

TEST(MergeResults, JoinsBatchesOfAnExtendedRun) {
  const TemporaryFolder whole, grown;
  const RunRecord record = sample_record();
  test::write_sample_run(whole.path(), record);
  merge_results({whole.path()}, whole.path());
  RunRecord early = record;
  early.description.variants.pop_back();
  test::write_sample_run(grown.path(), early, "b0");
  const RunRecord later = extended(early, record);
  write_description(grown.path(), later);
  for (const UnitId& id : later.units) {
    UnitResult unit = sample_unit(later, id);
    // The second batch answers the new variant and, once more, h2o.
    std::erase_if(unit.rows, [](const ResultRow& row) { return row.variant == 0; });
    std::erase_if(unit.layer_rows, [](const LayerRow& row) { return row.variant == 0; });
    std::erase_if(unit.cells, [](const CellDistributions& cell) { return cell.variant == 0; });
    std::erase_if(unit.kept, [](const KeptSet& kept) { return kept.variant == 0; });
    write_part(grown.path(), unit, later.description, "b1");
  }
  merge_results({grown.path()}, grown.path());
  for (const char* name : {"results.csv", "summary.csv", "layers.csv"})
    EXPECT_EQ(slurp(whole / name), slurp(grown / name));
}

TEST(MergeResults, ListsMissingUnitsAndLeavesThemOutWhenTold) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  write_description(folder.path(), record);
  write_part(folder.path(), sample_unit(record, {0, 3}), record.description, "b0");
  const std::string text = message_of([&] { merge_results({folder.path()}, folder.path()); });
  EXPECT_NE(text.find("2 of 3 units"), std::string::npos) << text;
  EXPECT_NE(text.find("essay layer 0"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(folder / "results.csv"));
  const MergeOutcome outcome =
      merge_results({folder.path()}, folder.path(), {.allow_mixed = false, .partial = true});
  EXPECT_EQ(outcome.rows, 18u);
  EXPECT_EQ(outcome.missing.size(), 2u);
}

TEST(MergeResults, RefusesMixedInstructionPathsUnlessAllowed) {
  const TemporaryFolder folder;
  RunRecord record = sample_record();
  write_description(folder.path(), record);
  for (const UnitId& unit : record.units) {
    record.description.provenance.instruction_path = unit.layer == 3 ? "AVX3" : "AVX2";
    write_part(folder.path(), sample_unit(record, unit), record.description, "b0");
  }
  EXPECT_NE(message_of([&] { merge_results({folder.path()}, folder.path()); }).find("AVX2, AVX3"),
            std::string::npos);
  merge_results({folder.path()}, folder.path(), {.allow_mixed = true, .partial = false});
  EXPECT_EQ(h5::File::open(folder / "results.h5").string_attribute("instruction_path"), "AVX2 + AVX3");
}

TEST(MergeResults, RefusesFoldersOfDifferentRunsAndConflictingParts) {
  const TemporaryFolder first, second;
  RunRecord record = sample_record();
  test::write_sample_run(first.path(), record);
  test::write_sample_run(second.path(), record);
  UnitResult unit = sample_unit(record, {0, 0});
  unit.rows[0].values[0] += 1;
  write_part(second.path(), unit, record.description, "b0");
  const auto merge = [&] { merge_results({first.path(), second.path()}, first.path()); };
  EXPECT_NE(message_of(merge).find("different results of the same unit"), std::string::npos);
  record.description.provenance.seed = 8;
  write_description(second.path(), record);
  EXPECT_NE(message_of(merge).find("seed: 7 -> 8"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(first / "results.h5"));
}

TEST(MergeResults, SummarisesOverLayersHeadsAndSteps) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  test::write_sample_run(folder.path(), record);
  merge_results({folder.path()}, folder.path());
  const h5::File file = h5::File::open(folder / "results.h5");
  const h5::Group summary = file.group("summary");
  // Row 0: essay, full(), 5%: two layers of two heads and five steps.
  Distribution joined = sample_unit(record, {0, 0}).cells[0].metrics[0];
  joined.merge(sample_unit(record, {0, 3}).cells[0].metrics[0]);
  EXPECT_EQ(summary.read_column<std::int64_t>("output_error_count")[0], 20);
  EXPECT_EQ(summary.read_column<double>("output_error_mean")[0], joined.sum / 20);
  EXPECT_EQ(summary.read_column<double>("output_error_p95")[0], joined.quantile(0.95));
  EXPECT_EQ(summary.read_column<double>("output_error_max")[0], joined.max);
  EXPECT_EQ(summary.read_column<double>("resident_tokens")[0], 51.1);
  EXPECT_TRUE(summary.has_dataset("set_consistency_p5"));
  EXPECT_TRUE(summary.has_dataset("set_consistency_min"));
  EXPECT_FALSE(summary.has_dataset("set_consistency_p95"));
  EXPECT_TRUE(summary.has_dataset("projected_error_max"));
  EXPECT_EQ(lines_of(folder / "summary.csv").size(), 1u + 2 * 3 * 3);
}

TEST(MergeResults, LeavesAVariantThatFailedInOneLayerOutOfTheSummary) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  write_description(folder.path(), record);
  for (const UnitId& id : record.units) {
    UnitResult unit = sample_unit(record, id);
    if (id.layer == 3) {
      std::erase_if(unit.rows, [](const ResultRow& row) { return row.variant == 1; });
      unit.failures.push_back({1, "NaN in its scores"});
    }
    write_part(folder.path(), unit, record.description, "b0");
  }
  const MergeOutcome outcome = merge_results({folder.path()}, folder.path());
  EXPECT_EQ(outcome.failures, 1u);
  const h5::File file = h5::File::open(folder / "results.h5");
  EXPECT_EQ(file.group("failures").read_strings("unit"), std::vector<std::string>{"essay layer 3"});
  const auto trace = file.group("summary").read_column<std::int32_t>("trace");
  EXPECT_EQ(std::count(trace.begin(), trace.end(), 0), 6);
  EXPECT_EQ(std::count(trace.begin(), trace.end(), 1), 9);
}

TEST(MergeResults, WritesKeptSetsAndStepDetails) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  test::write_sample_run(folder.path(), record);
  merge_results({folder.path()}, folder.path());
  const h5::File kept = h5::File::open(folder / "kept.h5");
  const auto variant = kept.group("cells").read_strings("variant");
  ASSERT_EQ(variant.size(), 18u);
  EXPECT_EQ(variant[3], "h2o()");
  const h5::Group layer = kept.group("kept/4/003");
  EXPECT_EQ(layer.string_attribute("unit"), "kv");
  EXPECT_EQ(layer.read_column<std::uint32_t>("indices"), (std::vector<std::uint32_t>{1, 5, 8, 2, 3}));
  EXPECT_EQ(layer.read_column<std::uint64_t>("offsets"), (std::vector<std::uint64_t>{0, 3, 5}));
  const h5::File results = h5::File::open(folder / "results.h5");
  const h5::Dataset detail = results.dataset("detail/miss_rate");
  EXPECT_EQ(detail.shape(), (h5::Shape{54, 3}));
  EXPECT_EQ(detail.read<float>()[3 * 2 + 1], 0.5f);
  EXPECT_EQ(results.group("detail/cell").read_column<std::int64_t>("budget_tokens")[2], 2048);
}

TEST(MergeResults, OnAFullDiskThrowsAndLeavesNothingBehind) {
  const TemporaryFolder folder;
  test::write_sample_run(folder.path(), sample_record());
  // The limit on file sizes makes writes fail as a full disk does, with EFBIG for ENOSPC.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t bytes : {rlim_t{4096}, rlim_t{1} << 15}) {
    const rlimit small{bytes, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    EXPECT_THROW(merge_results({folder.path()}, folder.path()), UserError);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  }
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1) << "only parts";
  EXPECT_EQ(merge_results({folder.path()}, folder.path()).rows, 54u);
}

TEST(AppendNumber, IsTheShortestTextThatReadsBack) {
  const auto text = [](double value) {
    std::string out;
    append_number(out, value);
    return out;
  };
  EXPECT_EQ(text(0.1), "0.1");
  EXPECT_EQ(text(1.0 / 3), "0.3333333333333333");
  EXPECT_EQ(text(128), "128");
  EXPECT_EQ(text(-0.0), "-0");
  EXPECT_EQ(text(5e-324), "5e-324");
  EXPECT_EQ(text(std::nan("")), "");
}

TEST(CsvField, QuotesWhatNeedsQuotes) {
  EXPECT_EQ(csv_field("full()"), "full()");
  EXPECT_EQ(csv_field("a,b"), "\"a,b\"");
  EXPECT_EQ(csv_field("say \"x\""), "\"say \"\"x\"\"\"");
  EXPECT_EQ(csv_field("two\nlines"), "\"two\nlines\"");
}

}  // namespace
}  // namespace kvsim
