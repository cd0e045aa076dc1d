// The replay of one unit as an object: what is kept of heads and variants while it runs.
#pragma once

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/error.h"
#include "sim/evaluate.h"
#include "sim/features.h"
#include "sim/predicted_kl.h"
#include "sim/projection.h"
#include "sim/sampled_response.h"
#include "sim/score_truth.h"
#include "sim/tasks.h"
#include "sim/unit.h"

namespace kvsim {

/// One KV head while it is in memory.
struct HeadState {
  HeadBlock block;
  std::unique_ptr<ExactSteps> exact;      // all steps, when the layer is held
  std::unique_ptr<ExactSteps> attending;  // some steps on a device, for the features, where not all are held
  std::unique_ptr<BlockFeatures> features;
  Matrix<float> sketch;                          // of the output projection, see sketch_of
  std::unique_ptr<HindsightFeatures> hindsight;  // of `features`: variants share its results too
};

/// What is known of a head for the whole unit.
struct HeadOracle {
  std::vector<std::vector<float>> decode_mean;  // [group][T]
  std::vector<OracleOrder> of_query_head;
  std::optional<OracleOrder> of_kv_head;
  std::optional<RemovalCosts> removal_costs;  // where score_truth is measured
};

/// What is collected of one variant.
struct VariantState {
  bool failed = false;
  std::string failure;
  LayerScores scores, hindsight_scores;
  Selection selection;
  std::vector<HeadMeasure> measures;   // [kv_heads]
  std::vector<SetMetrics> sets;        // [kv_heads]
  std::vector<double> score_truth;     // [kv_heads] or empty
  ProjectedError projected, sketched;  // errors after the output projection, and what stands for them
  SampledResponse response;
};

/// Whether the policy can be asked what it would have kept had its window held the true decode queries.
inline bool has_hindsight(const Policy& policy) { return policy.traits().windowed; }

/// Loads heads, scores them with every variant, selects, measures and emits.
class UnitReplay {
 public:
  UnitReplay(const LayerContext& layer, const UnitSettings& settings, BlockSource& source)
      : layer_(layer),
        g_(layer.geometry),
        settings_(settings),
        source_(source),
        row_metrics_(metrics_of_level(settings.metrics, MetricInfo::Level::row)),
        layer_metrics_(metrics_of_level(settings.metrics, MetricInfo::Level::layer)),
        heads_(g_.kv_heads),
        oracles_(g_.kv_heads),
        states_(settings.variants.size()) {
    for (const Variant* variant : settings.variants) {
      if (has(variant->policy->needs(), Need::window_queries)) windows_.insert(variant->policy->window());
      has_query_units_ |= variant->policy->unit() == Unit::query;
    }
    for (const BudgetPoint& budget : settings.budgets) budget_tokens_.push_back(budget.tokens);
  }

  UnitResult run();
  /// See add_summaries.
  void summarise(std::span<ModelSummaries> summaries);

 private:
  std::size_t hidden() const { return heads_hidden_; }
  bool judges_scores() const {
    return std::find(row_metrics_.begin(), row_metrics_.end(), "score_truth") != row_metrics_.end();
  }
  bool measures_layer() const { return !layer_metrics_.empty() && heads_hidden_ > 0; }
  /// Whether errors are seen against the residual stream.
  bool measures_relative() const {
    return needs_norms(settings_.metrics) && heads_hidden_ > 0 && !layer_.residual_norm.empty();
  }
  bool responds() const { return samples_ > 0; }
  bool reads_deltas() const { return measures_layer() || measures_relative() || responds(); }
  void load(std::size_t kv);
  void release(std::size_t kv) { heads_[kv] = HeadState(); }
  std::vector<StepRange> chunks() const;
  void compute_oracle(std::size_t kv);
  void rank_oracle(std::size_t kv);
  void make_features(std::size_t kv);
  /// Scores the loaded heads [first_kv, last_kv) with variants first .. last - 1.
  void score_heads(std::size_t first_kv, std::size_t last_kv, std::size_t first, std::size_t last,
                   bool hindsight);
  /// Drops what only scoring reads.
  void release_features(std::size_t kv, std::size_t first, std::size_t last);
  std::vector<std::vector<float>> own_summary(const Policy& policy, const LayerScores& scores) const;
  void select(std::size_t first, std::size_t last);
  void measure_held(std::size_t first, std::size_t last);
  void measure_streamed(std::size_t first, std::size_t last);
  void measure_variant(std::size_t v, std::size_t kv, const ExactSteps& exact);
  /// One part of the variant's selection; `device` holds what was found where the steps are on a device, else
  /// null.
  void measure_part(std::size_t v, std::size_t kv, const ExactSteps& exact, const LayerSelection& part,
                    const DeviceRows* device);
  struct DeviceBatch;
  /// Adds up what the device found for a batch, and empties it.
  void take_batch(DeviceBatch& batch, std::size_t kv, const ExactSteps& exact, const CurveResults& results);
  /// Variants first .. last - 1 on the device that holds `exact`, as many in one call as fit.
  void measure_on_device(std::size_t first, std::size_t last, std::size_t kv, const ExactSteps& exact);
  void add_exact_projection(std::size_t kv, const ExactSteps& exact);
  void emit(std::size_t v, UnitResult& result);
  /// Variants first .. last - 1 by all threads, in the order of the variants.
  void emit_all(std::size_t first, std::size_t last, UnitResult& result);
  void emit_cell(std::size_t v, std::size_t budget, UnitResult& result);
  void emit_layer_row(CellDistributions& cell, std::span<const double> squares, double resident,
                      UnitResult& result);
  void emit_effect(VariantState& state, const CellDistributions& cell, UnitResult& result);
  double row_value(const VariantState& state, std::size_t kv, std::size_t metric, std::size_t budget,
                   double bytes, double union_bytes) const;
  std::pair<double, double> resident_bytes(const VariantState& state, std::size_t kv,
                                           std::size_t budget) const;
  /// Whether one of the variants changes what it keeps: then features stay while it is measured.
  bool transforms(std::size_t first, std::size_t last) const {
    return std::any_of(settings_.variants.begin() + static_cast<std::ptrdiff_t>(first),
                       settings_.variants.begin() + static_cast<std::ptrdiff_t>(last),
                       [](const Variant* variant) { return variant->policy->traits().transforms; });
  }
  /// A UserError makes the variant fail; everything else goes on.
  void fail(std::size_t v, const std::exception_ptr& error);
  template <typename Task>
  void for_variants(std::size_t first, std::size_t last, const Task& task);

  const LayerContext& layer_;
  const LayerGeometry& g_;
  const UnitSettings& settings_;
  BlockSource& source_;
  std::vector<std::string> row_metrics_, layer_metrics_;
  std::vector<HeadState> heads_;
  std::vector<HeadOracle> oracles_;
  std::vector<VariantState> states_;
  std::set<std::uint32_t> windows_;  // observation windows of the variants
  bool has_query_units_ = false;     // whether a variant selects for every query head
  std::vector<std::uint32_t> budget_tokens_;
  std::size_t heads_hidden_ = 0, samples_ = 0;
  Matrix<float> exact_projection_;  // [hidden, steps]
};

/// Runs task(variant) for all that have not failed; a UserError makes a variant fail.
template <typename Task>
void UnitReplay::for_variants(std::size_t first, std::size_t last, const Task& task) {
  const std::vector<std::exception_ptr> errors = run_on_all_threads(last - first, [&](std::size_t i) {
    if (!states_[first + i].failed) task(first + i);
  });
  for (std::size_t v = first; v < last; ++v) {
    if (errors[v - first]) fail(v, errors[v - first]);
  }
}

}  // namespace kvsim
