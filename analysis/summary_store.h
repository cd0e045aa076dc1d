// The summary over layers, heads and steps: one row per trace, variant and budget.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "analysis/part_set.h"
#include "sim/predicted_kl.h"
#include "sim/results.h"

namespace kvsim {

/// Statistics of a metric in the summary, in column order: count, mean, p50, then towards the bad end.
std::vector<std::string> statistics_of(bool higher_is_better);
double statistic(const Distribution& distribution, std::string_view name);

/// One cell of a trace over all its units.
struct SummaryCell {
  std::size_t rows = 0, units = 0;
  double resident_tokens = 0, peak_tokens = 0, evicted = 0;  // sums over rows
  bool clamped = false;
  std::int64_t near_ties = 0;
};

/// Gathers rows of one trace in row order.
class SummaryCells {
 public:
  SummaryCells(std::size_t variants, std::size_t budgets) : budgets_(budgets), cells_(variants * budgets) {}
  void add_unit(const std::vector<ResultRow>& rows);
  const SummaryCell& at(CellId id) const { return cells_[id.variant * budgets_ + id.budget]; }
  /// Cells that every unit so far has answered: only those are summarised, or figures over fewer layers would
  /// stand beside figures over all.
  std::vector<CellId> complete() const;

 private:
  std::size_t budgets_, units_ = 0;
  std::vector<SummaryCell> cells_;
};

/// What the errors of all layers do together, one per cell, in the order of `cells`: ascending cells of one
/// trace.
std::vector<EffectSum> effect_sums(const PartSet& parts, std::uint32_t trace,
                                   const std::vector<CellId>& cells);

/// Distributions of some cells of one trace, joined over its units in order: row metrics, layer metrics, then
/// those of the whole trace over its steps. Same order as `cells`, which are ascending.
std::vector<CellDistributions> joined_distributions(const PartSet& parts, std::uint32_t trace,
                                                    const std::vector<CellId>& cells);

}  // namespace kvsim
