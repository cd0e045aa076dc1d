// Joining part files into the results of a run.
#include "analysis/result_store.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>

#include "analysis/csv.h"
#include "analysis/durable_file.h"
#include "analysis/kept_store.h"
#include "analysis/part_set.h"
#include "analysis/result_header.h"
#include "analysis/summary_store.h"
#include "analysis/table_writer.h"
#include "analysis/write_guard.h"
#include "kernels/error.h"
#include "kernels/memory.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

// Cells whose distributions are in memory at once: at 16 metrics and a thousand bins of 16 bytes, 64 MiB, and
// as much again for 50 layers as they are stored.
constexpr std::size_t kCellsAtOnce = 256;
constexpr std::size_t kMissingShown = 8;

using h5::Element;

/// Names that stand for indices, with their CSV form.
struct NameTable {
  std::vector<std::string> names, csv;

  std::int32_t add(const std::string& name) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found != names.end()) return static_cast<std::int32_t>(found - names.begin());
    names.push_back(name);
    csv.push_back(csv_field(name));
    return static_cast<std::int32_t>(names.size() - 1);
  }
};

/// All look-up tables of a run and, per variant and budget, the index into them.
struct Names {
  NameTable traces, policies, variants, budgets;
  std::vector<std::int32_t> policy_of;               // [variant]
  std::vector<std::vector<std::int32_t>> budget_of;  // [trace][budget]

  explicit Names(const RunDescription& description) {
    for (const VariantEntry& variant : description.variants) {
      variants.add(variant.spec);
      policy_of.push_back(policies.add(variant.policy));
    }
    for (const TraceEntry& trace : description.traces) {
      traces.add(trace.name);
      auto& indices = budget_of.emplace_back();
      for (const BudgetPoint& budget : trace.budgets) indices.push_back(budgets.add(budget.request));
    }
  }
};

void put_index(TableWriter& table, const NameTable& names, std::int32_t index) {
  table.index(index, names.csv[static_cast<std::size_t>(index)]);
}

class Merge {
 public:
  Merge(const PartSet& parts, const std::string& out)
      : parts_(parts),
        description_(parts.record.description),
        names_(description_),
        row_metrics_(chosen_metrics(description_, MetricInfo::Level::row)),
        layer_metrics_(chosen_metrics(description_, MetricInfo::Level::layer)),
        trace_metrics_(chosen_metrics(description_, MetricInfo::Level::trace)),
        out_(out),
        pending_(out + "/results.h5"),
        file_(h5::File::create(pending_.path(), h5::File::Create::replace)) {}

  void write(MergeOutcome& outcome) {
    write_head();
    outcome.failures = write_failures_and_times();
    write_passes();
    for (const auto& entry : parts_.units) count_rows(entry.second);
    outcome.rows = rows_;
    std::vector<std::string> shared{"trace", "policy", "variant", "layer"};
    rows_table_.emplace(file_.create_group("rows"), out_ + "/results.csv", row_columns(), rows_);
    layer_table_.emplace(file_.create_group("layer_rows"), out_ + "/layers.csv", layer_columns(),
                         layer_rows_);
    std::vector<SummaryCells> summaries;
    for (const TraceEntry& trace : description_.traces) {
      summaries.emplace_back(description_.variants.size(), trace.budgets.size());
    }
    for (const auto& [unit, infos] : parts_.units) {
      const auto rows = unit_rows(infos, description_);
      for (const ResultRow& row : rows) write_row(unit, row);
      for (const LayerRow& row : unit_layer_rows(infos, description_)) write_layer_row(unit, row);
      summaries[unit.trace].add_unit(rows);
    }
    rows_table_->finish();
    layer_table_->finish();
    write_summary(summaries);
    write_step_details(file_, parts_);
    write_trace_details(file_, parts_);
    close_guarded(file_, guard_);
    outcome.kept = write_kept();
    commit();
  }

 private:
  void write_head() {
    write_format(file_, "kvsim-results");
    Provenance provenance = description_.provenance;
    provenance.instruction_path = fmt::format("{}", fmt::join(parts_.instruction_paths, " + "));
    write_provenance(file_, provenance);
    write_traces(file_, description_.traces);
    write_variants(file_, description_.variants);
    file_.write_column("policies/name", names_.policies.names);
    file_.write_column("budgets/text", names_.budgets.names);
    std::vector<std::string> name, unit, direction, summary, level;
    for (const auto* metrics : {&row_metrics_, &layer_metrics_, &trace_metrics_}) {
      for (const MetricInfo& metric : *metrics) {
        name.emplace_back(metric.name);
        unit.emplace_back(metric.unit);
        direction.emplace_back(metric.higher_is_better ? "higher" : "lower");
        summary.emplace_back(metric.summary);
        level.emplace_back(level_name(metric.level));
      }
    }
    file_.write_column("metrics/name", name);
    file_.write_column("metrics/unit", unit);
    file_.write_column("metrics/direction", direction);
    file_.write_column("metrics/summary", summary);
    file_.write_column("metrics/level", level);
  }

  /// Which first pass served which budget, for those that read pseudo queries.
  void write_passes() {
    std::vector<std::string> trace, variant, pass;
    std::vector<std::int64_t> tokens;
    for (const PassUse& use : parts_.record.passes) {
      trace.push_back(description_.traces[use.trace].name);
      variant.push_back(description_.variants[use.variant].spec);
      tokens.push_back(use.budget_tokens);
      pass.push_back(use.pass);
    }
    file_.write_column("lookahead_pass/trace", trace);
    file_.write_column("lookahead_pass/variant", variant);
    file_.write_column("lookahead_pass/budget_tokens", tokens);
    file_.write_column("lookahead_pass/pass", pass);
  }

  std::size_t write_failures_and_times() {
    std::vector<std::string> unit_name, variant, message, timed_unit, stage;
    std::vector<double> seconds;
    for (const Refusal& refusal : parts_.record.refusals) {
      unit_name.push_back(description_.traces[refusal.trace].name);
      variant.push_back(description_.variants[refusal.variant].spec);
      message.push_back(refusal.message);
    }
    for (const auto& [unit, infos] : parts_.units) {
      const std::string name = fmt::format("{} layer {}", description_.traces[unit.trace].name, unit.layer);
      for (const PartInfo& info : infos) {
        const PartReader reader(info.path, description_);
        for (const Failure& failure : reader.failures()) {
          unit_name.push_back(name);
          variant.push_back(description_.variants[failure.variant].spec);
          message.push_back(failure.message);
        }
        for (const auto& [what, time] : reader.perf()) {
          timed_unit.push_back(name);
          stage.push_back(what);
          seconds.push_back(time);
        }
      }
    }
    file_.write_column("failures/unit", unit_name);
    file_.write_column("failures/variant", variant);
    file_.write_column("failures/message", message);
    file_.write_column("perf/unit", timed_unit);
    file_.write_column("perf/stage", stage);
    file_.write_column("perf/seconds", seconds);
    return message.size();
  }

  void count_rows(const std::vector<PartInfo>& infos) {
    // Two batches may answer one cell, so their rows are joined to be counted.
    rows_ += infos.size() == 1 ? infos[0].rows : unit_rows(infos, description_).size();
    layer_rows_ += infos.size() == 1 ? infos[0].layer_rows : unit_layer_rows(infos, description_).size();
  }

  std::vector<ColumnSpec> row_columns() const {
    std::vector<ColumnSpec> columns{{"trace", Element::int32},         {"policy", Element::int32},
                                    {"variant", Element::int32},       {"layer", Element::int32},
                                    {"kv_head", Element::int32},       {"budget_request", Element::int32},
                                    {"budget_tokens", Element::int64}, {"resident_tokens", Element::float64},
                                    {"peak_tokens", Element::float64}, {"evicted", Element::float64},
                                    {"clamped", Element::uint8},       {"near_ties", Element::int64}};
    for (const MetricInfo& metric : row_metrics_)
      columns.push_back({std::string(metric.name), Element::float64});
    return columns;
  }

  std::vector<ColumnSpec> layer_columns() const {
    std::vector<ColumnSpec> columns{{"trace", Element::int32},
                                    {"policy", Element::int32},
                                    {"variant", Element::int32},
                                    {"layer", Element::int32},
                                    {"budget_request", Element::int32},
                                    {"budget_tokens", Element::int64},
                                    {"resident_tokens", Element::float64}};
    for (const MetricInfo& metric : layer_metrics_)
      columns.push_back({std::string(metric.name), Element::float64});
    return columns;
  }

  std::vector<ColumnSpec> summary_columns() const {
    std::vector<ColumnSpec> columns{{"trace", Element::int32},         {"policy", Element::int32},
                                    {"variant", Element::int32},       {"budget_request", Element::int32},
                                    {"budget_tokens", Element::int64}, {"resident_tokens", Element::float64},
                                    {"peak_tokens", Element::float64}, {"evicted", Element::float64},
                                    {"clamped", Element::uint8},       {"near_ties", Element::int64}};
    for (const auto* metrics : {&row_metrics_, &layer_metrics_, &trace_metrics_}) {
      for (const MetricInfo& metric : *metrics) {
        for (const std::string& name : statistics_of(metric.higher_is_better)) {
          columns.push_back(
              {fmt::format("{}_{}", metric.name, name), name == "count" ? Element::int64 : Element::float64});
        }
      }
    }
    return columns;
  }

  void put_cell_names(TableWriter& table, std::uint32_t trace, std::uint32_t variant) {
    put_index(table, names_.traces, static_cast<std::int32_t>(trace));
    put_index(table, names_.policies, names_.policy_of[variant]);
    put_index(table, names_.variants, static_cast<std::int32_t>(variant));
  }
  void put_budget(TableWriter& table, std::uint32_t trace, std::uint32_t budget) {
    put_index(table, names_.budgets, names_.budget_of[trace][budget]);
    table.integer(description_.traces[trace].budgets[budget].tokens);
  }
  static void put_number(TableWriter& table, std::uint32_t value) {
    table.index(static_cast<std::int32_t>(value), fmt::format("{}", value));
  }

  void write_row(const UnitId& unit, const ResultRow& row) {
    TableWriter& table = *rows_table_;
    put_cell_names(table, unit.trace, row.variant);
    put_number(table, unit.layer);
    put_number(table, row.kv_head);
    put_budget(table, unit.trace, row.budget);
    table.number(row.resident_tokens);
    table.number(row.peak_tokens);
    table.number(row.evicted);
    table.flag(row.clamped);
    table.integer(row.near_ties);
    for (const double value : row.values) table.number(value);
    table.end_row();
  }

  void write_layer_row(const UnitId& unit, const LayerRow& row) {
    TableWriter& table = *layer_table_;
    put_cell_names(table, unit.trace, row.variant);
    put_number(table, unit.layer);
    put_budget(table, unit.trace, row.budget);
    table.number(row.resident_tokens);
    for (const double value : row.values) table.number(value);
    table.end_row();
  }

  void write_summary(const std::vector<SummaryCells>& summaries) {
    std::uint64_t count = 0;
    for (const SummaryCells& summary : summaries) count += summary.complete().size();
    summary_table_.emplace(file_.create_group("summary"), out_ + "/summary.csv", summary_columns(), count);
    for (std::uint32_t trace = 0; trace < summaries.size(); ++trace) {
      const std::vector<CellId> cells = summaries[trace].complete();
      for (std::size_t first = 0; first < cells.size(); first += kCellsAtOnce) {
        const auto last =
            cells.begin() + static_cast<std::ptrdiff_t>(std::min(first + kCellsAtOnce, cells.size()));
        const std::vector<CellId> some(cells.begin() + static_cast<std::ptrdiff_t>(first), last);
        for (const CellDistributions& cell : joined_distributions(parts_, trace, some)) {
          write_summary_row(trace, cell, summaries[trace].at({cell.variant, cell.budget}));
        }
      }
    }
    summary_table_->finish();
  }

  void write_summary_row(std::uint32_t trace, const CellDistributions& cell, const SummaryCell& sums) {
    TableWriter& table = *summary_table_;
    const auto rows = static_cast<double>(sums.rows);
    put_cell_names(table, trace, cell.variant);
    put_budget(table, trace, cell.budget);
    table.number(sums.resident_tokens / rows);
    table.number(sums.peak_tokens / rows);
    table.number(sums.evicted / rows);
    table.flag(sums.clamped);
    table.integer(sums.near_ties);
    std::size_t m = 0;
    for (const auto* metrics : {&row_metrics_, &layer_metrics_, &trace_metrics_}) {
      for (const MetricInfo& metric : *metrics) {
        const Distribution& distribution = cell.metrics[m++];
        for (const std::string& name : statistics_of(metric.higher_is_better)) {
          if (name == "count") {
            table.integer(static_cast<std::int64_t>(distribution.count));
          } else {
            table.number(statistic(distribution, name));
          }
        }
      }
    }
    table.end_row();
  }

  bool write_kept() {
    if (!has_kept_sets(parts_)) return false;
    kept_pending_.emplace(out_ + "/kept.h5");
    h5::File kept = h5::File::create(kept_pending_->path(), h5::File::Create::replace);
    WriteGuard guard(kept);
    write_kept_sets(kept, parts_);
    close_guarded(kept, guard);
    return true;
  }

  /// Everything is on disk under temporary names; results.h5 comes last, so that it never stands beside older
  /// tables.
  void commit() {
    rows_table_->commit_csv();
    layer_table_->commit_csv();
    summary_table_->commit_csv();
    if (kept_pending_) {
      kept_pending_->commit();
    } else {
      std::filesystem::remove(out_ + "/kept.h5");
    }
    pending_.commit();
  }

  const PartSet& parts_;
  const RunDescription& description_;
  Names names_;
  std::vector<MetricInfo> row_metrics_, layer_metrics_, trace_metrics_;
  std::string out_;
  std::uint64_t rows_ = 0, layer_rows_ = 0;
  h5::PendingFile pending_;
  std::optional<h5::PendingFile> kept_pending_;
  h5::File file_;
  std::optional<TableWriter> rows_table_, layer_table_, summary_table_;
  WriteGuard guard_{file_};  // ends first, before the tables let go of their datasets
};

MergeOutcome outcome_of(const PartSet& parts) {
  MergeOutcome outcome;
  outcome.units = parts.units.size();
  outcome.parts = parts.parts;
  outcome.missing = parts.missing_text();
  outcome.problems = parts.problems;
  return outcome;
}

std::string listed(const std::vector<std::string>& lines) {
  const std::size_t shown = std::min(lines.size(), kMissingShown);
  std::string text =
      fmt::format("{}", fmt::join(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(shown), ", "));
  if (shown < lines.size()) text += fmt::format(" and {} more", lines.size() - shown);
  return text;
}

void check_complete(const PartSet& parts, const std::vector<std::string>& folders,
                    const MergeOptions& options) {
  if (parts.units.empty()) {
    throw UserError("{}: no finished parts to merge{}", fmt::join(folders, ", "),
                    parts.problems.empty() ? std::string() : "; " + parts.problems.front());
  }
  if (parts.instruction_paths.size() > 1 && !options.allow_mixed) {
    throw UserError(
        "{}: parts were made on different instruction paths ({}), whose last bits differ; --allow-mixed "
        "joins them",
        fmt::join(folders, ", "), fmt::join(parts.instruction_paths, ", "));
  }
  if (!parts.missing.empty() && !options.partial) {
    throw UserError(
        "{}: {} of {} units are missing or incomplete: {}; finish the run, or merge what is there with "
        "--partial{}",
        fmt::join(folders, ", "), parts.missing.size(), parts.record.units.size(),
        listed(parts.missing_text()),
        parts.problems.empty() ? std::string() : " (" + parts.problems.front() + ")");
  }
}

}  // namespace

MergeOutcome inspect_run(const std::vector<std::string>& folders) {
  return outcome_of(collect_parts(folders));
}

MergeOutcome merge_results(const std::vector<std::string>& folders, const std::string& out,
                           const MergeOptions& options) {
  return merge_results(collect_parts(folders), folders, out, options);
}

MergeOutcome merge_results(const PartSet& parts, const std::vector<std::string>& folders,
                           const std::string& out, const MergeOptions& options) {
  check_complete(parts, folders, options);
  make_folder(out);
  give_back_unset();
  MergeOutcome outcome = outcome_of(parts);
  Merge(parts, out).write(outcome);
  const std::string settings = out + "/run.ini";
  if (!std::filesystem::exists(settings) && std::filesystem::exists(folders.front() + "/run.ini")) {
    write_text_file(settings, read_text_file(folders.front() + "/run.ini"));
  }
  return outcome;
}

}  // namespace kvsim
