// How well open-loop figures order policies as the real model does.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "analysis/report_query.h"
#include "sim/rank_correlation.h"

namespace kvsim {
namespace {

constexpr std::size_t kFewestCells = 3;
constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

/// The metrics to judge: all that are no sizes and no figures of the closed loop.
std::vector<std::string> predictors(const Results& results) {
  std::vector<std::string> names;
  for (const MetricEntry& metric : results.metrics) {
    const Column* column = results.summary.find(metric.name + "_mean");
    if (is_closed_loop(metric.name) || metric.unit == "bytes" || column == nullptr) continue;
    if (std::any_of(column->numbers.begin(), column->numbers.end(), [](double v) { return !std::isnan(v); }))
      names.push_back(metric.name);
  }
  return names;
}

struct Row {
  std::string metric;
  std::size_t cells = 0;
  double mean = kUndefined;                      // on the means over traces
  double least = kUndefined, most = kUndefined;  // over single traces
};

/// Correlation of measure `m` with measure 0, the true divergence, over groups (variant, budget).
Row row_of(const Measure& measure, std::size_t m, const std::vector<Group>& groups, std::size_t traces) {
  Row row{measure.metric, 0, kUndefined, kUndefined, kUndefined};
  const double sign = measure.higher_is_better ? -1 : 1;
  std::vector<double> predicted, truth;
  const auto defined = [](const Group& group, std::size_t which, std::size_t t) {
    return !std::isnan(group.per_trace[which][t]);
  };
  std::vector<std::size_t> judged;
  for (std::size_t t = 0; t < traces; ++t)
    if (std::any_of(groups.begin(), groups.end(), [&](const Group& group) { return defined(group, 0, t); }))
      judged.push_back(t);
  for (const Group& group : groups) {
    // A mean over some of the judged traces beside means over all of them would compare traces, not policies.
    const auto whole = [&](std::size_t t) { return defined(group, 0, t) && defined(group, m, t); };
    if (judged.empty() || !std::all_of(judged.begin(), judged.end(), whole)) continue;
    double kl = 0, figure = 0;
    for (const std::size_t t : judged) {
      kl += group.per_trace[0][t] / static_cast<double>(judged.size());
      figure += group.per_trace[m][t] / static_cast<double>(judged.size());
    }
    truth.push_back(kl);
    predicted.push_back(sign * figure);
  }
  row.cells = truth.size();
  row.mean = rank_correlation(predicted, truth);
  for (std::size_t t = 0; t < traces; ++t) {
    predicted.clear();
    truth.clear();
    for (const Group& group : groups) {
      truth.push_back(group.per_trace[0][t]);
      predicted.push_back(sign * group.per_trace[m][t]);
    }
    const double one = rank_correlation(predicted, truth);
    row.least = std::fmin(row.least, one);
    row.most = std::fmax(row.most, one);
  }
  return row;
}

std::string table_of(const std::vector<Row>& rows, bool several, const ReportRequest& request) {
  TextTable table;
  table.header = {"figure", "rank correlation"};
  if (several) table.header.insert(table.header.end(), {"least of a trace", "most of a trace"});
  table.header.emplace_back("cells");
  table.numeric.assign(table.header.size(), true);
  table.numeric[0] = false;
  const auto number = [](double value) {
    return std::isnan(value) ? std::string("-") : fmt::format("{:.2f}", value);
  };
  for (const Row& row : rows) {
    std::vector<std::string> line{row.metric, number(row.mean)};
    if (several) line.insert(line.end(), {number(row.least), number(row.most)});
    line.push_back(fmt::format("{}", row.cells));
    table.rows.push_back(std::move(line));
  }
  const bool markdown = request.format == TableFormat::markdown;
  return fmt::format(
      "{}how well each figure orders policies and budgets as the model's own divergence kl does (Spearman; 1 "
      "= the same order{})\n{}{}\n",
      markdown ? "### " : "", several ? "; of means over traces" : "", markdown ? "\n" : "",
      table.render(request.format));
}

}  // namespace

double rank_correlation(const std::vector<double>& a, const std::vector<double>& b) {
  KVSIM_CHECK(a.size() == b.size(), "{} and {} values", a.size(), b.size());
  std::vector<double> x, y;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) || std::isnan(b[i])) continue;
    x.push_back(a[i]);
    y.push_back(b[i]);
  }
  if (x.size() < kFewestCells) return kUndefined;
  return rank_correlation(std::span<const double>(x), std::span<const double>(y));
}

std::string fidelity_report(const Results& results, const ReportRequest& request) {
  if (results.metric("kl") == nullptr || request.format == TableFormat::csv || per_unit(request)) return {};
  ReportRequest means;
  means.budgets = request.budgets;
  means.filter = request.filter;
  means.seed = request.seed;
  ReportQuery query(results, means);
  query.add_measure("kl");
  for (const std::string& name : predictors(results)) query.add_measure(name);
  std::vector<Group> groups = query.groups({"variant", "budget_request"});
  // Where nothing was evicted both sides are zero, whatever the figure is worth.
  std::erase_if(groups, [](const Group& g) { return g.cells > 0 && g.unevicted == g.cells; });
  std::vector<Row> rows;
  for (std::size_t m = 1; m < query.measures().size(); ++m)
    rows.push_back(row_of(query.measures()[m], m, groups, query.traces().size()));
  std::erase_if(rows, [](const Row& row) { return row.cells < kFewestCells; });
  if (rows.empty()) return {};
  const auto value = [](const Row& row) { return std::isnan(row.mean) ? -2.0 : row.mean; };
  std::stable_sort(rows.begin(), rows.end(), [&](const Row& a, const Row& b) { return value(a) > value(b); });
  return table_of(rows, query.several_traces(), request);
}

}  // namespace kvsim
