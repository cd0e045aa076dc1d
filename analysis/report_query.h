// The part that all reports share: which rows and columns are meant, grouped and averaged with intervals over
// traces.
#pragma once

#include <string>
#include <vector>

#include "analysis/bootstrap.h"
#include "analysis/report.h"

namespace kvsim {

/// One figure to show.
struct Measure {
  std::string label;   // as the table's header says it, e.g. output_error or set_consistency_p5
  std::string metric;  // the metric behind it; empty for resident_tokens and the like
  const Table* table = nullptr;
  const Column* column = nullptr;
  bool higher_is_better = false;
};

/// One line or cell of a report: the rows that agree in all key columns.
struct Group {
  std::vector<std::string> key;
  std::vector<Estimate> values;                // [measures]: mean over traces of the trace's mean over rows
  std::vector<std::vector<double>> per_trace;  // [measures][traces]; NaN where a trace has none
  double budget_tokens = 0;                    // mean over rows
  std::size_t cells = 0, unevicted = 0, clamped = 0;
};

class ReportQuery {
 public:
  /// Resolves names. The results and the request must outlive the query.
  ReportQuery(const Results& results, const ReportRequest& request);

  const std::vector<Measure>& measures() const { return measures_; }
  /// Adds a measure by metric or column name and returns its place.
  std::size_t add_measure(const std::string& name);
  /// Groups the selected rows by columns, in order of first appearance.
  std::vector<Group> groups(const std::vector<std::string>& keys);
  /// "budget" is a short name of budget_request.
  static std::string column_name(const std::string& name) {
    return name == "budget" ? "budget_request" : name;
  }
  /// Marks rows of references that were added automatically.
  bool is_reference(const std::vector<std::string>& keys, const Group& group) const;
  bool several_traces() const { return traces_.size() > 1; }
  const std::vector<std::string>& traces() const { return traces_; }
  /// Selected rows of a table.
  std::vector<bool> selected(const Table& table) const;

 private:
  Measure resolve(const std::string& name) const;
  const Table& table_for(const std::string& metric) const;
  bool budget_selected(const std::string& request, double tokens) const;

  const Results& results_;
  const ReportRequest& request_;
  bool per_layer_ = false, per_head_ = false;
  std::vector<Measure> measures_;
  std::vector<std::string> traces_;
  Bootstrap bootstrap_;
};

/// Main metrics that a report shows when none is asked for, without those that are undefined everywhere, and
/// without those of a whole trace where the request goes by layer or KV head. What the model itself said
/// comes first, so it ranks.
std::vector<std::string> main_metrics(const Results& results, const ReportRequest& request);
/// True when the request goes by layer or KV head.
bool per_unit(const ReportRequest& request);

/// "0.1234", or "0.1234 [0.11, 0.13]" where there is an interval.
std::string estimate_text(const Estimate& estimate);

}  // namespace kvsim
