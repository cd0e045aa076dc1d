// Turns what was measured of decode-time policies into result rows.
#include "sim/stepwise/stepwise_rows.h"

#include <cmath>
#include <limits>
#include <optional>

#include "sim/projection.h"
#include "sim/sampled_response.h"
#include "sim/selection.h"

namespace kvsim {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

std::optional<StepMetric> step_metric(const std::string& name) {
  if (name == "output_error") return StepMetric::output_error;
  if (name == "attention_recall") return StepMetric::attention_recall;
  if (name == "query_consistency") return StepMetric::query_consistency;
  if (name == "miss_rate") return StepMetric::miss_rate;
  if (name == "miss_rate_50") return StepMetric::miss_rate_50;
  if (name == "miss_rate_99") return StepMetric::miss_rate_99;
  return std::nullopt;
}

/// Metrics of a cell on one KV head that are one figure; those of a fixed kept set are undefined where the set moves on.
double single_value(const std::string& name, const EmitSettings& how, const Cell& cell, std::size_t kv, double resident) {
  const LayerGeometry& g = how.layer.geometry;
  const double entry = static_cast<double>((g.key_dim + g.value_dim) * how.layer.element_bytes);
  const double copies = static_cast<double>(cell.caches_per_head());
  const double steps = static_cast<double>(g.decode);
  if (name == "resident_bytes") return resident * copies * entry;
  if (name == "resident_union_bytes") return static_cast<double>(cell.distinct[kv]) / steps * entry;
  if (name == "evidence_recall") {
    std::size_t tokens = 0;
    for (const auto& [begin, end] : how.layer.evidence) tokens += end - begin;
    return tokens == 0 ? kUndefined : static_cast<double>(cell.evidence[kv]) / (steps * copies * static_cast<double>(tokens));
  }
  return kUndefined;
}

void emit_layer_row(const EmitSettings& how, const Cell& cell, double resident, CellDistributions& cells, UnitResult& result) {
  Distribution distribution;
  for (std::size_t t = 0; t < how.exact_squares.size(); ++t) {
    const double norm = how.exact_squares[t], error = cell.projected_squares[t];
    distribution.add(norm > 0 ? std::sqrt(error / norm) : std::sqrt(error));
  }
  distribution.finish();
  LayerRow row{cells.variant, cells.budget, resident, {}};
  for (const std::string& name : metrics_of_level(how.settings.metrics, MetricInfo::Level::layer))
    row.values.push_back(name == "projected_error" ? distribution.sum / static_cast<double>(distribution.count) : kUndefined);
  result.layer_rows.push_back(std::move(row));
  const std::size_t rows = metrics_of_level(how.settings.metrics, MetricInfo::Level::row).size();
  const std::vector<std::string> names = metrics_of_level(how.settings.metrics, MetricInfo::Level::layer);
  for (std::size_t m = 0; m < names.size(); ++m)
    if (names[m] == "projected_error") cells.metrics[rows + m] = std::move(distribution);
}

ResultRow make_row(const Cell& cell, const HeadMeasure& measure, std::size_t kv, std::size_t budget) {
  ResultRow row;
  row.kv_head = static_cast<std::uint32_t>(kv);
  row.resident_tokens = measure.mean_readable(budget);
  const std::size_t caches = cell.caches_per_head();
  for (std::size_t i = kv * caches; i < (kv + 1) * caches; ++i) {
    const HeldCache& cache = cell.caches()[i];
    row.peak_tokens = std::max(row.peak_tokens, static_cast<double>(cache.peak()));
    row.evicted += static_cast<double>(cache.evicted()) / static_cast<double>(caches);
    row.clamped |= cache.clamped;
    row.near_ties += cache.near_ties;
  }
  return row;
}

void emit_cell(const EmitSettings& how, const Cell& cell, std::size_t variant, std::size_t budget, std::span<const HeadMeasure> measures,
               UnitResult& result) {
  const std::vector<std::string> names = metrics_of_level(how.settings.metrics, MetricInfo::Level::row);
  CellDistributions cells{static_cast<std::uint32_t>(variant), static_cast<std::uint32_t>(budget), {}};
  cells.metrics.resize(names.size() + metrics_of_level(how.settings.metrics, MetricInfo::Level::layer).size());
  double resident = 0;
  for (std::size_t kv = 0; kv < measures.size(); ++kv) {
    const HeadMeasure& measure = measures[kv];
    ResultRow row = make_row(cell, measure, kv, budget);
    row.variant = cells.variant;
    row.budget = cells.budget;
    resident += row.resident_tokens / static_cast<double>(measures.size());
    for (std::size_t m = 0; m < names.size(); ++m) {
      const std::optional<StepMetric> per_step = step_metric(names[m]);
      row.values.push_back(per_step ? measure.mean(*per_step, budget) : single_value(names[m], how, cell, kv, row.resident_tokens));
      if (!per_step) {
        Distribution one;
        one.add(row.values.back());
        one.finish();
        cells.metrics[m].merge(one);
        continue;
      }
      cells.metrics[m].merge(measure.distribution(*per_step, budget));
      if (!measure.keeps_steps()) continue;
      const std::span<const float> steps = measure.steps(*per_step, budget);
      result.detail.push_back({row.kv_head, cells.variant, cells.budget, static_cast<std::uint32_t>(m), {steps.begin(), steps.end()}});
    }
    result.rows.push_back(std::move(row));
  }
  if (!how.exact_squares.empty()) emit_layer_row(how, cell, resident, cells, result);
  if (how.relative || !cell.response.empty()) {
    const LayerGeometry& g = how.layer.geometry;
    LayerEffect effect = start_effect(g, cells.variant, cells.budget, cell.response);
    if (how.relative) set_norms(effect, cell.sketched_squares, how.layer.residual_norm);
    result.effects.push_back(std::move(effect));
  }
  result.cells.push_back(std::move(cells));
}

/// What the first step could read of the prompt, and when every token left.
KeptSet step_kept_set(const Cell& cell, const StepwisePolicy& policy, std::size_t prompt, std::uint32_t variant, std::uint32_t budget) {
  KeptSet set;
  if (policy.shifts_positions()) set.entries = kEntryStates[2];
  set.variant = variant;
  set.budget = budget;
  set.unit = unit_name(policy.unit());
  set.offsets.push_back(0);
  for (const HeldCache& cache : cell.caches()) {
    const std::span<const std::uint32_t> gone = cache.evicted_at();
    if (cache.has_own_values()) set.entries = kEntryStates[1];
    for (std::uint32_t p = 0; p < prompt; ++p)
      if (gone[p] != kEvictedInPrompt) set.indices.push_back(p);
    set.offsets.push_back(set.indices.size());
    set.evicted_at.insert(set.evicted_at.end(), gone.begin(), gone.end());
  }
  return set;
}

}  // namespace

void add_rows(const CellRows& rows, StepRange steps, std::size_t group, std::size_t budget, HeadMeasure& measure) {
  std::vector<std::uint32_t> row, step;
  for (std::size_t block = 0; block < steps.count; block += kStepBlock)
    for (std::size_t h = 0; h < group; ++h)
      for (std::size_t t = block; t < std::min(steps.count, block + kStepBlock); ++t) {
        row.push_back(static_cast<std::uint32_t>(h * steps.count + t));
        step.push_back(static_cast<std::uint32_t>(steps.first + t));
      }
  std::vector<float> ordered(row.size());
  for (std::size_t m = 0; m < kStepMetrics; ++m) {
    for (std::size_t i = 0; i < row.size(); ++i) ordered[i] = rows.values[m][row[i]];
    measure.add(static_cast<StepMetric>(m), budget, ordered, step);
  }
  measure.add_readable(budget, rows.readable, rows.most_readable);
}

void emit_variant(const EmitSettings& how, std::size_t number, StepwiseVariant& variant, std::vector<HeadMeasure>& measures, UnitResult& result) {
  for (HeadMeasure& measure : measures) measure.finish();
  for (std::size_t b = 0; b < how.settings.budgets.size(); ++b) {
    emit_cell(how, variant.cells[b], number, b, measures, result);
    if (how.settings.save_kept && variant.policy->removal() == Removal::drop)
      result.kept.push_back(step_kept_set(variant.cells[b], *variant.policy, how.layer.geometry.prompt, static_cast<std::uint32_t>(number),
                                     static_cast<std::uint32_t>(b)));
  }
  variant.cells.clear();
}

}  // namespace kvsim
