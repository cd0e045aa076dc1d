// The summary over layers, heads and steps.
#include "analysis/summary_store.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"

namespace kvsim {

std::vector<std::string> statistics_of(bool higher_is_better) {
  if (higher_is_better) return {"count", "mean", "p50", "p5", "p1", "min"};
  return {"count", "mean", "p50", "p95", "p99", "max"};
}

double statistic(const Distribution& d, std::string_view name) {
  if (name == "count") return static_cast<double>(d.count);
  if (d.count == 0) return std::numeric_limits<double>::quiet_NaN();
  if (name == "mean") return d.sum / static_cast<double>(d.count);
  if (name == "min") return d.min;
  if (name == "max") return d.max;
  if (name == "p1") return d.quantile(0.01);
  if (name == "p5") return d.quantile(0.05);
  if (name == "p50") return d.quantile(0.50);
  if (name == "p95") return d.quantile(0.95);
  if (name == "p99") return d.quantile(0.99);
  throw InternalError(fmt::format("no statistic '{}'", name));
}

void SummaryCells::add_unit(const std::vector<ResultRow>& rows) {
  ++units_;
  std::vector<bool> seen(cells_.size(), false);
  for (const ResultRow& row : rows) {
    const std::size_t at = row.variant * budgets_ + row.budget;
    SummaryCell& cell = cells_[at];
    if (!seen[at]) ++cell.units;
    seen[at] = true;
    ++cell.rows;
    cell.resident_tokens += row.resident_tokens;
    cell.peak_tokens += row.peak_tokens;
    cell.evicted += row.evicted;
    cell.clamped = cell.clamped || row.clamped;
    cell.near_ties += row.near_ties;
  }
}

std::vector<CellId> SummaryCells::complete() const {
  std::vector<CellId> ids;
  for (std::size_t i = 0; i < cells_.size(); ++i) {
    if (units_ > 0 && cells_[i].units == units_) {
      ids.push_back({static_cast<std::uint32_t>(i / budgets_), static_cast<std::uint32_t>(i % budgets_)});
    }
  }
  return ids;
}

std::vector<EffectSum> effect_sums(const PartSet& parts, std::uint32_t trace,
                                   const std::vector<CellId>& cells) {
  std::vector<EffectSum> sums(cells.size());
  for (const auto& [unit, infos] : parts.units) {  // layers ascend
    if (unit.trace != trace) continue;
    std::vector<bool> seen(cells.size(), false);  // a cell that two batches hold counts once
    for (const PartInfo& info : infos) {
      for (const LayerEffect& effect : PartReader(info.path, parts.record.description).effects(cells)) {
        const auto place = static_cast<std::size_t>(
            std::lower_bound(cells.begin(), cells.end(), CellId{effect.variant, effect.budget}) -
            cells.begin());
        if (seen[place]) continue;
        seen[place] = true;
        sums[place].add(effect);
      }
    }
    for (std::size_t i = 0; i < cells.size(); ++i)
      if (!seen[i]) sums[i].add({});
  }
  return sums;
}

namespace {

void add_trace_metrics(const PartSet& parts, std::uint32_t trace, const std::vector<CellId>& cells,
                       std::vector<CellDistributions>& joined) {
  const std::vector<MetricInfo> metrics = chosen_metrics(parts.record.description, MetricInfo::Level::trace);
  if (metrics.empty()) return;
  const std::vector<EffectSum> sums = effect_sums(parts, trace, cells);
  for (std::size_t i = 0; i < cells.size(); ++i) {
    for (const MetricInfo& metric : metrics) {
      Distribution& distribution = joined[i].metrics.emplace_back();
      for (const double value : sums[i].steps(metric.name)) distribution.add(value);
      distribution.finish();
    }
  }
}

}  // namespace

std::vector<CellDistributions> joined_distributions(const PartSet& parts, std::uint32_t trace,
                                                    const std::vector<CellId>& cells) {
  const RunDescription& description = parts.record.description;
  const std::size_t metrics = chosen_metrics(description, MetricInfo::Level::row).size() +
                              chosen_metrics(description, MetricInfo::Level::layer).size();
  std::vector<CellDistributions> joined;
  for (const CellId& cell : cells)
    joined.push_back({cell.variant, cell.budget, std::vector<Distribution>(metrics)});
  const auto place_of = [&](const CellId& cell) {
    const auto found = std::lower_bound(cells.begin(), cells.end(), cell);
    return found != cells.end() && *found == cell ? static_cast<std::size_t>(found - cells.begin())
                                                  : cells.size();
  };
  for (const auto& [unit, infos] : parts.units) {
    if (unit.trace != trace) continue;
    std::vector<bool> seen(cells.size(), false);  // a cell that two batches hold counts once
    for (const PartInfo& info : infos) {
      const PartReader reader(info.path, description);
      const std::vector<CellId> stored = reader.distribution_cells();
      for (std::size_t i = 0; i < stored.size();) {
        std::size_t end = i;
        while (end < stored.size() && place_of(stored[end]) < cells.size()) ++end;
        if (end == i) {
          ++i;
          continue;
        }
        for (const CellDistributions& some : reader.distributions(i, end - i)) {
          const std::size_t place = place_of({some.variant, some.budget});
          if (seen[place]) continue;
          seen[place] = true;
          for (std::size_t m = 0; m < metrics; ++m) joined[place].metrics[m].merge(some.metrics[m]);
        }
        i = end;
      }
    }
  }
  add_trace_metrics(parts, trace, cells, joined);
  return joined;
}

}  // namespace kvsim
