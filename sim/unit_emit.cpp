// Rows, cells and kept sets of a measured variant.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sim/distribution_sum.h"
#include "sim/unit_replay.h"

namespace kvsim {
namespace {

/// The step metric of that name, if it is one.
std::optional<StepMetric> step_metric(const std::string& name) {
  if (name == "output_error") return StepMetric::output_error;
  if (name == "attention_recall") return StepMetric::attention_recall;
  if (name == "query_consistency") return StepMetric::query_consistency;
  if (name == "miss_rate") return StepMetric::miss_rate;
  if (name == "miss_rate_50") return StepMetric::miss_rate_50;
  if (name == "miss_rate_99") return StepMetric::miss_rate_99;
  if (name == "logit_error") return StepMetric::logit_error;
  return std::nullopt;
}

/// The distributions of the cell's step metrics, all heads together.
void join_heads(std::span<const HeadMeasure> heads, std::span<const std::string> metrics, std::size_t budget, CellDistributions& cell) {
  thread_local DistributionSum sum;
  for (std::size_t m = 0; m < metrics.size(); ++m) {
    const std::optional<StepMetric> per_step = step_metric(metrics[m]);
    if (!per_step) continue;
    for (const HeadMeasure& head : heads) sum.add(head.distribution(*per_step, budget));
    cell.metrics[m] = sum.take();
  }
}

}  // namespace

std::pair<double, double> UnitReplay::resident_bytes(const VariantState& state, std::size_t kv, std::size_t budget) const {
  const double entry = static_cast<double>((g_.key_dim + g_.value_dim) * layer_.element_bytes);
  const double resident = state.measures[kv].mean_readable(budget), share = state.measures[kv].resident_share(budget);
  if (state.selection.unit() != Unit::query) {
    if (share == 1.0) return {resident * entry, resident * entry};
    const Selection::Place own = state.selection.at(budget);
    const double held = std::min(resident, static_cast<double>(own.part.of(kv, 0, g_.group).counts[own.budget]));
    const double bytes = (resident - held * (1 - share)) * entry;
    return {bytes, bytes};
  }
  // Every query head has a copy of its own; the union counts what several of them keep once.
  std::vector<bool> kept(g_.prompt, false);
  double copies = 0, distinct = 0;
  const Selection::Place place = state.selection.at(budget);
  for (std::size_t h = 0; h < g_.group; ++h) {
    const UnitSelection& unit = place.part.of(kv, h, g_.group);
    const std::uint32_t count = unit.counts[place.budget];
    for (std::uint32_t i = 0; i < count; ++i) {
      distinct += kept[unit.order[i]] ? 0.0 : 1.0;
      kept[unit.order[i]] = true;
    }
    copies += count;
  }
  const auto group = static_cast<double>(g_.group);
  const double decoded = resident - copies / group;  // tokens of the decode that a step reads on average
  return {(resident * group - copies * (1 - share)) * entry, (distinct * share + decoded) * entry};
}

double UnitReplay::row_value(const VariantState& state, std::size_t kv, std::size_t metric, std::size_t budget, double bytes,
                             double union_bytes) const {
  const SetMetrics& sets = state.sets[kv];
  const HeadMeasure& measure = state.measures[kv];
  const std::string& name = row_metrics_[metric];
  if (name == "output_error") return measure.mean(StepMetric::output_error, budget);
  if (name == "attention_recall") return measure.mean(StepMetric::attention_recall, budget);
  if (name == "query_consistency") return measure.mean(StepMetric::query_consistency, budget);
  if (name == "miss_rate") return measure.mean(StepMetric::miss_rate, budget);
  if (name == "miss_rate_50") return measure.mean(StepMetric::miss_rate_50, budget);
  if (name == "miss_rate_99") return measure.mean(StepMetric::miss_rate_99, budget);
  if (name == "logit_error") return measure.mean(StepMetric::logit_error, budget);
  if (name == "stop_signal") return state.selection.stop_signal.empty() ? std::numeric_limits<double>::quiet_NaN() : state.selection.stop_signal[budget];
  if (name == "set_consistency") return sets.consistency[budget];
  if (name == "set_jaccard") return sets.jaccard[budget];
  if (name == "set_mass_ratio") return sets.mass_ratio[budget];
  if (name == "free_consistency") return sets.free_consistency[budget];
  if (name == "free_consistency_corrected") return sets.free_corrected[budget];
  if (name == "window_consistency") return sets.window_consistency[budget];
  if (name == "evidence_recall") return sets.evidence[budget];
  if (name == "score_truth") return state.score_truth.empty() ? std::numeric_limits<double>::quiet_NaN() : state.score_truth[kv];
  if (name == "resident_bytes") return bytes;
  if (name == "resident_union_bytes") return union_bytes;
  throw InternalError("metric without a value: " + name);
}

void UnitReplay::emit_layer_row(CellDistributions& cell, std::span<const double> squares, double resident, UnitResult& result) {
  LayerRow row{cell.variant, cell.budget, resident, {}};
  Distribution& distribution = cell.metrics[row_metrics_.size()];
  for (std::size_t t = 0; t < g_.decode; ++t) {
    double norm = 0;
    for (std::size_t m = 0; m < hidden(); ++m)
      norm += static_cast<double>(exact_projection_(m, t)) * static_cast<double>(exact_projection_(m, t));
    distribution.add(norm > 0 ? std::sqrt(squares[t] / norm) : std::sqrt(squares[t]));
  }
  distribution.finish();
  row.values.push_back(distribution.sum / static_cast<double>(distribution.count));
  result.layer_rows.push_back(std::move(row));
}

void UnitReplay::emit_effect(VariantState& state, const CellDistributions& cell, UnitResult& result) {
  LayerEffect effect = start_effect(g_, cell.variant, cell.budget, responds() ? state.response.take(cell.budget) : std::vector<double>());
  if (measures_relative()) set_norms(effect, state.sketched.squared_norms(cell.budget), layer_.residual_norm);
  result.effects.push_back(std::move(effect));
}

void UnitReplay::emit_cell(std::size_t v, std::size_t budget, UnitResult& result) {
  VariantState& state = states_[v];
  CellDistributions cell{static_cast<std::uint32_t>(v), static_cast<std::uint32_t>(budget), {}};
  cell.metrics.resize(row_metrics_.size() + layer_metrics_.size());
  double layer_resident = 0;
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
    ResultRow row;
    row.kv_head = static_cast<std::uint32_t>(kv);
    row.variant = cell.variant;
    row.budget = cell.budget;
    const HeadMeasure& measure = state.measures[kv];
    row.resident_tokens = measure.mean_readable(budget);
    layer_resident += row.resident_tokens / static_cast<double>(g_.kv_heads);
    const double whole_prompt = g_.sliding_window == 0 ? static_cast<double>(g_.prompt)
                                                       : std::min(static_cast<double>(g_.prompt), static_cast<double>(g_.sliding_window));
    row.peak_tokens = std::max(whole_prompt, measure.most_readable(budget));
    const std::size_t units = state.selection.unit() == Unit::query ? g_.group : 1;
    const Selection::Place place = state.selection.at(budget);
    for (std::size_t h = 0; h < units; ++h) {
      const UnitSelection& unit = place.part.of(kv, h, g_.group);
      row.evicted += static_cast<double>(g_.prompt - unit.counts[place.budget]) / static_cast<double>(units);
      row.clamped |= unit.counts[place.budget] < std::min(unit.protected_count, g_.prompt);
      row.near_ties += unit.near_ties[place.budget];
    }
    const auto [bytes, union_bytes] = resident_bytes(state, kv, budget);
    for (std::size_t m = 0; m < row_metrics_.size(); ++m) {
      row.values.push_back(row_value(state, kv, m, budget, bytes, union_bytes));
      const std::optional<StepMetric> per_step = step_metric(row_metrics_[m]);
      if (!per_step) {
        Distribution one;
        one.add(row.values.back());
        one.finish();
        cell.metrics[m].merge(one);
      } else if (measure.keeps_steps() && measure.distribution(*per_step, budget).count > 0) {
        const std::span<const float> steps = measure.steps(*per_step, budget);
        result.detail.push_back({row.kv_head, cell.variant, cell.budget, static_cast<std::uint32_t>(m), {steps.begin(), steps.end()}});
      }
    }
    result.rows.push_back(std::move(row));
  }
  join_heads(state.measures, row_metrics_, budget, cell);
  if (measures_layer()) emit_layer_row(cell, state.projected.squared_norms(budget), layer_resident, result);
  if (measures_relative() || responds()) emit_effect(state, cell, result);
  result.cells.push_back(std::move(cell));
}

void UnitReplay::emit(std::size_t v, UnitResult& result) {
  VariantState& state = states_[v];
  if (state.failed) {
    result.failures.push_back({static_cast<std::uint32_t>(v), state.failure});
    return;
  }
  for (HeadMeasure& measure : state.measures) measure.finish();
  for (std::size_t b = 0; b < settings_.budgets.size(); ++b) {
    emit_cell(v, b, result);
    const PolicyTraits& traits = settings_.variants[v]->policy->traits();
    if (!settings_.save_kept || traits.step_order) continue;
    result.kept.push_back(kept_set(state.selection, static_cast<std::uint32_t>(v), static_cast<std::uint32_t>(b)));
    if (traits.transforms) result.kept.back().entries = kEntryStates[1];
  }
  state = VariantState();
}

}  // namespace kvsim
