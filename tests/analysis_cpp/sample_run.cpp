// A small made-up run for the tests of results.
#include "tests/analysis_cpp/sample_run.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "analysis/part_file.h"

namespace kvsim::test {
namespace {

constexpr std::uint32_t kHeads = 2;
constexpr std::uint32_t kSteps = 5;

double value_at(std::uint32_t trace, std::uint32_t layer, std::uint32_t head, std::uint32_t variant,
                std::uint32_t budget, std::uint32_t metric, std::uint32_t step) {
  const double x =
      1.0 + trace + 3.0 * layer + 0.5 * head + 0.25 * variant + 0.125 * budget + 0.3 * metric + 0.01 * step;
  return std::fabs(std::sin(x * 12.9898) * std::cos(x));
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kvsim-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  path_ = pattern;
}
TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

RunRecord sample_record() {
  RunRecord record;
  RunDescription& d = record.description;
  const std::vector<BudgetPoint> budgets{{"5%", 51}, {"128", 128}, {"2048", 2048}};
  d.traces.push_back(
      {"essay", "/data/essay.h5", "00aa", "tiny", "bfloat16", 0xAA, 2, 4, 2, 8, 1024, kSteps, budgets});
  d.traces.push_back({"news, \"late\"",
                      "/data/news.h5",
                      "00bb",
                      "tiny",
                      "float32",
                      0xBB,
                      1,
                      4,
                      2,
                      8,
                      1030,
                      kSteps,
                      {{"5%", 52}, {"128", 128}, {"2048", 2048}}});
  d.variants.push_back({"0000000000000001", "full", "full()", "none", true, false, true});
  d.variants.push_back({"0000000000000002", "h2o", "h2o()", "arXiv:2306.14048", true, false, false});
  d.variants.push_back(
      {"0000000000000003", "snapkv", "snapkv(window=32,pool=avg)", "arXiv:2404.14469", true, false, false});
  d.metrics = {"output_error", "set_consistency", "miss_rate", "projected_error"};
  d.provenance = {
      "0.1.0", "abc", "2026-01-01T00:00:00Z", "kvsim run", "seed = 7\n", "g++", "-O2", "a cpu", "cpu", "AVX2",
      7,       2};
  record.units = {{0, 0}, {0, 3}, {1, 1}};
  return record;
}

UnitResult sample_unit(const RunRecord& record, const UnitId& unit) {
  UnitResult result;
  result.trace = unit.trace;
  result.layer = unit.layer;
  const auto variants = static_cast<std::uint32_t>(record.description.variants.size());
  const auto& points = record.description.traces[unit.trace].budgets;
  const auto budgets = static_cast<std::uint32_t>(points.size());
  for (std::uint32_t v = 0; v < variants; ++v) {
    for (std::uint32_t b = 0; b < budgets; ++b) {
      CellDistributions cell{v, b, std::vector<Distribution>(4)};
      for (std::uint32_t m = 0; m < 4; ++m) {
        for (std::uint32_t h = 0; h < kHeads; ++h) {
          for (std::uint32_t s = 0; s < kSteps; ++s)
            cell.metrics[m].add(value_at(unit.trace, unit.layer, h, v, b, m, s));
        }
        cell.metrics[m].finish();
      }
      result.cells.push_back(cell);
      result.layer_rows.push_back(
          {v, b, points[b].tokens * 1.0, {value_at(unit.trace, unit.layer, 9, v, b, 3, 0)}});
      result.effects.push_back({v, b, 2, (unit.layer + 1) / 4.0, {1.0f + static_cast<float>(v), -0.5f, 0.25f * static_cast<float>(b), 3}, {4, 2}, {0.5f, 0.125f}});
      result.kept.push_back({v, b, "kv", {1, 5, 7 + b, 2, 3}, {0, 3, 5}, {}, kEntryStates[(v + b) % 3]});
    }
  }
  for (std::uint32_t h = 0; h < kHeads; ++h) {
    for (std::uint32_t v = 0; v < variants; ++v) {
      for (std::uint32_t b = 0; b < budgets; ++b) {
        ResultRow row{h,      v, b, points[b].tokens + 0.1, points[b].tokens + 5.0, 1024.0 - points[b].tokens,
                      b == 0, v, {}};
        for (std::uint32_t m = 0; m < 3; ++m)
          row.values.push_back(value_at(unit.trace, unit.layer, h, v, b, m, 0));
        if (h == 1 && v == 1 && b == 0) row.values[1] = std::numeric_limits<double>::quiet_NaN();
        result.rows.push_back(row);
        result.detail.push_back({h, v, b, 2, {0.5f, 0.25f * static_cast<float>(b), 1.0f}});
      }
    }
  }
  result.perf = {{"replay", 0.125}};
  return result;
}

void write_sample_run(const std::string& folder, const RunRecord& record, const std::string& batch) {
  write_description(folder, record);
  for (const UnitId& unit : record.units)
    write_part(folder, sample_unit(record, unit), record.description, batch);
}

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace kvsim::test
