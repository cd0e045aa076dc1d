// The summary over layers, heads and steps.
#include "analysis/summary_store.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <span>

#include "analysis/packed_distribution.h"
#include "kernels/error.h"
#include "sim/tasks.h"

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

/// The distributions of some cells of one trace as the parts store them, unit after unit.
class StoredCells {
 public:
  StoredCells(const PartSet& parts, std::uint32_t trace, const std::vector<CellId>& cells)
      : pieces_(cells.size()) {
    for (const auto& [unit, infos] : parts.units) {
      if (unit.trace != trace) continue;
      std::vector<bool> seen(cells.size(), false);  // a cell that two batches hold counts once
      for (const PartInfo& info : infos) read_part(info.path, parts.record.description, cells, seen);
    }
  }

  /// Distributions of the i-th cell, one per metric, joined over the units in order.
  std::vector<Distribution> joined(std::size_t i, std::size_t metrics) const {
    thread_local DistributionSum sum;
    std::vector<Piece> pieces = pieces_[i];
    std::vector<Distribution> all;
    for (std::size_t m = 0; m < metrics; ++m) {
      for (Piece& piece : pieces) {
        if (unpack(piece.bytes, sum)) continue;
        sum.take();
        throw UserError("{}: is damaged: a distribution makes no sense; delete it and run again",
                        *piece.path);
      }
      all.push_back(sum.take());
    }
    return all;
  }

 private:
  /// What one part says of a cell.
  struct Piece {
    std::span<const std::uint8_t> bytes;
    const std::string* path;
  };

  void read_part(const std::string& path, const RunDescription& description, const std::vector<CellId>& cells,
                 std::vector<bool>& seen) {
    const auto place_of = [&](const CellId& cell) {
      const auto found = std::lower_bound(cells.begin(), cells.end(), cell);
      return found != cells.end() && *found == cell ? static_cast<std::size_t>(found - cells.begin())
                                                    : cells.size();
    };
    const PartReader reader(path, description);
    const std::vector<CellId> stored = reader.distribution_cells();
    for (std::size_t i = 0; i < stored.size(); ++i) {
      std::size_t end = i;
      while (end < stored.size() && place_of(stored[end]) < cells.size()) ++end;
      if (end == i) continue;
      const PackedCells& packed = packed_.emplace_back(reader.packed_distributions(i, end - i));
      for (std::size_t first = i; i < end; ++i) {
        const std::size_t place = place_of(stored[i]);
        if (seen[place]) continue;
        seen[place] = true;
        const std::uint64_t begin = packed.begin[i - first];
        pieces_[place].push_back(
            {std::span(packed.bytes).subspan(begin, packed.begin[i - first + 1] - begin), &path});
      }
    }
  }

  std::deque<PackedCells> packed_;
  std::vector<std::vector<Piece>> pieces_;  // [cells]
};

}  // namespace

std::vector<CellDistributions> joined_distributions(const PartSet& parts, std::uint32_t trace,
                                                    const std::vector<CellId>& cells) {
  const RunDescription& description = parts.record.description;
  const std::size_t metrics = chosen_metrics(description, MetricInfo::Level::row).size() +
                              chosen_metrics(description, MetricInfo::Level::layer).size();
  const StoredCells stored(parts, trace, cells);
  std::vector<CellDistributions> joined(cells.size());
  const auto errors = run_on_all_threads(cells.size(), [&](std::size_t i) {
    joined[i] = {cells[i].variant, cells[i].budget, stored.joined(i, metrics)};
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  add_trace_metrics(parts, trace, cells, joined);
  return joined;
}

}  // namespace kvsim
