// Results of finished runs in memory.
#include "analysis/result_reader.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>
#include <tuple>
#include <utility>

#include "analysis/csv.h"
#include "analysis/result_header.h"
#include "traces/h5/file.h"

namespace kvsim {
namespace {

const std::vector<std::string>* names_for(const Results& results, const std::string& column,
                                          std::vector<std::string>& buffer) {
  buffer.clear();
  if (column == "trace") {
    for (const TraceEntry& trace : results.traces) buffer.push_back(trace.name);
  } else if (column == "variant") {
    for (const VariantEntry& variant : results.variants) buffer.push_back(variant.spec);
  } else if (column == "policy") {
    buffer = results.policies;
  } else if (column == "budget_request") {
    buffer = results.budgets;
  } else {
    return nullptr;
  }
  return &buffer;
}

/// Columns in the order of the CSV files: those that name a row, then the numbers as the metrics are ordered.
void sort_columns(const Results& results, Table& table) {
  static const std::vector<std::string> first{
      "trace",         "policy",          "variant",     "layer",   "kv_head", "budget_request",
      "budget_tokens", "resident_tokens", "peak_tokens", "evicted", "clamped", "near_ties"};
  static const std::vector<std::string> last{"count", "mean", "p50", "p95", "p99", "max", "p5", "p1", "min"};
  const auto place = [&](const Column& column) {
    const auto named = std::find(first.begin(), first.end(), column.name);
    if (named != first.end())
      return std::tuple(std::size_t{0}, static_cast<std::size_t>(named - first.begin()));
    std::size_t owner = results.metrics.size(), length = 0;
    for (std::size_t m = 0; m < results.metrics.size(); ++m) {
      const std::string& name = results.metrics[m].name;
      const bool owns = column.name == name || column.name.starts_with(name + "_");
      if (owns && name.size() > length) std::tie(owner, length) = std::pair(m, name.size());
    }
    const std::string ending = column.name.size() > length ? column.name.substr(length + 1) : std::string();
    return std::tuple(owner + 1,
                      static_cast<std::size_t>(std::find(last.begin(), last.end(), ending) - last.begin()));
  };
  std::stable_sort(table.columns.begin(), table.columns.end(),
                   [&](const Column& a, const Column& b) { return place(a) < place(b); });
}

Table read_table(const h5::Group& root, const std::string& name, const Results& results) {
  const h5::Group group = root.group(name);
  Table table;
  table.name = name;
  std::vector<std::string> buffer;
  for (const std::string& child : group.children()) {
    Column column;
    column.name = child;
    column.numbers = group.read_column<double>(child);
    if (const auto* names = names_for(results, child, buffer)) {
      column.is_text = true;
      column.names = *names;
      for (const double code : column.numbers) {
        if (!(code >= 0 && code < static_cast<double>(column.names.size()))) {
          throw UserError("{}: /{}/{} holds the index {} of {} names", root.file(), name, child, code,
                          column.names.size());
        }
      }
    }
    table.columns.push_back(std::move(column));
  }
  for (const Column& column : table.columns) {
    if (column.numbers.size() != table.rows())
      throw UserError("{}: the columns of /{} differ in length", root.file(), name);
  }
  sort_columns(results, table);
  return table;
}

void read_metrics(const h5::Group& root, Results& results) {
  const h5::Group group = root.group("metrics");
  const auto name = group.read_strings("name"), unit = group.read_strings("unit"),
             summary = group.read_strings("summary"), level = group.read_strings("level"),
             direction = group.read_strings("direction");
  if (unit.size() != name.size() || summary.size() != name.size() || level.size() != name.size() ||
      direction.size() != name.size()) {
    throw UserError("{}: the columns of /metrics differ in length", root.file());
  }
  for (std::size_t i = 0; i < name.size(); ++i) {
    results.metrics.push_back({name[i], unit[i], summary[i], level[i], direction[i] == "higher"});
  }
}

void read_passes(const h5::Group& root, Results& results) {
  if (!root.has("lookahead_pass")) return;  // results of an older version
  const h5::Group group = root.group("lookahead_pass");
  const auto trace = group.read_strings("trace"), variant = group.read_strings("variant"), pass = group.read_strings("pass");
  const auto tokens = group.read_column<std::int64_t>("budget_tokens");
  if (variant.size() != trace.size() || pass.size() != trace.size() || tokens.size() != trace.size())
    throw UserError("{}: the columns of /lookahead_pass differ in length", root.file());
  for (std::size_t i = 0; i < trace.size(); ++i) results.passes.push_back({trace[i], variant[i], pass[i], tokens[i]});
}

void read_failures(const h5::Group& root, Results& results) {
  const h5::Group group = root.group("failures");
  const auto unit = group.read_strings("unit"), variant = group.read_strings("variant"),
             message = group.read_strings("message");
  if (variant.size() != unit.size() || message.size() != unit.size()) {
    throw UserError("{}: the columns of /failures differ in length", root.file());
  }
  for (std::size_t i = 0; i < unit.size(); ++i) results.failures.push_back({unit[i], variant[i], message[i]});
}

void check_labels(const Results& results, const std::string& path) {
  std::set<std::string> labels;
  for (const VariantEntry& variant : results.variants) {
    if (!labels.insert(variant.spec).second) {
      throw UserError("{}: two variants have the label '{}'; a report could not tell them apart", path,
                      variant.spec);
    }
  }
}

std::string results_file(const std::string& path) {
  namespace fs = std::filesystem;
  if (!fs::exists(path)) throw UserError("{}: no such folder", path);
  if (!fs::is_directory(path)) return path;
  const std::string file = path + "/results.h5";
  if (fs::exists(file)) return file;
  if (fs::exists(path + "/parts")) {
    throw UserError(
        "{}: holds parts but no results.h5; finish the run, or make it with 'kvsim merge {} --partial'", path,
        path);
  }
  throw UserError("{}: holds no results.h5; 'kvsim run ... --out {}' makes one", path, path);
}

/// Index of `name` in `names`, added when it is new.
std::size_t code_of(std::vector<std::string>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<std::size_t>(found - names.begin());
  names.push_back(name);
  return names.size() - 1;
}

void append_table(Table& into, const Table& from) {
  const std::size_t before = into.rows(), added = from.rows();
  const double none = std::numeric_limits<double>::quiet_NaN();
  for (const Column& column : from.columns) {
    if (into.find(column.name) != nullptr) continue;
    Column fresh{column.name, std::vector<double>(before, none), {}, column.is_text};
    into.columns.push_back(std::move(fresh));
  }
  for (Column& column : into.columns) {
    const Column* source = from.find(column.name);
    for (std::size_t i = 0; i < added; ++i) {
      if (source == nullptr) {
        column.numbers.push_back(none);
      } else if (column.is_text) {
        const auto& name = source->names[static_cast<std::size_t>(source->numbers[i])];
        column.numbers.push_back(static_cast<double>(code_of(column.names, name)));
      } else {
        column.numbers.push_back(source->numbers[i]);
      }
    }
  }
}

void check_cells(const Results& results) {
  const Table& table = results.summary;
  const Column &trace = table.at("trace"), &variant = table.at("variant"),
               &budget = table.at("budget_request");
  std::set<std::tuple<double, double, double>> cells;
  for (std::size_t i = 0; i < table.rows(); ++i) {
    if (cells.emplace(trace.numbers[i], variant.numbers[i], budget.numbers[i]).second) continue;
    throw UserError(
        "{} hold '{}' at budget {} on trace {} twice; report them apart, or compare them with --diff",
        fmt::join(results.folders, " and "), variant.text(variant.numbers[i]), budget.text(budget.numbers[i]),
        trace.text(trace.numbers[i]));
  }
}

}  // namespace

UnknownName::UnknownName(const std::string& what, const std::string& name, std::vector<std::string> known)
    : UserError("unknown {} '{}'; there are: {}", what, name, fmt::join(known, ", ")),
      word(name),
      candidates(std::move(known)) {}

std::string Column::text(double value) const {
  if (is_text) return names[static_cast<std::size_t>(value)];
  std::string out;
  append_number(out, value);
  return out;
}

const Column* Table::find(const std::string& column) const {
  const auto found =
      std::find_if(columns.begin(), columns.end(), [&](const Column& c) { return c.name == column; });
  return found == columns.end() ? nullptr : &*found;
}

const Column& Table::at(const std::string& column) const {
  if (const Column* found = find(column)) return *found;
  throw UnknownName("column", column, column_names());
}

std::vector<std::string> Table::column_names() const {
  std::vector<std::string> names;
  for (const Column& column : columns) names.push_back(column.name);
  return names;
}

const MetricEntry* Results::metric(const std::string& name) const {
  const auto found =
      std::find_if(metrics.begin(), metrics.end(), [&](const MetricEntry& m) { return m.name == name; });
  return found == metrics.end() ? nullptr : &*found;
}

Results read_results(const std::string& path, bool with_rows) {
  const h5::File file = h5::File::open(results_file(path));
  check_format(file, "kvsim-results");
  Results results;
  results.folders = {path};
  results.provenance = read_provenance(file);
  results.traces = read_traces(file);
  results.variants = read_variants(file);
  results.policies = file.read_strings("policies/name");
  results.budgets = file.read_strings("budgets/text");
  check_labels(results, path);
  read_metrics(file, results);
  read_failures(file, results);
  read_passes(file, results);
  results.summary = read_table(file, "summary", results);
  if (with_rows) {
    results.rows = read_table(file, "rows", results);
    results.layer_rows = read_table(file, "layer_rows", results);
  }
  return results;
}

Results join_results(std::vector<Results> all) {
  KVSIM_CHECK(!all.empty(), "no results");
  Results joined = std::move(all.front());
  for (std::size_t i = 1; i < all.size(); ++i) {
    const Results& next = all[i];
    joined.folders.insert(joined.folders.end(), next.folders.begin(), next.folders.end());
    for (const TraceEntry& trace : next.traces) {
      const auto same = std::find_if(joined.traces.begin(), joined.traces.end(),
                                     [&](const TraceEntry& t) { return t.name == trace.name; });
      if (same == joined.traces.end()) {
        joined.traces.push_back(trace);
      } else if (same->digest_key != trace.digest_key) {
        throw UserError("trace '{}' of {} is another recording than that of {}", trace.name,
                        next.folders.front(), joined.folders.front());
      }
    }
    for (const VariantEntry& variant : next.variants) {
      const bool known = std::any_of(joined.variants.begin(), joined.variants.end(),
                                     [&](const VariantEntry& v) { return v.spec == variant.spec; });
      if (!known) joined.variants.push_back(variant);
    }
    for (const MetricEntry& metric : next.metrics) {
      if (joined.metric(metric.name) == nullptr) joined.metrics.push_back(metric);
    }
    for (const std::string& name : next.policies) code_of(joined.policies, name);
    for (const std::string& name : next.budgets) code_of(joined.budgets, name);
    append_table(joined.summary, next.summary);
    append_table(joined.rows, next.rows);
    append_table(joined.layer_rows, next.layer_rows);
    joined.failures.insert(joined.failures.end(), next.failures.begin(), next.failures.end());
    joined.passes.insert(joined.passes.end(), next.passes.begin(), next.passes.end());
  }
  check_cells(joined);
  for (Table* table : {&joined.summary, &joined.rows, &joined.layer_rows}) sort_columns(joined, *table);
  return joined;
}

}  // namespace kvsim
