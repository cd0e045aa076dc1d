// Which rows and columns a report means, grouped and averaged.
#include "analysis/report_query.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "analysis/filter.h"

namespace kvsim {
namespace {

/// The nine statistics from the good end to the bad one; the tail of a metric where more is better lies low.
std::string fitting_statistic(const std::string& stat, bool higher_is_better) {
  static const std::map<std::string, std::string> up{{"p95", "p5"}, {"p99", "p1"}, {"max", "min"}};
  for (const auto& [low, high] : up) {
    if (higher_is_better && stat == low) return high;
    if (!higher_is_better && stat == high) return low;
  }
  return stat;
}

const std::vector<std::string>& known_statistics() {
  static const std::vector<std::string> names{"mean", "p50", "p95", "p99", "max", "p5", "p1", "min"};
  return names;
}

bool names_layers(const ReportRequest& request, const std::string& column) {
  const auto holds = [&](const std::string& name) { return name == column; };
  if (holds(request.x) || std::any_of(request.by.begin(), request.by.end(), holds)) return true;
  if (request.filter.empty()) return false;
  const auto columns = Filter::parse(request.filter).columns();
  return std::any_of(columns.begin(), columns.end(), holds);
}

std::optional<double> number_of(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// "64..512", "64..512*2", "64..512+64": true when `tokens` is in it.
bool in_range(const std::string& item, double tokens) {
  const auto dots = item.find("..");
  const auto step = item.find_first_of("*+", dots);
  const auto low = number_of(item.substr(0, dots));
  const auto high = number_of(item.substr(dots + 2, step == std::string::npos ? step : step - dots - 2));
  if (!low || !high)
    throw UserError("--budget '{}': write for example 64..512, 64..512*2 or 64..512+64", item);
  if (step == std::string::npos) return tokens >= *low && tokens <= *high;
  const auto by = number_of(item.substr(step + 1));
  const bool multiply = item[step] == '*';
  if (!by || *by <= (multiply ? 1.0 : 0.0))
    throw UserError("--budget '{}': the step after {} is too small", item, item[step]);
  for (double at = *low; at <= *high; at = multiply ? at * *by : at + *by) {
    if (std::round(at) == tokens) return true;
  }
  return false;
}

std::vector<std::string> items_of(const std::string& list) {
  std::vector<std::string> items;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    std::string item = list.substr(begin, end - begin);
    item.erase(0, item.find_first_not_of(' '));
    item.erase(item.find_last_not_of(' ') + 1);
    if (!item.empty()) items.push_back(item);
    begin = end + 1;
  }
  return items;
}

bool budget_matches(const std::string& item, const std::string& request, double tokens) {
  if (item == request || item == "all") return true;
  if (item.find("..") != std::string::npos) return in_range(item, tokens);
  return number_of(item) == tokens;
}

void check_budgets(const Results& results, const std::string& list) {
  const Table& table = results.summary;
  const Column &request = table.at("budget_request"), &tokens = table.at("budget_tokens");
  for (const std::string& item : items_of(list)) {
    bool found = false;
    for (std::size_t i = 0; i < table.rows() && !found; ++i) {
      found = budget_matches(item, request.text(request.numbers[i]), tokens.numbers[i]);
    }
    if (!found)
      throw UserError("--budget '{}': no such budget was measured; there are: {}", item,
                      fmt::join(results.budgets, ", "));
  }
}

}  // namespace

bool per_unit(const ReportRequest& request) {
  return names_layers(request, "layer") || names_layers(request, "kv_head");
}

std::vector<std::string> main_metrics(const Results& results, const ReportRequest& request) {
  std::vector<std::string> names;
  const bool by_unit = per_unit(request);
  const auto shown = [&](const std::string& name) {
    const MetricEntry* metric = results.metric(name);
    return metric != nullptr && !(by_unit && metric->level == "trace");
  };
  const auto defined = [&](const std::string& name) {
    const Column* column = results.summary.find(name + "_mean");
    return shown(name) && column != nullptr &&
           std::any_of(column->numbers.begin(), column->numbers.end(),
                       [](double value) { return !std::isnan(value); });
  };
  for (const char* name : {"kl", "top1_agreement", "predicted_kl", "output_error", "projected_error",
                           "attention_recall", "query_consistency", "set_consistency", "miss_rate"}) {
    if (defined(name)) names.emplace_back(name);
  }
  if (names.empty()) {
    for (const MetricEntry& metric : results.metrics)
      if (shown(metric.name)) names.push_back(metric.name);
  }
  return names;
}

std::string estimate_text(const Estimate& estimate) {
  if (std::isnan(estimate.low)) return short_number(estimate.mean);
  return fmt::format("{} [{}, {}]", short_number(estimate.mean), short_number(estimate.low),
                     short_number(estimate.high));
}

bool needs_rows(const ReportRequest& request) { return !request.compare.empty() || per_unit(request); }

ReportQuery::ReportQuery(const Results& results, const ReportRequest& request)
    : results_(results),
      request_(request),
      per_layer_(names_layers(request, "layer")),
      per_head_(names_layers(request, "kv_head")),
      bootstrap_(request.seed) {
  if (std::find(known_statistics().begin(), known_statistics().end(), request.stat) ==
      known_statistics().end()) {
    throw UnknownName("statistic", request.stat, known_statistics());
  }
  if ((per_layer_ || per_head_) && request.stat != "mean") {
    throw UserError(
        "--stat {}: per layer and head only means are stored (--detail steps keeps every step); leave layer "
        "and kv_head out",
        request.stat);
  }
  check_budgets(results, request.budgets);
  const Table& table = results.summary;
  const Column& trace = table.at("trace");
  const auto keep = selected(table);
  for (std::size_t i = 0; i < table.rows(); ++i) {
    const std::string name = trace.text(trace.numbers[i]);
    if (keep[i] && std::find(traces_.begin(), traces_.end(), name) == traces_.end()) traces_.push_back(name);
  }
  if (traces_.empty()) {
    throw UserError("nothing is left to report: {}", request.filter.empty()
                                                         ? "the results hold no rows (see their /failures)"
                                                         : "--filter leaves no row");
  }
}

std::size_t ReportQuery::add_measure(const std::string& name) {
  measures_.push_back(resolve(name));
  return measures_.size() - 1;
}

const Table& ReportQuery::table_for(const std::string& metric) const {
  if (!per_layer_ && !per_head_) return results_.summary;
  const MetricEntry* entry = results_.metric(metric);
  if (entry != nullptr && entry->level == "trace")
    throw UserError("{} belongs to a whole trace, not to a layer; leave layer and kv_head out", metric);
  if (entry == nullptr || entry->level != "layer") return results_.rows;
  if (per_head_) throw UserError("{} belongs to a whole layer, not to a KV head; leave kv_head out", metric);
  return results_.layer_rows;
}

Measure ReportQuery::resolve(const std::string& name) const {
  Measure measure;
  measure.label = name;
  measure.table = &table_for(name);
  if (const MetricEntry* metric = results_.metric(name)) {
    measure.metric = name;
    measure.higher_is_better = metric->higher_is_better;
    if (measure.table == &results_.summary) {
      const std::string stat = fitting_statistic(request_.stat, metric->higher_is_better);
      if (stat != "mean") measure.label = name + "_" + stat;
      measure.column = &measure.table->at(name + "_" + stat);
    } else {
      measure.column = &measure.table->at(name);
    }
    return measure;
  }
  measure.column = measure.table->find(name);
  if (measure.column == nullptr || measure.column->is_text) {
    std::vector<std::string> known;
    for (const MetricEntry& metric : results_.metrics) known.push_back(metric.name);
    for (const Column& column : measure.table->columns) {
      // <metric>_p95 and its like can be asked for too, but a hundred of them would bury what the list is
      // for.
      const bool of_metric =
          std::any_of(results_.metrics.begin(), results_.metrics.end(),
                      [&](const MetricEntry& metric) { return column.name.starts_with(metric.name); });
      if (!column.is_text && !of_metric) known.push_back(column.name);
    }
    throw UnknownName("metric or column", name, known);
  }
  for (const MetricEntry& metric : results_.metrics) {
    if (name.starts_with(metric.name + "_") && metric.name.size() > measure.metric.size()) {
      measure.metric = metric.name;
      measure.higher_is_better = metric.higher_is_better;
    }
  }
  return measure;
}

bool ReportQuery::budget_selected(const std::string& request, double tokens) const {
  if (request_.budgets.empty()) return true;
  const auto items = items_of(request_.budgets);
  return std::any_of(items.begin(), items.end(),
                     [&](const auto& item) { return budget_matches(item, request, tokens); });
}

std::vector<bool> ReportQuery::selected(const Table& table) const {
  const Column &request = table.at("budget_request"), &tokens = table.at("budget_tokens");
  std::vector<bool> keep(table.rows());
  std::map<std::pair<double, double>, bool> known;
  for (std::size_t i = 0; i < table.rows(); ++i) {
    const std::pair budget(request.numbers[i], tokens.numbers[i]);
    const auto found = known.find(budget);
    keep[i] = found != known.end()
                  ? found->second
                  : (known[budget] = budget_selected(request.text(request.numbers[i]), tokens.numbers[i]));
  }
  if (request_.filter.empty()) return keep;
  const Filter filter = Filter::parse(request_.filter);
  std::vector<bool> any(table.rows(), false);
  for (const auto& conjunction : filter.alternatives) {
    std::vector<bool> all(table.rows(), true);
    for (const Comparison& comparison : conjunction) {
      std::string name = comparison.column;
      if (name == "budget") name = comparison.number ? "budget_tokens" : "budget_request";
      if (const MetricEntry* metric = results_.metric(name);
          metric != nullptr && &table == &results_.summary) {
        name += "_" + fitting_statistic(request_.stat, metric->higher_is_better);
      }
      const Column* column = table.find(name);
      if (column == nullptr) {
        // A condition on layers does not restrict the summary, one on heads not the layer metrics.
        if (name == "layer" || name == "kv_head") continue;
        throw UnknownName("column", comparison.column, table.column_names());
      }
      std::map<double, bool> names;
      for (std::size_t i = 0; i < table.rows(); ++i) {
        const double value = column->numbers[i];
        bool holds = false;
        if (column->is_text) {
          const auto found = names.find(value);
          holds =
              found != names.end() ? found->second : (names[value] = comparison.holds(column->text(value)));
        } else {
          holds = comparison.holds(value);
        }
        if (!holds) all[i] = false;
      }
    }
    for (std::size_t i = 0; i < table.rows(); ++i) any[i] = any[i] || all[i];
  }
  for (std::size_t i = 0; i < table.rows(); ++i) keep[i] = keep[i] && any[i];
  return keep;
}

std::vector<Group> ReportQuery::groups(const std::vector<std::string>& keys) {
  struct Sum {
    double sum = 0;
    std::size_t count = 0;
  };
  std::vector<Group> groups;
  std::vector<std::vector<std::vector<Sum>>> sums;  // [group][measure][trace]
  std::vector<Sum> tokens;
  std::map<std::vector<std::string>, std::size_t> place;
  std::set<const Table*> tables;
  for (const Measure& measure : measures_) tables.insert(measure.table);
  for (const Table* table : {&results_.summary, &results_.rows, &results_.layer_rows}) {
    if (!tables.contains(table)) continue;
    const auto keep = selected(*table);
    std::vector<const Column*> key_columns;
    for (const std::string& key : keys) key_columns.push_back(&table->at(column_name(key)));
    const Column &trace = table->at("trace"), &budget = table->at("budget_tokens");
    const Column *evicted = table->find("evicted"), *clamped = table->find("clamped");
    std::map<std::vector<double>, std::size_t> by_code;
    std::vector<double> code(keys.size());
    for (std::size_t i = 0; i < table->rows(); ++i) {
      if (!keep[i]) continue;
      for (std::size_t k = 0; k < keys.size(); ++k) code[k] = key_columns[k]->numbers[i];
      auto found = by_code.find(code);
      if (found == by_code.end()) {
        std::vector<std::string> key;
        for (std::size_t k = 0; k < keys.size(); ++k) key.push_back(key_columns[k]->text(code[k]));
        const auto [entry, fresh] = place.emplace(key, groups.size());
        if (fresh) {
          groups.push_back({key, {}, {}, 0, 0, 0, 0});
          sums.emplace_back(measures_.size(), std::vector<Sum>(traces_.size()));
          tokens.emplace_back();
        }
        found = by_code.emplace(code, entry->second).first;
      }
      const std::size_t g = found->second;
      const auto t = static_cast<std::size_t>(
          std::find(traces_.begin(), traces_.end(), trace.names[static_cast<std::size_t>(trace.numbers[i])]) -
          traces_.begin());
      tokens[g].sum += budget.numbers[i];
      ++tokens[g].count;
      if (evicted != nullptr) {
        ++groups[g].cells;
        groups[g].unevicted += evicted->numbers[i] == 0;
        groups[g].clamped += clamped != nullptr && clamped->numbers[i] != 0;
      }
      for (std::size_t m = 0; m < measures_.size(); ++m) {
        if (measures_[m].table != table || t >= traces_.size()) continue;
        const double value = measures_[m].column->numbers[i];
        if (std::isnan(value)) continue;
        sums[g][m][t].sum += value;
        ++sums[g][m][t].count;
      }
    }
  }
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g].budget_tokens = tokens[g].sum / static_cast<double>(tokens[g].count);
    for (std::size_t m = 0; m < measures_.size(); ++m) {
      std::vector<double> per_trace, defined;
      for (const Sum& sum : sums[g][m]) {
        per_trace.push_back(sum.count == 0 ? std::numeric_limits<double>::quiet_NaN()
                                           : sum.sum / static_cast<double>(sum.count));
        if (sum.count > 0) defined.push_back(per_trace.back());
      }
      groups[g].values.push_back(bootstrap_.mean(defined));
      groups[g].per_trace.push_back(std::move(per_trace));
    }
  }
  return groups;
}

bool ReportQuery::is_reference(const std::vector<std::string>& keys, const Group& group) const {
  for (std::size_t k = 0; k < keys.size(); ++k) {
    if (keys[k] != "variant" && keys[k] != "policy") continue;
    bool any = false, all = true;
    for (const VariantEntry& variant : results_.variants) {
      if ((keys[k] == "variant" ? variant.spec : variant.policy) != group.key[k]) continue;
      any = true;
      all = all && variant.automatic;
    }
    return any && all;
  }
  return false;
}

}  // namespace kvsim
