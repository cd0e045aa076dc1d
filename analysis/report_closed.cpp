// What the real model did with the kept sets of a replay (closed.h5), as further metrics of the results.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "analysis/report.h"
#include "analysis/result_header.h"
#include "traces/h5/file.h"

namespace kvsim {
namespace {

constexpr std::uint8_t kNoStep = 255;  // of top1_agree, beyond a shorter trace's end
constexpr double kLeastDivergence =
    -1e-3;  // a divergence is not below 0; single precision may leave a rounding error there
constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

/// Per-step values of some cells, undefined ones left out.
using Steps = std::vector<std::vector<double>>;

struct ClosedFile {
  std::vector<std::string> trace, variant,
      digest;  // [cells]; digest of the cell's trace, empty where the file does not say
  std::vector<std::int64_t> tokens;
  Steps kl, agreement, likelihood_change;
};

[[noreturn]] void refuse(const h5::Group& root, const std::string& what) {
  throw UserError("{}: {}; remove it and let kvsim-judge write it again", root.file(), what);
}

Steps read_steps(const h5::Group& root, const char* name, std::size_t cells) {
  const h5::Dataset stored = root.dataset(name);
  if (stored.shape().size() != 2 || stored.shape()[0] != cells)
    refuse(root,
           fmt::format("/{} is {}, not [{} cells, steps]", name, h5::describe_shape(stored.shape()), cells));
  const std::vector<double> values = stored.read<double>();
  const std::size_t steps = stored.shape()[1];
  Steps rows(cells);
  for (std::size_t i = 0; i < cells; ++i)
    rows[i].assign(values.begin() + static_cast<std::ptrdiff_t>(i * steps),
                   values.begin() + static_cast<std::ptrdiff_t>((i + 1) * steps));
  return rows;
}

void drop_undefined(Steps& rows) {
  for (auto& row : rows) std::erase_if(row, [](double value) { return std::isnan(value); });
}

/// Every cell's log-likelihoods less the full cache's; undefined where the file lacks those.
void subtract_full(const h5::Group& root, ClosedFile& file) {
  std::map<std::string, std::vector<double>> full;
  for (std::size_t i = 0; i < file.trace.size(); ++i) {
    const std::string name = "full/" + file.trace[i] + "/log_likelihood";
    auto [found, fresh] = full.try_emplace(file.trace[i]);
    if (fresh && root.has_dataset(name)) found->second = root.read_column<double>(name);
    for (std::size_t t = 0; t < file.likelihood_change[i].size(); ++t)
      file.likelihood_change[i][t] -= t < found->second.size() ? found->second[t] : kUndefined;
  }
}

void check_cells(const h5::Group& root, const ClosedFile& file) {
  std::set<std::tuple<std::string, std::string, std::int64_t>> cells;
  for (std::size_t i = 0; i < file.trace.size(); ++i) {
    if (!cells.emplace(file.trace[i], file.variant[i], file.tokens[i]).second)
      refuse(root, fmt::format("'{}' at {} tokens on trace {} stands there twice", file.variant[i],
                               file.tokens[i], file.trace[i]));
    if (std::any_of(file.kl[i].begin(), file.kl[i].end(),
                    [](double kl) { return std::isinf(kl) || kl < kLeastDivergence; }))
      refuse(root, "/steps/kl holds values that are no divergence");
    if (std::any_of(file.agreement[i].begin(), file.agreement[i].end(), [](double value) {
          return !std::isnan(value) && value != 0 && value != 1 && value != kNoStep;
        }))
      refuse(root, "/steps/top1_agree holds something else than 0, 1 and 255");
    if (file.agreement[i].size() != file.kl[i].size() ||
        file.likelihood_change[i].size() != file.kl[i].size())
      refuse(root, "the tables of /steps differ in shape");
  }
}

ClosedFile read_closed(const std::string& path) {
  const h5::File root = h5::File::open(path);
  check_format(root, "kvsim-closed");
  ClosedFile file;
  file.trace = root.read_strings("cells/trace");
  file.variant = root.read_strings("cells/variant");
  file.tokens = root.read_column<std::int64_t>("cells/budget_tokens");
  const std::size_t cells = file.trace.size();
  if (file.variant.size() != cells || file.tokens.size() != cells)
    refuse(root, "the columns of /cells differ in length");
  for (const std::string& trace : file.trace) {
    const std::string group = "full/" + trace;
    const bool said = root.has_group(group) && root.group(group).has_attribute("digest");
    file.digest.push_back(said ? root.group(group).string_attribute("digest") : "");
  }
  file.kl = read_steps(root, "steps/kl", cells);
  file.agreement = read_steps(root, "steps/top1_agree", cells);
  file.likelihood_change = read_steps(root, "steps/log_likelihood", cells);
  check_cells(root, file);
  for (auto& row : file.agreement)
    std::replace_if(
        row.begin(), row.end(), [](double value) { return value == kNoStep; }, kUndefined);
  subtract_full(root, file);
  for (Steps* steps : {&file.kl, &file.agreement, &file.likelihood_change}) drop_undefined(*steps);
  return file;
}

/// Nearest rank: the smallest value that at least the share `q` of the values is not above.
double quantile(std::vector<double> values, double q) {
  if (values.empty()) return kUndefined;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(q * static_cast<double>(values.size()));
  return values[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? kUndefined : sum / static_cast<double>(values.size());
}

struct ClosedMetric {
  MetricEntry entry;
  Steps ClosedFile::*steps;
};

const std::vector<ClosedMetric>& closed_metrics() {
  static const std::vector<ClosedMetric> metrics{
      {{"kl", "nats", "divergence of the model's next-token distribution from the full cache's", "trace",
        false},
       &ClosedFile::kl},
      {{"top1_agreement", "fraction", "steps at which the likeliest token is the full cache's", "trace",
        true},
       &ClosedFile::agreement},
      {{"log_likelihood_change", "nats", "log-likelihood of the recorded next token less the full cache's",
        "trace", true},
       &ClosedFile::likelihood_change}};
  return metrics;
}

/// Statistics of one metric as columns of /summary, in the names of analysis/SCHEMA.md.
struct Statistic {
  const char* name;
  double (*of)(const std::vector<double>&);
};

std::vector<Statistic> statistics_of(bool higher_is_better) {
  const Statistic count{"count", [](const std::vector<double>& v) { return static_cast<double>(v.size()); }};
  const Statistic average{"mean", mean},
      median{"p50", [](const std::vector<double>&v) { return quantile(v, 0.5); }};
  if (higher_is_better)
    return {count,
            average,
            median,
            {"p5", [](const std::vector<double>& v) { return quantile(v, 0.05); }},
            {"p1", [](const std::vector<double>& v) { return quantile(v, 0.01); }},
            {"min", [](const std::vector<double>& v) { return quantile(v, 0); }}};
  return {count,
          average,
          median,
          {"p95", [](const std::vector<double>& v) { return quantile(v, 0.95); }},
          {"p99", [](const std::vector<double>& v) { return quantile(v, 0.99); }},
          {"max", [](const std::vector<double>& v) { return quantile(v, 1); }}};
}

/// Cells of the summary: (trace, variant, tokens) -> rows; two requests may mean one budget.
using Rows = std::map<std::tuple<std::string, std::string, std::int64_t>, std::vector<std::size_t>>;

Rows summary_rows(const Results& results) {
  const Table& table = results.summary;
  const Column &trace = table.at("trace"), &variant = table.at("variant"),
               &tokens = table.at("budget_tokens");
  Rows rows;
  for (std::size_t i = 0; i < table.rows(); ++i)
    rows[{trace.text(trace.numbers[i]), variant.text(variant.numbers[i]), std::llround(tokens.numbers[i])}]
        .push_back(i);
  return rows;
}

/// The name in `results` of the recording that a judged cell belongs to: by its digest, else by name; none
/// where it is not there.
std::optional<std::string> trace_of(const Results& results, const ClosedFile& file, std::size_t cell,
                                    const std::string& path) {
  for (const TraceEntry& trace : results.traces)
    if (!file.digest[cell].empty() && trace.digest == file.digest[cell]) return trace.name;
  for (const TraceEntry& trace : results.traces) {
    if (trace.name != file.trace[cell]) continue;
    if (!file.digest[cell].empty() && !trace.digest.empty())
      throw UserError(
          "{}: the model judged another recording of {} than the one replayed; run kvsim-judge again", path,
          trace.name);
    return trace.name;
  }
  return std::nullopt;
}

}  // namespace

std::size_t add_closed_loop(Results& results, const std::vector<std::string>& paths) {
  const Rows rows = summary_rows(results);
  std::map<std::string, std::vector<double>> columns;
  for (const ClosedMetric& metric : closed_metrics())
    for (const Statistic& statistic : statistics_of(metric.entry.higher_is_better))
      columns[metric.entry.name + "_" + statistic.name].assign(results.summary.rows(), kUndefined);
  std::size_t judged = 0;
  for (const std::string& path : paths) {
    const ClosedFile file = read_closed(path);
    for (std::size_t i = 0; i < file.trace.size(); ++i) {
      const auto trace = trace_of(results, file, i, path);
      const auto found = trace ? rows.find({*trace, file.variant[i], file.tokens[i]}) : rows.end();
      if (found == rows.end()) continue;
      ++judged;
      for (const ClosedMetric& metric : closed_metrics())
        for (const Statistic& statistic : statistics_of(metric.entry.higher_is_better))
          for (const std::size_t row : found->second)
            columns[metric.entry.name + "_" + statistic.name][row] = statistic.of((file.*metric.steps)[i]);
    }
  }
  if (judged == 0) return 0;
  for (const ClosedMetric& metric : closed_metrics())
    if (results.metric(metric.entry.name) != nullptr)
      throw UserError("the results hold a metric '{}' already", metric.entry.name);
  for (const ClosedMetric& metric : closed_metrics()) {
    results.metrics.push_back(metric.entry);
    for (const Statistic& statistic : statistics_of(metric.entry.higher_is_better)) {
      const std::string name = metric.entry.name + "_" + statistic.name;
      results.summary.columns.push_back({name, std::move(columns[name]), {}, false});
    }
  }
  return judged;
}

bool is_closed_loop(const std::string& metric) {
  return std::any_of(closed_metrics().begin(), closed_metrics().end(),
                     [&](const ClosedMetric& m) { return m.entry.name == metric; });
}

}  // namespace kvsim
