// Results with hand-made numbers.
#include "tests/cli/report_sample.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "analysis/part_file.h"
#include "analysis/result_store.h"
#include "kernels/error.h"
#include "sim/cli/command.h"

namespace kvsim::test {
namespace {

double error_of(const UnitId& unit, std::uint32_t variant, double left, double change) {
  if (variant == 0) return 0;
  const double full = left * (1.0 + unit.layer + unit.trace) + (unit.layer == 1 && left > 0.8 ? change : 0);
  return variant == 1 ? full : full / 2;
}
double consistency_of(std::uint32_t variant, double left) { return variant == 0 ? 1 : 1 - left / variant; }

Printed captured(int (*command)(const Arguments&), const std::vector<std::string>& arguments) {
  Printed printed;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  try {
    printed.code = command(arguments);
    printed.error = testing::internal::GetCapturedStderr();
  } catch (const UserError& error) {
    // As the program's main does.
    testing::internal::GetCapturedStderr();
    printed.code = kWrongUse;
    printed.error = error.what();
  }
  printed.out = testing::internal::GetCapturedStdout();
  return printed;
}

}  // namespace

ReportFolder::ReportFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kvsim-report-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  path_ = pattern;
}
ReportFolder::~ReportFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

RunRecord report_record(std::size_t traces) {
  RunRecord record;
  for (std::uint32_t t = 0; t < traces; ++t) {
    const std::string name = "t" + std::to_string(t);
    record.description.traces.push_back({name,
                                         name + ".h5",
                                         "d" + name,
                                         "tiny",
                                         "float32",
                                         t + 1,
                                         2,
                                         1,
                                         1,
                                         8,
                                         100,
                                         4,
                                         {{"10%", 10}, {"50%", 50}, {"100%", 100}}});
    record.units.push_back({t, 0});
    record.units.push_back({t, 1});
  }
  record.description.variants = {{"0000000000000001", "full", "full()", "", true, false, true},
                                 {"0000000000000002", "h2o", "h2o()", "", true, false, false},
                                 {"0000000000000003", "snapkv", "snapkv(window=32)", "", true, false, false}};
  record.description.metrics = {"output_error", "set_consistency"};
  record.description.provenance.instruction_path = "AVX2";
  return record;
}

void write_report_parts(const std::string& folder, const RunRecord& record, const std::vector<UnitId>& units,
                        double change) {
  write_description(folder, record);
  for (const UnitId& unit : units) {
    UnitResult result;
    result.trace = unit.trace;
    result.layer = unit.layer;
    for (std::uint32_t v = 0; v < 3; ++v) {
      for (std::uint32_t b = 0; b < 3; ++b) {
        const double tokens = record.description.traces[unit.trace].budgets[b].tokens;
        const double left = 1 - tokens / 100;
        const double error = error_of(unit, v, left, change), consistency = consistency_of(v, left);
        result.rows.push_back({0,
                               v,
                               b,
                               v == 0 ? 100 : tokens,
                               100,
                               v == 0 ? 0 : 100 - tokens,
                               v == 2 && b == 0,
                               0,
                               {error, consistency}});
        CellDistributions cell{v, b, std::vector<Distribution>(2)};
        for (int step = 0; step < 4; ++step) cell.metrics[0].add(error);
        cell.metrics[1].add(consistency);
        for (Distribution& distribution : cell.metrics) distribution.finish();
        result.cells.push_back(cell);
      }
    }
    write_part(folder, result, record.description, "b");
  }
}

void write_report_run(const std::string& folder, const RunRecord& record, double change) {
  write_report_parts(folder, record, record.units, change);
  merge_results({folder}, folder);
}

Printed report(const std::vector<std::string>& arguments) { return captured(report_command, arguments); }
Printed merge(const std::vector<std::string>& arguments) { return captured(merge_command, arguments); }

}  // namespace kvsim::test
