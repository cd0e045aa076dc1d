// Results of page sweeps as CSV and HDF5.
#include "analysis/pages_store.h"

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <tuple>

#include "analysis/csv.h"
#include "analysis/durable_file.h"
#include "analysis/result_header.h"
#include "analysis/table_writer.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

/// One column of results: its name, and its value for a row.
struct Column {
  const char* name;
  std::function<double(const PageSweep&, const PageRow&)> value;
  bool integer = true;
};

double ratio(double a, double b) { return b > 0 ? a / b : kUndefined; }
double number(std::uint64_t n) { return static_cast<double>(n); }
bool has_prefixes(const PageSweep& sweep, const PageRow& row) {
  return sweep.streams[row.stream].grouping == Grouping::prefix;
}
bool has_sets(const PageSweep& sweep, const PageRow& row) {
  return sweep.streams[row.stream].grouping == Grouping::sets;
}

const std::vector<Column>& columns() {
  using S = const PageSweep&;
  using R = const PageRow&;
  static const std::vector<Column> all{
      {"requests", [](S, R r) { return number(r.counts.tally.requests); }},
      {"misses", [](S, R r) { return number(r.counts.tally.misses); }},
      {"miss_ratio", [](S, R r) { return r.counts.miss_ratio(); }, false},
      {"byte_miss_ratio",
       [](S s, R r) { return s.options.by_bytes ? r.counts.byte_miss_ratio() : kUndefined; }, false},
      {"cost_ratio", [](S, R r) { return r.cost_ratio(); }, false},
      {"bound", [](S, R r) { return r.bound; }, false},
      {"prefix_hit_rate",
       [](S s, R r) {
         return has_prefixes(s, r) ? ratio(number(r.counts.prefix_hits), number(r.counts.tally.requests))
                                   : kUndefined;
       },
       false},
      {"lookup_hit_rate",
       [](S s, R r) {
         return has_prefixes(s, r) ? ratio(number(r.counts.lookup_hits), number(r.counts.tally.requests))
                                   : kUndefined;
       },
       false},
      {"first_touches", [](S, R r) { return number(r.counts.first_touches); }},
      {"recalls", [](S, R r) { return number(r.counts.recalls()); }},
      {"admitted", [](S, R r) { return number(r.counts.tally.admitted); }},
      {"admitted_bytes",
       [](S s, R r) { return s.options.by_bytes ? number(r.counts.tally.admitted_bytes) : kUndefined; },
       false},
      {"evicted", [](S, R r) { return number(r.counts.tally.evicted); }},
      {"oversized", [](S, R r) { return number(r.counts.tally.oversized); }},
      {"steps", [](S s, R r) { return has_sets(s, r) ? number(r.counts.groups) : kUndefined; }, false},
      {"overfull_steps", [](S s, R r) { return has_sets(s, r) ? number(r.counts.overfull) : kUndefined; },
       false},
      {"fetched_bytes_per_step",
       [](S s, R r) {
         if (!has_sets(s, r)) return kUndefined;
         return ratio(number(r.counts.tally.misses) * s.streams[r.stream].bytes_per_page,
                      number(r.counts.groups));
       },
       false},
      {"output_error_without_recall", [](S, R r) { return r.output_error; }, false},
      {"sampled_error", [](S, R r) { return r.sampled_error; }, false},
      {"guard_phases", [](S, R r) { return r.counts.has_guard ? number(r.counts.guard.phases) : kUndefined; },
       false},
      {"guard_errors", [](S, R r) { return r.counts.has_guard ? number(r.counts.guard.errors) : kUndefined; },
       false},
      {"guard_guards", [](S, R r) { return r.counts.has_guard ? number(r.counts.guard.guards) : kUndefined; },
       false},
      {"guard_random_share",
       [](S, R r) {
         const GuardCounters& g = r.counts.guard;
         return r.counts.has_guard
                    ? ratio(number(g.random_evictions), number(g.random_evictions + g.base_evictions))
                    : kUndefined;
       },
       false},
  };
  return all;
}

std::string line_of(const std::vector<std::string>& fields) {
  std::string out;
  for (const std::string& f : fields) out += (out.empty() ? "" : ",") + f;
  return out + "\n";
}
std::string text_of(double value) {
  std::string out;
  append_number(out, value);
  return out;
}

void write_rows(TableWriter& table, const PageSweep& sweep) {
  for (const PageRow& row : sweep.rows) {
    const StreamInfo& info = sweep.infos[row.stream];
    const PageVariant& variant = sweep.variants[row.variant];
    table.index(static_cast<std::int32_t>(info.trace), csv_field(sweep.traces[info.trace]));
    table.index(static_cast<std::int32_t>(row.stream), csv_field(sweep.streams[row.stream].name));
    table.number(info.layer < 0 ? kUndefined : info.layer);
    table.number(info.kv_head < 0 ? kUndefined : info.kv_head);
    table.index(static_cast<std::int32_t>(row.variant), csv_field(variant.name));
    table.index(static_cast<std::int32_t>(row.variant), csv_field(variant.label));
    table.integer(static_cast<std::int64_t>(row.capacity));
    table.integer(static_cast<std::int64_t>(row.slots));
    for (const Column& c : columns()) {
      const double value = c.value(sweep, row);
      if (c.integer) {
        table.integer(static_cast<std::int64_t>(value));
      } else {
        table.number(value);
      }
    }
    table.end_row();
  }
  table.finish();
}

std::vector<ColumnSpec> column_specs() {
  std::vector<ColumnSpec> out{{"trace", h5::Element::int32},    {"stream", h5::Element::int32},
                              {"layer", h5::Element::float64},  {"kv_head", h5::Element::float64},
                              {"policy", h5::Element::int32},   {"variant", h5::Element::int32},
                              {"capacity", h5::Element::int64}, {"slots", h5::Element::int64}};
  for (const Column& c : columns())
    out.push_back({c.name, c.integer ? h5::Element::int64 : h5::Element::float64});
  return out;
}

/// Mean over streams with a 95% interval from their spread (normal quantile 1.96); one stream has no
/// interval.
struct Spread {
  std::size_t n = 0;
  double sum = 0, squares = 0;
  void add(double x) {
    if (std::isnan(x)) return;
    ++n;
    sum += x;
    squares += x * x;
  }
  double mean() const { return n == 0 ? kUndefined : sum / static_cast<double>(n); }
  double half_width() const {
    if (n < 2) return kUndefined;
    const double count = static_cast<double>(n);
    return 1.96 * std::sqrt(std::max(0.0, squares - count * mean() * mean()) / (count - 1) / count);
  }
};

std::string summary_text(const PageSweep& sweep) {
  struct Cell {
    Spread miss, cost, fetched, error;
    std::uint64_t requests = 0, misses = 0, optimum = 0, recalls = 0;
    bool all_optima = true;
    double bound = kUndefined;
  };
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>, Cell> cells;
  for (const PageRow& row : sweep.rows) {
    Cell& cell = cells[{sweep.infos[row.stream].trace, row.variant, row.capacity}];
    cell.miss.add(row.counts.miss_ratio());
    cell.cost.add(row.cost_ratio());
    cell.error.add(row.output_error);
    if (has_sets(sweep, row)) {
      cell.fetched.add(ratio(number(row.counts.tally.misses) * sweep.streams[row.stream].bytes_per_page,
                             number(row.counts.groups)));
    }
    cell.requests += row.counts.tally.requests;
    cell.misses += row.counts.tally.misses;
    cell.recalls += row.counts.recalls();
    cell.optimum += row.optimum;
    cell.all_optima = cell.all_optima && row.has_optimum;
    cell.bound = row.bound;
  }
  std::string out =
      "trace,policy,variant,capacity,streams,requests,misses,recalls,miss_ratio,miss_ratio_mean,miss_ratio_"
      "half_width,"
      "cost_ratio,cost_ratio_mean,cost_ratio_half_width,bound,fetched_bytes_per_step_mean,output_error_"
      "without_recall_mean\n";
  for (const auto& [key, cell] : cells) {
    const auto& [trace, variant, capacity] = key;
    out += line_of({csv_field(sweep.traces[trace]), csv_field(sweep.variants[variant].name),
                    csv_field(sweep.variants[variant].label), fmt::format("{}", capacity),
                    fmt::format("{}", cell.miss.n), fmt::format("{}", cell.requests),
                    fmt::format("{}", cell.misses), fmt::format("{}", cell.recalls),
                    text_of(ratio(number(cell.misses), number(cell.requests))), text_of(cell.miss.mean()),
                    text_of(cell.miss.half_width()),
                    text_of(cell.all_optima ? ratio(number(cell.misses), number(cell.optimum)) : kUndefined),
                    text_of(cell.cost.mean()), text_of(cell.cost.half_width()), text_of(cell.bound),
                    text_of(cell.fetched.mean()), text_of(cell.error.mean())});
  }
  return out;
}

std::string phases_text(const PageSweep& sweep) {
  std::string out = "trace,stream,variant,capacity,phase,begin,misses,errors,guards\n";
  for (const PageRow& row : sweep.rows) {
    for (std::size_t i = 0; i < row.counts.guard.detail.size(); ++i) {
      const GuardPhase& p = row.counts.guard.detail[i];
      out +=
          fmt::format("{},{},{},{},{},{},{},{},{}\n", csv_field(sweep.traces[sweep.infos[row.stream].trace]),
                      csv_field(sweep.streams[row.stream].name), csv_field(sweep.variants[row.variant].label),
                      row.capacity, i + 1, p.begin, p.misses, p.errors, p.guards);
    }
  }
  return out;
}

std::string curves_text(const PageSweep& sweep, const std::vector<CurvePoint>& curves) {
  std::string out = "trace,stream,policy,variant,capacity,miss_ratio,error,method\n";
  for (const CurvePoint& p : curves) {
    out += line_of({csv_field(sweep.traces[sweep.infos[p.stream].trace]),
                    csv_field(sweep.streams[p.stream].name), csv_field(sweep.variants[p.variant].name),
                    csv_field(sweep.variants[p.variant].label), fmt::format("{}", p.capacity),
                    text_of(p.miss_ratio), text_of(p.error), p.method});
  }
  return out;
}

}  // namespace

void write_page_results(const std::string& folder, const PageSweep& sweep,
                        const std::vector<CurvePoint>& curves, const Provenance& provenance) {
  make_folder(folder);
  h5::PendingFile pending(folder + "/results.h5");
  h5::File file = h5::File::create(pending.path(), h5::File::Create::replace);
  write_format(file, "kvsim-pages");
  write_provenance(file, provenance);
  file.create_group("traces").write_column("name", sweep.traces);
  std::vector<std::string> streams, policies, variants;
  for (const PageStream& s : sweep.streams) streams.push_back(s.name);
  for (const PageVariant& v : sweep.variants) {
    policies.push_back(v.name);
    variants.push_back(v.label);
  }
  file.create_group("streams").write_column("name", streams);
  h5::Group group = file.create_group("variants");
  group.write_column("policy", policies);
  group.write_column("spec", variants);
  {
    TableWriter table(file.create_group("rows"), folder + "/results.csv", column_specs(), sweep.rows.size());
    write_rows(table, sweep);
    std::vector<std::string> messages;
    std::vector<std::int32_t> failed;
    for (const PageFailure& f : sweep.failures) {
      messages.push_back(f.message);
      failed.push_back(static_cast<std::int32_t>(f.variant));
    }
    h5::Group failures = file.create_group("failures");
    failures.write_column("message", messages);
    failures.write_column("variant", failed);
    file.close();
    pending.commit();
    table.commit_csv();
  }
  write_text_file(folder + "/summary.csv", summary_text(sweep));
  if (sweep.options.detail) write_text_file(folder + "/phases.csv", phases_text(sweep));
  if (!curves.empty()) write_text_file(folder + "/curves.csv", curves_text(sweep, curves));
}

}  // namespace kvsim
