// Reading results back, joining several, and comparing two.
#include "analysis/result_reader.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "analysis/part_file.h"
#include "analysis/report.h"
#include "analysis/result_store.h"
#include "tests/analysis_cpp/sample_run.h"
#include "traces/h5/file.h"

namespace kvsim {
namespace {

using test::sample_record;
using test::sample_unit;
using test::TemporaryFolder;

void make_results(const std::string& folder, const RunRecord& record) {
  test::write_sample_run(folder, record);
  merge_results({folder}, folder);
}

std::string message_of(const std::string& path) {
  try {
    read_results(path, false);
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ReadResults, GivesTablesInColumnOrderWithNames) {
  const TemporaryFolder folder;
  make_results(folder.path(), sample_record());
  const Results results = read_results(folder.path(), true);
  EXPECT_EQ(results.variants[2].spec, "snapkv(window=32,pool=avg)");
  EXPECT_EQ(results.rows.rows(), 54u);
  EXPECT_EQ(results.layer_rows.rows(), 27u);
  EXPECT_EQ(results.rows.column_names()[11], "near_ties");
  EXPECT_EQ(results.rows.column_names()[12], "output_error");
  EXPECT_EQ(results.rows.at("trace").text(results.rows.at("trace").numbers[53]), "news, \"late\"");
  EXPECT_EQ(results.summary.column_names()[10], "output_error_count");
  EXPECT_EQ(results.summary.column_names()[15], "output_error_max");
  EXPECT_TRUE(results.metric("set_consistency")->higher_is_better);
  EXPECT_EQ(results.metric("projected_error")->level, "layer");
  try {
    results.rows.at("output_eror");
    FAIL() << "an unknown column was found";
  } catch (const UnknownName& error) {
    EXPECT_EQ(error.word, "output_eror");
    EXPECT_NE(std::string(error.what()).find("output_error"), std::string::npos);
  }
}

TEST(ReadResults, SaysWhatIsWrongWithAFolderOrFile) {
  const TemporaryFolder folder;
  EXPECT_NE(message_of(folder / "nothing").find("no such folder"), std::string::npos);
  EXPECT_NE(message_of(folder.path()).find("holds no results.h5"), std::string::npos);
  write_description(folder.path(), sample_record());
  EXPECT_NE(message_of(folder.path()).find("kvsim merge"), std::string::npos);
  std::ofstream(folder / "results.h5") << "not HDF5";
  EXPECT_NE(message_of(folder.path()).find("no HDF5 file"), std::string::npos);
  std::filesystem::remove(folder / "results.h5");
  make_results(folder.path(), sample_record());
  h5::File::open_for_writing(folder / "results.h5").set_attribute("version", "2.0");
  EXPECT_NE(message_of(folder.path()).find("version 2.0"), std::string::npos);
  h5::File::open_for_writing(folder / "results.h5").set_attribute("format", "kvsim-trace");
  EXPECT_NE(message_of(folder.path()).find("'kvsim-trace'"), std::string::npos);
}

TEST(JoinResults, JoinsTracesOfTwoRunsAndRefusesTheSameCellTwice) {
  const TemporaryFolder first, second;
  RunRecord record = sample_record();
  make_results(first.path(), record);
  record.description.traces[0].name = "poem";
  record.description.traces[0].digest_key = 1;
  record.description.traces[1].name = "play";
  record.description.traces[1].digest_key = 2;
  record.description.variants[1] = {"0000000000000007", "tova", "tova()", "", true, false, false};
  make_results(second.path(), record);
  const Results joined =
      join_results({read_results(first.path(), false), read_results(second.path(), false)});
  EXPECT_EQ(joined.traces.size(), 4u);
  EXPECT_EQ(joined.variants.size(), 4u);
  EXPECT_EQ(joined.summary.rows(), 36u);
  const Column& variant = joined.summary.at("variant");
  EXPECT_EQ(variant.text(variant.numbers[18 + 3]), "tova()");
  EXPECT_THROW(join_results({read_results(first.path(), false), read_results(first.path(), false)}),
               UserError);
}

TEST(DiffResults, CountsEveryNumberThatDiffersAndHonoursTheTolerance) {
  const TemporaryFolder first, second;
  const RunRecord record = sample_record();
  make_results(first.path(), record);
  write_description(second.path(), record);
  for (const UnitId& id : record.units) {
    UnitResult unit = sample_unit(record, id);
    if (id.layer == 3) unit.rows[4].values[2] += 1e-7;
    write_part(second.path(), unit, record.description, "b0");
  }
  merge_results({second.path()}, second.path());
  const Results a = read_results(first.path(), true), b = read_results(second.path(), true);
  EXPECT_EQ(diff_results(a, a, 0).differing, 0u);
  const Difference difference = diff_results(a, b, 0);
  EXPECT_EQ(difference.differing, 1u);
  EXPECT_NE(difference.text.find("miss_rate"), std::string::npos) << difference.text;
  EXPECT_NE(difference.text.find("layer 3, kv_head 0"), std::string::npos) << difference.text;
  EXPECT_EQ(diff_results(a, b, 1e-6).differing, 0u);
}

TEST(DiffResults, ReportsRowsAndColumnsThatOnlyOneSideHas) {
  const TemporaryFolder first, second;
  RunRecord record = sample_record();
  make_results(first.path(), record);
  record.description.variants.pop_back();
  make_results(second.path(), record);
  const Difference difference =
      diff_results(read_results(first.path(), true), read_results(second.path(), true), 1);
  EXPECT_EQ(difference.differing, 18u + 9 + 6);
  EXPECT_NE(difference.text.find("only A has"), std::string::npos);
  EXPECT_NE(difference.text.find("rows/rows: 18 differ"), std::string::npos) << difference.text;
}

}  // namespace
}  // namespace kvsim
