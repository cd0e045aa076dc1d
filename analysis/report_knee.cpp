// The smallest measured budget that reaches a condition, and paired differences between two variants.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "analysis/filter.h"
#include "analysis/report_query.h"

namespace kvsim {
namespace {

struct Knee {
  std::vector<std::string> key;
  const Group* reached = nullptr;  // smallest budget that satisfies
  const Group* below = nullptr;    // the next smaller one
  const Group* best = nullptr;     // when never reached: the largest budget
  bool falls_again = false;        // a larger budget does not satisfy
};

class KneeFinder {
 public:
  KneeFinder(ReportQuery& query, const Filter& condition) : condition_(condition) {
    for (const auto& conjunction : condition.alternatives) {
      for (const Comparison& comparison : conjunction) {
        if (!place_.contains(comparison.column))
          place_[comparison.column] = query.add_measure(comparison.column);
      }
    }
  }

  bool satisfied(const Group& group) const {
    return std::any_of(
        condition_.alternatives.begin(), condition_.alternatives.end(), [&](const auto& conjunction) {
          return std::all_of(conjunction.begin(), conjunction.end(), [&](const Comparison& comparison) {
            return comparison.holds(group.values[place_.at(comparison.column)].mean);
          });
        });
  }

  /// `curve` holds one line's groups, budgets ascending.
  Knee find(const std::vector<const Group*>& curve) const {
    Knee knee;
    knee.best = curve.back();
    for (const Group* group : curve) {
      if (satisfied(*group)) {
        if (knee.reached == nullptr) knee.reached = group;
      } else if (knee.reached != nullptr) {
        knee.falls_again = true;
      } else {
        knee.below = group;
      }
    }
    return knee;
  }

 private:
  const Filter& condition_;
  std::map<std::string, std::size_t> place_;
};

std::string budget_text(const Group& group) {
  const std::string tokens = fmt::format("{:.6g}", group.budget_tokens);
  return group.key.back() == tokens ? tokens : fmt::format("{} ({})", group.key.back(), tokens);
}

std::vector<std::string> knee_row(const Knee& knee, bool csv) {
  const auto number = [&](double value) { return csv ? exact_number(value) : short_number(value); };
  std::vector<std::string> row = knee.key;
  const Group* shown = knee.reached != nullptr ? knee.reached : knee.best;
  if (csv) {
    row.push_back(knee.reached != nullptr ? knee.reached->key.back() : "");
    row.push_back(knee.reached != nullptr ? number(knee.reached->budget_tokens) : "");
  } else {
    row.push_back(knee.reached != nullptr ? budget_text(*knee.reached) : "not reached");
  }
  for (const Estimate& value : shown->values) row.push_back(csv ? number(value.mean) : estimate_text(value));
  std::string note;
  if (knee.reached == nullptr) {
    note = "values at its largest budget, " + budget_text(*knee.best);
  } else if (knee.below != nullptr) {
    note = "not yet at " + budget_text(*knee.below);
  } else {
    note = "already at the smallest budget measured";
  }
  if (knee.falls_again) note += "; a larger budget falls short again";
  row.push_back(note);
  return row;
}

/// The label that `text` means: itself, else the only variant of that policy.
std::string label_of(const Results& results, const std::string& text) {
  std::vector<std::string> labels, of_policy;
  for (const VariantEntry& variant : results.variants) {
    if (variant.spec == text) return text;
    labels.push_back(variant.spec);
    if (variant.policy == text) of_policy.push_back(variant.spec);
  }
  if (of_policy.size() == 1) return of_policy.front();
  if (of_policy.size() > 1) {
    throw UserError("--compare '{}' could be any of: {}", text, fmt::join(of_policy, ", "));
  }
  throw UnknownName("variant", text, labels);
}

/// Share of (trace, layer, head) rows in which the first variant is the better one, per budget.
struct Wins {
  std::size_t better = 0, worse = 0, rows = 0;
};
using RowKey = std::vector<double>;

std::map<std::string, Wins> count_wins(const ReportQuery& query, const Results& results,
                                       const Measure& measure, const std::string& first,
                                       const std::string& second) {
  const MetricEntry* metric = results.metric(measure.metric);
  std::map<std::string, Wins> wins;
  if (metric == nullptr || metric->name != measure.label || metric->level == "trace") return wins;
  const Table& table = metric->level == "layer" ? results.layer_rows : results.rows;
  const Column &variant = table.at("variant"), &budget = table.at("budget_request"),
               &value = table.at(measure.label);
  const Column &trace = table.at("trace"), &layer = table.at("layer");
  const Column* head = table.find("kv_head");
  const auto keep = query.selected(table);
  std::map<RowKey, double> of_first;
  for (const bool store : {true, false}) {
    for (std::size_t i = 0; i < table.rows(); ++i) {
      if (!keep[i] || std::isnan(value.numbers[i])) continue;
      if (variant.text(variant.numbers[i]) != (store ? first : second)) continue;
      const RowKey key{trace.numbers[i], layer.numbers[i], head == nullptr ? 0 : head->numbers[i],
                       budget.numbers[i]};
      if (store) {
        of_first[key] = value.numbers[i];
      } else if (const auto found = of_first.find(key); found != of_first.end()) {
        Wins& win = wins[budget.text(budget.numbers[i])];
        ++win.rows;
        const double gain =
            measure.higher_is_better ? found->second - value.numbers[i] : value.numbers[i] - found->second;
        win.better += gain > 0;
        win.worse += gain < 0;
      }
    }
  }
  return wins;
}

}  // namespace

std::string knee_report(const Results& results, const ReportRequest& request) {
  ReportQuery query(results, request);
  const Filter condition = Filter::parse(request.at);
  const KneeFinder finder(query, condition);
  std::vector<std::string> keys = request.by.empty() ? std::vector<std::string>{"variant"} : request.by;
  keys.emplace_back("budget_request");
  const std::vector<Group> groups = query.groups(keys);
  std::vector<std::vector<std::string>> order;
  std::map<std::vector<std::string>, std::vector<const Group*>> curves;
  for (const Group& group : groups) {
    const std::vector<std::string> key(group.key.begin(), group.key.end() - 1);
    auto& curve = curves[key];
    if (curve.empty()) order.push_back(key);
    curve.push_back(&group);
  }
  std::vector<Knee> knees;
  for (const auto& key : order) {
    auto& curve = curves[key];
    std::stable_sort(curve.begin(), curve.end(),
                     [](const Group* a, const Group* b) { return a->budget_tokens < b->budget_tokens; });
    Knee knee = finder.find(curve);
    knee.key = key;
    if (request.format != TableFormat::csv && query.is_reference(keys, *curve.front())) knee.key[0] += " *";
    knees.push_back(std::move(knee));
  }
  std::stable_sort(knees.begin(), knees.end(), [](const Knee& a, const Knee& b) {
    constexpr double kNever = std::numeric_limits<double>::infinity();
    return (a.reached != nullptr ? a.reached->budget_tokens : kNever) <
           (b.reached != nullptr ? b.reached->budget_tokens : kNever);
  });
  const bool csv = request.format == TableFormat::csv;
  TextTable table;
  table.header.assign(keys.begin(), keys.end() - 1);
  table.header.emplace_back(csv ? "budget_request" : "budget");
  if (csv) table.header.emplace_back("budget_tokens");
  for (const Measure& measure : query.measures()) table.header.push_back(measure.label);
  table.header.emplace_back("remark");
  table.numeric.assign(table.header.size(), true);
  for (std::size_t k = 0; k + 1 < keys.size(); ++k) table.numeric[k] = false;
  table.numeric.back() = false;
  for (const Knee& knee : knees) table.rows.push_back(knee_row(knee, csv));
  if (csv) return table.render(request.format);
  return fmt::format("smallest measured budget with {}\n\n{}\n", request.at, table.render(request.format));
}

std::string compare_report(const Results& results, const ReportRequest& request) {
  const std::string first = label_of(results, request.compare[0]),
                    second = label_of(results, request.compare[1]);
  if (first == second) throw UserError("--compare: both are '{}'", first);
  ReportQuery query(results, request);
  for (const std::string& name : request.y.empty() ? main_metrics(results, request) : request.y)
    query.add_measure(name);
  const std::vector<Group> groups = query.groups({"variant", "budget_request"});
  std::map<std::string, const Group*> of_first, of_second;
  std::vector<const Group*> order;
  for (const Group& group : groups) {
    if (group.key[0] == first) order.push_back(of_first[group.key[1]] = &group);
    if (group.key[0] == second) of_second[group.key[1]] = &group;
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const Group* a, const Group* b) { return a->budget_tokens < b->budget_tokens; });
  const bool csv = request.format == TableFormat::csv;
  Bootstrap bootstrap(request.seed);
  TextTable table;
  table.header = {"metric", "budget", "A", "B", "A - B"};
  if (csv) table.header.insert(table.header.end(), {"low", "high"});
  table.header.insert(table.header.end(), {"traces where A is better", "heads where A is better"});
  table.numeric.assign(table.header.size(), true);
  table.numeric[0] = false;
  const auto number = [&](double value) { return csv ? exact_number(value) : short_number(value); };
  for (std::size_t m = 0; m < query.measures().size(); ++m) {
    const Measure& measure = query.measures()[m];
    const auto wins = count_wins(query, results, measure, first, second);
    for (const Group* a : order) {
      const auto found = of_second.find(a->key[1]);
      if (found == of_second.end()) continue;
      std::vector<double> gaps;
      std::size_t better = 0;
      for (std::size_t t = 0; t < a->per_trace[m].size(); ++t) {
        const double gap = a->per_trace[m][t] - found->second->per_trace[m][t];
        if (std::isnan(gap)) continue;
        gaps.push_back(gap);
        better += measure.higher_is_better ? gap > 0 : gap < 0;
      }
      const Estimate gap = bootstrap.mean(gaps);
      std::vector<std::string> row{measure.label, csv ? a->key[1] : budget_text(*a),
                                   number(a->values[m].mean), number(found->second->values[m].mean),
                                   csv ? number(gap.mean) : estimate_text(gap)};
      if (csv) row.insert(row.end(), {number(gap.low), number(gap.high)});
      row.push_back(fmt::format("{} of {}", better, gaps.size()));
      const auto win = wins.find(a->key[1]);
      row.push_back(win == wins.end() ? std::string(csv ? "" : "-")
                                      : fmt::format("{} of {}", win->second.better, win->second.rows));
      table.rows.push_back(std::move(row));
    }
  }
  if (table.rows.empty()) throw UserError("--compare: '{}' and '{}' share no measured budget", first, second);
  if (csv) return table.render(request.format);
  return fmt::format("A = {}\nB = {}\n\n{}\n", first, second, table.render(request.format));
}

}  // namespace kvsim
