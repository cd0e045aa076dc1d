// Reports on finished runs: rankings, curves, knees, paired comparisons and differences, as text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "analysis/result_reader.h"
#include "analysis/text_table.h"

namespace kvsim {

/// What a person asks of a report. Empty fields mean the default.
struct ReportRequest {
  std::vector<std::string> by;  // columns that name a line; default variant
  std::string x;                // column along the table; "budget" is budget_request
  std::vector<std::string> y;   // metrics or summary columns; default the main ones
  std::string budgets;          // "128,10%,64..512*2,256..1024", or "all"
  std::string filter, sort, stat = "mean", at;
  std::vector<std::string> compare;  // two labels
  TableFormat format = TableFormat::table;
  std::uint64_t seed = 0;
};

/// True when the request needs /rows and /layer_rows beside the summary.
bool needs_rows(const ReportRequest& request);

/// Adds what kvsim-judge found (closed.h5 files) as metrics kl, top1_agreement and log_likelihood_change of
/// level "trace": columns of /summary, undefined in cells that were not judged. Returns how many judged cells
/// the results hold; with none, nothing is added. Throws UserError for damaged files and for another
/// recording of a trace than the one replayed; the results are then as they were.
std::size_t add_closed_loop(Results& results, const std::vector<std::string>& paths);
/// True for the metrics that add_closed_loop adds.
bool is_closed_loop(const std::string& metric);

/// Rank correlation (Spearman, ties share their mean rank) over the places where both are defined; NaN for
/// fewer than three of them, or where one side is constant.
double rank_correlation(const std::vector<double>& a, const std::vector<double>& b);
/// How well each open-loop metric orders the judged cells as the model's divergence does; empty where nothing
/// was judged, for CSV, and for reports per layer or KV head.
std::string fidelity_report(const Results& results, const ReportRequest& request);

/// Rankings per budget, or with x a table along it. Throws UserError for unknown names (UnknownName), empty
/// selections and conditions that do not fit.
std::string ranking_report(const Results& results, const ReportRequest& request);

/// --at 'set_consistency>=0.95': per line the smallest measured budget whose mean over traces satisfies all
/// conditions.
std::string knee_report(const Results& results, const ReportRequest& request);

/// --compare A B: paired differences per budget, traces being the resampling unit.
std::string compare_report(const Results& results, const ReportRequest& request);

/// What a reader must know beside the numbers, one line each (metrics.md): open loop, counts, cells without
/// eviction, clamped cells, near ties, failures, intervals. Empty for CSV.
std::string report_notes(const Results& results, const ReportRequest& request);

/// Cells of two results that differ.
struct Difference {
  std::size_t compared = 0, differing = 0;  // numbers; rows that only one side has count as one
  std::string text;                         // the first differences and a count per column
};
/// Compares /summary, /rows and /layer_rows by names (trace, variant, layer, KV head, budget). Two numbers
/// agree when both are undefined or |a - b| <= tolerance * max(1, |a|, |b|).
Difference diff_results(const Results& a, const Results& b, double tolerance);

}  // namespace kvsim
