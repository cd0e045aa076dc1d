// Results of finished runs in memory, as tables of columns, for reports and comparisons.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "sim/results.h"

namespace kvsim {

/// A name that is none of `candidates`. The message lists them; the program adds the nearest.
class UnknownName : public UserError {
 public:
  UnknownName(const std::string& what, const std::string& name, std::vector<std::string> known);
  std::string word;
  std::vector<std::string> candidates;
};

/// One column: numbers, or names behind codes.
struct Column {
  std::string name;
  std::vector<double> numbers;     // of numbers; of names: the codes
  std::vector<std::string> names;  // empty for numbers
  bool is_text = false;

  /// The value as text: the name, or the number's shortest text.
  std::string text(double value) const;
};

struct Table {
  std::string name;  // "summary", "rows", "layer_rows"
  std::vector<Column> columns;

  std::size_t rows() const { return columns.empty() ? 0 : columns.front().numbers.size(); }
  const Column* find(const std::string& column) const;
  /// Throws UnknownName.
  const Column& at(const std::string& column) const;
  std::vector<std::string> column_names() const;
};

struct MetricEntry {
  std::string name, unit, summary, level;  // level: row, layer
  bool higher_is_better = false;
};

struct FailureEntry {
  std::string unit, variant, message;
};

/// The recorded first pass whose pseudo queries a variant read at one budget.
struct PassEntry {
  std::string trace, variant, pass;
  std::int64_t budget_tokens = 0;
};

struct Results {
  std::vector<std::string> folders;
  Provenance provenance;  // of the first folder
  std::vector<TraceEntry> traces;
  std::vector<VariantEntry> variants;
  std::vector<MetricEntry> metrics;
  std::vector<std::string> policies, budgets;
  Table summary, rows, layer_rows;  // rows and layer_rows only when asked for
  std::vector<FailureEntry> failures;
  std::vector<PassEntry> passes;

  const MetricEntry* metric(const std::string& name) const;
};

/// Reads DIR/results.h5 (or a results file itself). Throws UserError for missing, foreign, damaged or newer
/// files, and when two variants have one label.
Results read_results(const std::string& path, bool with_rows);

/// Several results as one. Traces, variants and budgets of one name are the same; metrics that one of them
/// lacks are NaN there. Throws UserError when a trace's name stands for two recordings, and when two of them
/// hold the same cell.
Results join_results(std::vector<Results> all);

}  // namespace kvsim
