// Measures one variant on one KV head: every budget in one pass over the values.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/exact_steps.h"
#include "sim/head_measure.h"
#include "sim/selection.h"
#include "sim/set_metrics.h"

namespace kvsim {

/// Error vectors o' - o of one KV head for one variant, to be projected: [budget][value_dim][row stride].
struct HeadDelta {
  std::vector<float> data;
  std::size_t stride = 0;          // of rows
  std::size_t budget_stride = 0;

  /// [value_dim, row stride] of one budget.
  MatrixView<const float> of(std::size_t budget, std::size_t value_dim) const {
    return {data.data() + budget * budget_stride, value_dim, stride, stride};
  }
};

/// Everything that is fixed for a head while variants are measured on it.
struct HeadView {
  const HeadBlock& block;
  const LayerContext& layer;
  const ExactSteps& exact;
};

/// A policy that changes what it keeps, and the head whose entries it changes.
struct EntryTransform {
  const Policy& policy;
  const HeadFeatures& features;
};

/// What a device found for a selection on a head: the rankings from `first` on are its units, one after the other.
struct DeviceRows {
  const CurveResults* results = nullptr;
  std::size_t first = 0;
};

/// Measures the steps of `head.exact` at the budgets of the selection. `delta` may be null; its budgets are the selection's.
/// `device` holds what its kernels found where the steps are on one, else null.
/// With `transform` output errors are those over the changed entries, budget by budget; everything that goes by positions
/// (recall, consistency, misses) is that of the kept tokens.
void measure_steps(const HeadView& head, const LayerSelection& selection, bool step_order, HeadMeasure& measure,
                   HeadDelta* delta, const EntryTransform* transform = nullptr, const DeviceRows* device = nullptr);

/// Set metrics of the KV head at all budgets: mean over the units that it has.
SetMetrics measure_sets(const LayerContext& layer, std::size_t kv_head, const Selection& selection, std::size_t budgets,
                        std::span<const OracleOrder> oracle_of_query_head, const OracleOrder& oracle_of_kv_head);

}  // namespace kvsim
