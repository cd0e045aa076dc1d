// Results with hand-made numbers, so that every figure of a report can be worked out on paper.
#pragma once

#include <string>

#include "analysis/run_record.h"

namespace kvsim::test {

/// An empty folder that removes itself.
class ReportFolder {
 public:
  ReportFolder();
  ReportFolder(const ReportFolder&) = delete;
  ReportFolder& operator=(const ReportFolder&) = delete;
  ~ReportFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// `traces` traces t0, t1, ... of 100 prompt tokens, layers 0 and 1, one KV head, variants full() (a
/// reference), h2o() and snapkv(window=32), budgets 10%, 50%, 100%, metrics output_error and set_consistency.
/// With u = 1 - budget/100 (0.9, 0.5, 0), l the layer, t the trace:
///   full  output_error 0                set_consistency 1
///   h2o   output_error u (1 + l + t)    set_consistency 1 - u
///   snapkv          half of h2o's error                 1 - u / 2
RunRecord report_record(std::size_t traces);
/// `change` is added to h2o's output_error in layer 1 at 10%.
void write_report_run(const std::string& folder, const RunRecord& record, double change = 0);
/// The same run, `units` of it only.
void write_report_parts(const std::string& folder, const RunRecord& record, const std::vector<UnitId>& units,
                        double change = 0);

/// What a command printed to standard output.
struct Printed {
  int code = 0;
  std::string out, error;
};
Printed report(const std::vector<std::string>& arguments);
Printed merge(const std::vector<std::string>& arguments);

}  // namespace kvsim::test
