// Rankings per budget, and tables along an axis.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <set>

#include "analysis/report_query.h"

namespace kvsim {
namespace {

constexpr std::size_t kBudgetsRanked = 5;  // tables shown when nobody chose budgets
constexpr std::size_t kBudgetsAcross = 8;  // columns shown likewise

std::vector<std::string> lines_by(const ReportRequest& request) {
  if (request.by.empty()) return {"variant"};
  return request.by;
}

/// Distinct values of one place of the keys; budgets ascending in tokens, others as they came.
std::vector<std::string> values_at(const std::vector<Group>& groups, std::size_t place, bool by_tokens) {
  std::vector<std::pair<double, std::string>> values;
  for (const Group& group : groups) {
    const auto found = std::find_if(values.begin(), values.end(),
                                    [&](const auto& v) { return v.second == group.key[place]; });
    if (found == values.end()) values.emplace_back(group.budget_tokens, group.key[place]);
  }
  if (by_tokens) {
    std::stable_sort(values.begin(), values.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
  }
  std::vector<std::string> names;
  for (auto& value : values) names.push_back(std::move(value.second));
  return names;
}

/// At most `most` of the values, first and last among them, evenly spread.
std::vector<std::string> thinned(const std::vector<std::string>& values, std::size_t most) {
  if (values.size() <= most) return values;
  std::vector<std::string> some;
  for (std::size_t i = 0; i < most; ++i) some.push_back(values[i * (values.size() - 1) / (most - 1)]);
  return some;
}

struct SortKey {
  std::optional<std::size_t> measure;  // else a key column
  std::size_t key = 0;
  bool descending = false;
};

SortKey sort_key(const std::string& text, const std::vector<std::string>& keys, const ReportQuery& query) {
  SortKey sort;
  const auto colon = text.rfind(':');
  const std::string name = text.substr(0, colon);
  const std::string direction = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (!direction.empty() && direction != "asc" && direction != "desc") {
    throw UserError("--sort '{}': after the colon stands asc or desc", text);
  }
  std::vector<std::string> known = keys;
  for (std::size_t m = 0; m < query.measures().size(); ++m) {
    const Measure& measure = query.measures()[m];
    known.push_back(measure.label);
    if (name.empty() ? m == 0 : name == measure.label || name == measure.metric) {
      sort.measure = m;
      sort.descending = direction.empty() ? measure.higher_is_better : direction == "desc";
      return sort;
    }
  }
  const auto found = std::find(keys.begin(), keys.end(), name);
  if (found == keys.end()) throw UnknownName("column to sort by", name, known);
  sort.key = static_cast<std::size_t>(found - keys.begin());
  sort.descending = direction == "desc";
  return sort;
}

/// Undefined values come last in either direction.
bool number_before(double a, double b, bool descending) {
  if (std::isnan(a) || std::isnan(b)) return !std::isnan(a) && std::isnan(b);
  return descending ? a > b : a < b;
}

void sort_groups(std::vector<Group>& groups, const SortKey& sort) {
  std::stable_sort(groups.begin(), groups.end(), [&](const Group& a, const Group& b) {
    if (sort.measure)
      return number_before(a.values[*sort.measure].mean, b.values[*sort.measure].mean, sort.descending);
    return sort.descending ? a.key[sort.key] > b.key[sort.key] : a.key[sort.key] < b.key[sort.key];
  });
}

/// References are there to be compared with, so it goes without saying that the full cache evicts nothing.
std::string remark(const Group& group, bool reference) {
  std::string text;
  if (!reference && group.cells > 0 && group.unevicted == group.cells) text = "nothing evicted";
  if (group.clamped > 0) text += text.empty() ? "clamped" : ", clamped";
  return text;
}

std::string tokens_text(const std::vector<Group>& groups) {
  std::set<double> tokens;
  for (const Group& group : groups) tokens.insert(group.budget_tokens);
  if (tokens.size() == 1) return fmt::format("{:.6g} tokens", *tokens.begin());
  return fmt::format("{:.6g} tokens on average", *tokens.rbegin());
}

std::string ranking_of(const std::string& budget, std::vector<Group> groups,
                       const std::vector<std::string>& keys, const ReportQuery& query,
                       const ReportRequest& request) {
  sort_groups(groups, sort_key(request.sort, keys, query));
  TextTable table;
  table.header = {"#"};
  table.numeric = {true};
  for (const std::string& key : keys) {
    table.header.push_back(key);
    table.numeric.push_back(false);
  }
  for (const Measure& measure : query.measures()) {
    table.header.push_back(measure.label);
    table.numeric.push_back(true);
  }
  const bool remarks = std::any_of(groups.begin(), groups.end(), [&](const Group& g) {
    return !remark(g, query.is_reference(keys, g)).empty();
  });
  if (remarks) {
    table.header.emplace_back("remark");
    table.numeric.push_back(false);
  }
  std::size_t place = 0;
  for (const Group& group : groups) {
    const bool reference = query.is_reference(keys, group);
    std::vector<std::string> row{reference ? "*" : fmt::format("{}", ++place)};
    row.insert(row.end(), group.key.begin(), group.key.begin() + static_cast<std::ptrdiff_t>(keys.size()));
    for (const Estimate& value : group.values) row.push_back(estimate_text(value));
    if (remarks) row.push_back(remark(group, reference));
    table.rows.push_back(std::move(row));
  }
  const std::string heading = budget.find('%') != std::string::npos || budget == "curve"
                                  ? fmt::format("budget {} ({})", budget, tokens_text(groups))
                                  : fmt::format("budget {}", budget);
  return fmt::format("{}{}\n{}{}\n", request.format == TableFormat::markdown ? "### " : "", heading,
                     request.format == TableFormat::markdown ? "\n" : "", table.render(request.format));
}

std::string rankings(ReportQuery& query, const ReportRequest& request) {
  const std::vector<std::string> keys = lines_by(request);
  std::vector<std::string> all = keys;
  all.emplace_back("budget_request");
  const std::vector<Group> groups = query.groups(all);
  const auto budgets = values_at(groups, keys.size(), true);
  const auto shown = request.budgets.empty() ? thinned(budgets, kBudgetsRanked) : budgets;
  std::string text;
  for (const std::string& budget : shown) {
    std::vector<Group> some;
    std::copy_if(groups.begin(), groups.end(), std::back_inserter(some),
                 [&](const Group& group) { return group.key.back() == budget; });
    text += ranking_of(budget, std::move(some), keys, query, request);
  }
  if (shown.size() < budgets.size()) {
    text += fmt::format("({} of {} budgets shown; --budget all, or a list, shows others)\n\n", shown.size(),
                        budgets.size());
  }
  return text;
}

/// One table per measure: lines down, x across.
std::string across(ReportQuery& query, const ReportRequest& request, const std::string& x) {
  const std::vector<std::string> keys = lines_by(request);
  std::vector<std::string> all = keys;
  all.push_back(x);
  const std::vector<Group> groups = query.groups(all);
  const bool budgets = x == "budget_request";
  const auto values = values_at(groups, keys.size(), budgets);
  const auto shown = budgets && request.budgets.empty() ? thinned(values, kBudgetsAcross) : values;
  // Lines are sorted by their mean over x.
  std::vector<Group> lines = query.groups(keys);
  if (!request.sort.empty()) sort_groups(lines, sort_key(request.sort, keys, query));
  std::map<std::vector<std::string>, const Group*> at;
  for (const Group& group : groups) at[group.key] = &group;
  std::string text;
  for (std::size_t m = 0; m < query.measures().size(); ++m) {
    TextTable table;
    table.header = keys;
    table.numeric.assign(keys.size(), false);
    for (const std::string& value : shown) {
      table.header.push_back(value);
      table.numeric.push_back(true);
    }
    for (const Group& line : lines) {
      std::vector<std::string> row = line.key;
      if (query.is_reference(keys, line)) row[0] += " *";
      for (const std::string& value : shown) {
        std::vector<std::string> key = line.key;
        key.push_back(value);
        const auto found = at.find(key);
        row.push_back(found == at.end() ? "-" : estimate_text(found->second->values[m]));
      }
      table.rows.push_back(std::move(row));
    }
    const bool markdown = request.format == TableFormat::markdown;
    text += fmt::format("{}{} by {}\n{}{}\n", markdown ? "### " : "", query.measures()[m].label, request.x,
                        markdown ? "\n" : "", table.render(request.format));
  }
  if (shown.size() < values.size()) {
    text += fmt::format("({} of {} budgets shown; --budget all, or a list, shows others)\n\n", shown.size(),
                        values.size());
  }
  return text;
}

/// One line per group, every number in a column of its own.
std::string listing(ReportQuery& query, const ReportRequest& request, const std::vector<std::string>& keys) {
  std::vector<Group> groups = query.groups(keys);
  if (!request.sort.empty()) sort_groups(groups, sort_key(request.sort, keys, query));
  const bool csv = request.format == TableFormat::csv;
  const auto number = [&](double value) { return csv ? exact_number(value) : short_number(value); };
  TextTable table;
  const auto column = [&](const std::string& name, bool numeric) {
    table.header.push_back(name);
    table.numeric.push_back(numeric);
  };
  for (const std::string& key : keys) column(key, false);
  const bool budgets = std::find(keys.begin(), keys.end(), "budget_request") != keys.end();
  if (budgets) column("budget_tokens", true);
  for (const Measure& measure : query.measures()) {
    column(measure.label, true);
    if (query.several_traces()) {
      column(measure.label + "_low", true);
      column(measure.label + "_high", true);
    }
  }
  column("traces", true);
  for (const Group& group : groups) {
    std::vector<std::string> row = group.key;
    if (budgets) row.push_back(number(group.budget_tokens));
    std::size_t traces = 0;
    for (const Estimate& value : group.values) {
      row.push_back(number(value.mean));
      traces = std::max(traces, value.count);
      if (!query.several_traces()) continue;
      row.push_back(number(value.low));
      row.push_back(number(value.high));
    }
    row.push_back(fmt::format("{}", traces));
    table.rows.push_back(std::move(row));
  }
  return table.render(request.format) + (csv ? "" : "\n");
}

}  // namespace

std::string ranking_report(const Results& results, const ReportRequest& request) {
  ReportQuery query(results, request);
  const std::string x = ReportQuery::column_name(request.x);
  std::vector<std::string> keys;
  for (const std::string& key : lines_by(request)) keys.push_back(ReportQuery::column_name(key));
  ReportRequest resolved = request;
  resolved.by = keys;
  const auto is_key = [&](const std::string& name) {
    const Column* column = results.summary.find(name);
    return name == "layer" || name == "kv_head" || name == "budget_tokens" ||
           (column != nullptr && column->is_text);
  };
  const bool measured_x = !x.empty() && !is_key(x);
  if (measured_x) query.add_measure(x);
  for (const std::string& name : request.y.empty() ? main_metrics(results, request) : request.y)
    query.add_measure(name);
  if (request.y.empty() && x.empty() && request.format != TableFormat::csv)
    query.add_measure("resident_tokens");
  if (measured_x || request.format == TableFormat::csv) {
    keys.push_back(measured_x || x.empty() ? "budget_request" : x);
    const auto twin = std::find(keys.begin(), keys.end() - 1, keys.back());
    if (twin != keys.end() - 1) keys.pop_back();
    return listing(query, resolved, keys);
  }
  return x.empty() ? rankings(query, resolved) : across(query, resolved, x);
}

}  // namespace kvsim
