// Part files: exact round trips, damage, foreign parts, full disks.
#include "analysis/part_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <bit>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "kernels/error.h"
#include "tests/analysis_cpp/sample_run.h"

namespace kvsim {
namespace {

using test::sample_record;
using test::sample_unit;
using test::TemporaryFolder;

void expect_same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(a[i]), std::bit_cast<std::uint64_t>(b[i])) << i;
  }
}

std::size_t files_in(const std::string& folder) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

TEST(PartFile, GivesEveryFieldBackToTheLastBit) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  UnitResult unit = sample_unit(record, {0, 3});
  unit.failures.push_back({2, "NaN in head 1"});
  write_part(folder.path(), unit, record.description, "b0");
  const UnitResult back =
      read_part(part_path(folder.path(), record.description.traces[0], 3, "b0"), record.description);
  EXPECT_EQ(back.trace, 0u);
  EXPECT_EQ(back.layer, 3u);
  ASSERT_EQ(back.rows.size(), unit.rows.size());
  for (std::size_t i = 0; i < unit.rows.size(); ++i) {
    const ResultRow &a = unit.rows[i], &b = back.rows[i];
    EXPECT_EQ(a.kv_head, b.kv_head);
    EXPECT_EQ(a.variant, b.variant);
    EXPECT_EQ(a.budget, b.budget);
    EXPECT_EQ(a.clamped, b.clamped);
    EXPECT_EQ(a.near_ties, b.near_ties);
    expect_same_bits({a.resident_tokens, a.peak_tokens, a.evicted},
                     {b.resident_tokens, b.peak_tokens, b.evicted});
    expect_same_bits(a.values, b.values);
  }
  ASSERT_EQ(back.layer_rows.size(), unit.layer_rows.size());
  for (std::size_t i = 0; i < unit.layer_rows.size(); ++i) {
    EXPECT_EQ(unit.layer_rows[i].budget, back.layer_rows[i].budget);
    expect_same_bits(unit.layer_rows[i].values, back.layer_rows[i].values);
  }
  ASSERT_EQ(back.cells.size(), unit.cells.size());
  for (std::size_t i = 0; i < unit.cells.size(); ++i) {
    ASSERT_EQ(unit.cells[i].metrics.size(), back.cells[i].metrics.size());
    for (std::size_t m = 0; m < unit.cells[i].metrics.size(); ++m) {
      const Distribution &a = unit.cells[i].metrics[m], &b = back.cells[i].metrics[m];
      EXPECT_EQ(a.count, b.count);
      EXPECT_EQ(a.bins, b.bins);
      expect_same_bits({a.sum, a.min, a.max}, {b.sum, b.min, b.max});
    }
  }
  ASSERT_EQ(back.effects.size(), unit.effects.size());
  for (std::size_t i = 0; i < unit.effects.size(); ++i) {
    const LayerEffect &a = unit.effects[i], &b = back.effects[i];
    EXPECT_EQ(std::pair(a.variant, a.budget), std::pair(b.variant, b.budget));
    EXPECT_EQ(a.samples, b.samples);
    EXPECT_EQ(a.depth, b.depth);
    EXPECT_EQ(a.response, b.response);
    EXPECT_EQ(a.projected, b.projected);
    EXPECT_EQ(a.relative, b.relative);
  }
  ASSERT_EQ(back.failures.size(), 1u);
  EXPECT_EQ(back.failures[0].message, "NaN in head 1");
  ASSERT_EQ(back.kept.size(), unit.kept.size());
  EXPECT_EQ(back.kept[4].indices, unit.kept[4].indices);
  EXPECT_EQ(back.kept[4].offsets, unit.kept[4].offsets);
  EXPECT_EQ(back.kept[4].unit, "kv");
  for (std::size_t i = 0; i < unit.kept.size(); ++i) EXPECT_EQ(back.kept[i].entries, unit.kept[i].entries);
  ASSERT_EQ(back.detail.size(), unit.detail.size());
  EXPECT_EQ(back.detail[5].steps, unit.detail[5].steps);
  EXPECT_EQ(back.detail[5].metric, 2u);
  EXPECT_EQ(back.perf, unit.perf);
}

TEST(PartFile, NamesVariantsAndBudgetsSoThatAnExtendedRunFindsThem) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  write_part(folder.path(), sample_unit(record, {0, 0}), record.description, "b0");
  RunRecord later = record;
  later.description.variants.insert(later.description.variants.begin(),
                                    {"0000000000000009", "tova", "tova()", "", true, false, false});
  later.description.variants.erase(later.description.variants.begin() + 1);  // full() is gone
  const UnitResult back =
      read_part(part_path(folder.path(), record.description.traces[0], 0, "b0"), later.description);
  EXPECT_EQ(back.rows.size(), sample_unit(record, {0, 0}).rows.size() / 3 * 2);
  EXPECT_EQ(back.cells.size(), 6u);
  EXPECT_EQ(later.description.variants[back.rows[0].variant].spec, "h2o()");
}

TEST(ListParts, ReportsDamageAndPassesOverTemporaryFiles) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  test::write_sample_run(folder.path(), record);
  const std::string cut = part_path(folder.path(), record.description.traces[0], 0, "b0");
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) / 2);
  const std::string changed = part_path(folder.path(), record.description.traces[0], 3, "b0");
  std::string bytes = test::slurp(changed);
  const std::string needle(reinterpret_cast<const char*>(&sample_unit(record, {0, 3}).rows[0].values[0]), 8);
  const std::size_t at = bytes.find(needle);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  std::ofstream(changed, std::ios::binary) << bytes;
  std::ofstream(folder / "parts/essay-007-b0.h5.77.tmp") << "half";

  const auto parts = list_parts(folder.path(), record.description);
  ASSERT_EQ(parts.size(), 3u);
  std::size_t damaged = 0, valid = 0;
  for (const PartInfo& part : parts) {
    damaged += part.state == PartInfo::State::damaged;
    valid += part.state == PartInfo::State::valid;
    if (part.path == cut || part.path == changed) {
      EXPECT_NE(part.problem.find(part.path), std::string::npos);
    }
    if (part.path == changed) {
      EXPECT_NE(part.problem.find("checksum"), std::string::npos);
    }
  }
  EXPECT_EQ(damaged, 2u);
  EXPECT_EQ(valid, 1u);
  const auto missing = missing_cells(record, parts);
  ASSERT_EQ(missing.size(), 2u);
  EXPECT_EQ(missing.at({0, 0}).size(), 9u);
}

TEST(ListParts, RecognisesPartsOfAnotherRecordingOrOtherMetrics) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  test::write_sample_run(folder.path(), record);
  RunRecord changed = record;
  changed.description.traces[1].digest_key = 0xCC;
  for (const PartInfo& part : list_parts(folder.path(), changed.description)) {
    EXPECT_EQ(part.state == PartInfo::State::foreign, part.problem.find("has changed") != std::string::npos);
    EXPECT_EQ(part.state == PartInfo::State::foreign, part.path.find("news") != std::string::npos);
  }
  RunRecord other = record;
  other.description.metrics.pop_back();
  for (const PartInfo& part : list_parts(folder.path(), other.description))
    EXPECT_EQ(part.state, PartInfo::State::foreign);
}

TEST(ListParts, OfAFolderThatIsNotThereIsEmpty) {
  EXPECT_TRUE(list_parts("/nowhere/at/all", sample_record().description).empty());
}

TEST(ListParts, KeepsToOneBatchWhenAsked) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  write_part(folder.path(), sample_unit(record, {0, 0}), record.description, "b0");
  write_part(folder.path(), sample_unit(record, {0, 0}), record.description, "b1");
  EXPECT_EQ(list_parts(folder.path(), record.description).size(), 2u);
  ASSERT_EQ(list_parts(folder.path(), record.description, "b1").size(), 1u);
  EXPECT_EQ(list_parts(folder.path(), record.description, "b1")[0].batch, "b1");
}

TEST(MissingCells, DoNotCountRefusedOrFailedVariants) {
  const TemporaryFolder folder;
  RunRecord record = sample_record();
  record.refusals.push_back({0, 1, "needs all prompt queries"});
  for (const UnitId& id : record.units) {
    UnitResult unit = sample_unit(record, id);
    std::erase_if(unit.rows, [&](const ResultRow& row) {
      return (id.trace == 0 && row.variant == 1) || row.variant == 2;
    });
    unit.failures.push_back({2, "it failed"});
    write_part(folder.path(), unit, record.description, "b0");
  }
  EXPECT_TRUE(missing_cells(record, list_parts(folder.path(), record.description)).empty());
}

TEST(WritePart, OnAFullDiskThrowsAndLeavesNothing) {
  const TemporaryFolder folder;
  const RunRecord record = sample_record();
  write_part(folder.path(), sample_unit(record, {0, 0}), record.description, "b0");
  UnitResult large = sample_unit(record, {0, 3});
  large.kept[0].indices.resize(1 << 20, 7);
  // The limit on file sizes makes writes fail as a full disk does, with EFBIG for ENOSPC.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 18, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(write_part(folder.path(), large, record.description, "b0"), UserError);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(files_in(folder / "parts"), 1u);
  const auto parts = list_parts(folder.path(), record.description);
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].state, PartInfo::State::valid);
  write_part(folder.path(), large, record.description, "b0");
  EXPECT_EQ(list_parts(folder.path(), record.description).size(), 2u);
}

}  // namespace
}  // namespace kvsim
