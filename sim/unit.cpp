// Replays one unit, a layer of a trace.
#include "sim/unit.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <limits>
#include <optional>

#include "kernels/error.h"
#include "policies/recipe.h"
#include "sim/evaluate.h"
#include "sim/features.h"
#include "sim/projection.h"

namespace kvsim {
namespace {

using Clock = std::chrono::steady_clock;

/// One KV head while it is in memory.
struct HeadState {
  HeadBlock block;
  std::unique_ptr<ExactSteps> exact;       // all steps, when the layer is held
  std::unique_ptr<BlockFeatures> features;
};

/// What is known of a head for the whole unit.
struct HeadOracle {
  std::vector<std::vector<float>> decode_mean;  // [group][T]
  std::vector<OracleOrder> of_query_head;
  std::optional<OracleOrder> of_kv_head;
};

/// What is collected of one variant.
struct VariantState {
  bool failed = false;
  std::string failure;
  LayerScores scores, hindsight_scores;
  LayerSelection selection;
  std::vector<HeadMeasure> measures;   // [kv_heads]
  std::vector<SetMetrics> sets;        // [kv_heads]
  ProjectedError projected;
};

class UnitReplay {
 public:
  UnitReplay(const LayerContext& layer, const UnitSettings& settings, BlockSource& source)
      : layer_(layer), g_(layer.geometry), settings_(settings), source_(source),
        row_metrics_(metrics_of_level(settings.metrics, MetricInfo::Level::row)),
        layer_metrics_(metrics_of_level(settings.metrics, MetricInfo::Level::layer)), heads_(g_.kv_heads),
        oracles_(g_.kv_heads), states_(settings.variants.size()) {
    for (const Variant* variant : settings.variants) {
      if (has(variant->policy->needs(), Need::window_queries)) most_window_ = std::max(most_window_, variant->policy->window());
    }
    for (const BudgetPoint& budget : settings.budgets) budget_tokens_.push_back(budget.tokens);
  }

  UnitResult run();

 private:
  std::size_t hidden() const { return heads_hidden_; }
  bool projects() const { return !layer_metrics_.empty() && heads_hidden_ > 0; }
  void load(std::size_t kv);
  void release(std::size_t kv) { heads_[kv] = HeadState(); }
  std::vector<StepRange> chunks() const;
  void compute_oracle(std::size_t kv);
  void make_features(std::size_t kv);
  void score_head(std::size_t kv, std::size_t first, std::size_t last);
  void select(std::size_t first, std::size_t last);
  void measure_held(std::size_t first, std::size_t last);
  void measure_streamed(std::size_t first, std::size_t last);
  void measure_variant(std::size_t v, std::size_t kv, const ExactSteps& exact);
  void add_exact_projection(std::size_t kv, const ExactSteps& exact);
  void emit(std::size_t v, UnitResult& result);
  void emit_cell(std::size_t v, std::size_t budget, UnitResult& result);
  double row_value(const VariantState& state, std::size_t kv, std::size_t metric, std::size_t budget, double bytes, double union_bytes) const;
  std::pair<double, double> resident_bytes(const VariantState& state, std::size_t kv, std::size_t budget) const;
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
  std::uint32_t most_window_ = 0;
  std::vector<std::uint32_t> budget_tokens_;
  std::size_t heads_hidden_ = 0;
  Matrix<float> exact_projection_;  // [hidden, steps]
};

/// Runs task(0 .. count-1) on all threads; exceptions may not leave a parallel region, so they are handed back.
template <typename Task>
std::vector<std::exception_ptr> run_tasks(std::size_t count, const Task& task) {
  std::vector<std::exception_ptr> errors(count);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(count); ++i) {
    try {
      task(static_cast<std::size_t>(i));
    } catch (...) {
      errors[static_cast<std::size_t>(i)] = std::current_exception();
    }
  }
  return errors;
}

/// Runs task(variant) for all that have not failed; a UserError makes a variant fail.
template <typename Task>
void UnitReplay::for_variants(std::size_t first, std::size_t last, const Task& task) {
  const std::vector<std::exception_ptr> errors = run_tasks(last - first, [&](std::size_t i) {
    if (!states_[first + i].failed) task(first + i);
  });
  for (std::size_t v = first; v < last; ++v) {
    if (!errors[v - first]) continue;
    try {
      std::rethrow_exception(errors[v - first]);
    } catch (const UserError& error) {
      if (settings_.fail_fast) throw UserError("{}: {}", settings_.variants[v]->entry.spec, error.what());
      states_[v] = VariantState();
      states_[v].failed = true;
      states_[v].failure = error.what();
    }
  }
}

void UnitReplay::load(std::size_t kv) {
  heads_[kv].block = source_.next();
  KVSIM_CHECK(heads_[kv].block.kv_head == kv, "head {} came as {}", kv, heads_[kv].block.kv_head);
  if (!heads_[kv].block.output_proj.empty()) heads_hidden_ = heads_[kv].block.output_proj.cols();
}

std::vector<StepRange> UnitReplay::chunks() const {
  std::vector<StepRange> ranges;
  for (std::size_t first = 0; first < g_.decode; first += settings_.memory.step_chunk)
    ranges.push_back({first, std::min(settings_.memory.step_chunk, g_.decode - first)});
  return ranges;
}

void UnitReplay::compute_oracle(std::size_t kv) {
  HeadOracle& oracle = oracles_[kv];
  if (!oracle.decode_mean.empty()) return;  // known from an earlier batch
  std::vector<std::vector<double>> sums(g_.group, std::vector<double>(g_.prompt, 0.0));
  for (const StepRange& range : chunks()) {
    auto exact = std::make_unique<ExactSteps>(heads_[kv].block, layer_, range, settings_.memory.hold);
    for (std::size_t h = 0; h < g_.group; ++h) exact->add_prompt_sums(h, sums[h]);
    if (settings_.memory.hold) heads_[kv].exact = std::move(exact);
  }
  for (std::size_t h = 0; h < g_.group; ++h) {
    std::vector<float> mean(g_.prompt);
    for (std::size_t i = 0; i < g_.prompt; ++i) mean[i] = static_cast<float>(sums[h][i] / static_cast<double>(g_.decode));
    oracle.of_query_head.emplace_back(mean);
    oracle.decode_mean.push_back(std::move(mean));
  }
}

void UnitReplay::make_features(std::size_t kv) {
  HeadState& head = heads_[kv];
  head.features = std::make_unique<BlockFeatures>(head.block, layer_, oracles_[kv].decode_mean, most_window_, budget_tokens_);
  // The very numbers that oracle_static ranks by, so that near ties fall alike.
  if (!oracles_[kv].of_kv_head) oracles_[kv].of_kv_head.emplace(decode_reference(*head.features));
}

void UnitReplay::score_head(std::size_t kv, std::size_t first, std::size_t last) {
  const BlockFeatures& features = *heads_[kv].features;
  for_variants(first, last, [&](std::size_t v) {
    const Policy& policy = *settings_.variants[v]->policy;
    const std::size_t units = policy.unit() == Unit::query ? g_.group : 1;
    VariantState& state = states_[v];
    for (LayerScores* scores : {&state.scores, &state.hindsight_scores}) {
      scores->unit = policy.unit();
      scores->units.resize(g_.kv_heads * units);
    }
    policy.score(features, std::span(state.scores.units).subspan(kv * units, units));
    if (policy.traits().windowed && policy.window() > 0)
      policy.score(HindsightFeatures(features), std::span(state.hindsight_scores.units).subspan(kv * units, units));
  });
}

void UnitReplay::select(std::size_t first, std::size_t last) {
  for_variants(first, last, [&](std::size_t v) {
    const Policy& policy = *settings_.variants[v]->policy;
    VariantState& state = states_[v];
    policy.join(g_, state.scores);
    state.selection = select_layer(policy, g_, std::move(state.scores), settings_.budgets);
    if (policy.traits().windowed && policy.window() > 0) {
      policy.join(g_, state.hindsight_scores);
      state.selection.hindsight = rank_layer(policy, g_, std::move(state.hindsight_scores)).order;
    }
    state.scores = LayerScores();
    state.hindsight_scores = LayerScores();
    state.measures.resize(g_.kv_heads);
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
      state.measures[kv] = HeadMeasure(settings_.budgets.size(), g_.group, g_.decode, settings_.detail);
      const HeadOracle& oracle = oracles_[kv];
      state.sets.push_back(policy.traits().step_order
                               ? SetMetrics(settings_.budgets.size())
                               : measure_sets(layer_, kv, state.selection, oracle.of_query_head, *oracle.of_kv_head));
    }
    if (projects()) state.projected = ProjectedError(settings_.budgets.size(), hidden(), g_.decode);
  });
}

void UnitReplay::measure_variant(std::size_t v, std::size_t kv, const ExactSteps& exact) {
  VariantState& state = states_[v];
  HeadDelta delta;
  const HeadView view{heads_[kv].block, layer_, exact};
  measure_steps(view, state.selection, settings_.variants[v]->policy->traits().step_order, state.measures[kv],
                projects() ? &delta : nullptr);
  if (projects())
    state.projected.add(delta, heads_[kv].block.output_proj.view(), g_.group, g_.value_dim, exact.steps());
}

void UnitReplay::add_exact_projection(std::size_t kv, const ExactSteps& exact) {
  if (exact_projection_.empty()) exact_projection_ = Matrix<float>(hidden(), g_.decode, kRowPad);
  const MatrixView<const float> output = exact.curve_input(heads_[kv].block).exact;
  HeadDelta as_delta;
  as_delta.stride = output.stride;
  as_delta.budget_stride = output.stride * g_.value_dim;
  as_delta.data.assign(output.data, output.data + as_delta.budget_stride);
  ProjectedError one(1, hidden(), g_.decode);
  one.add(as_delta, heads_[kv].block.output_proj.view(), g_.group, g_.value_dim, exact.steps());
  one.add_to(exact_projection_);
}

void UnitReplay::measure_held(std::size_t first, std::size_t last) {
  if (projects())
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) add_exact_projection(kv, *heads_[kv].exact);
  if (projects()) {  // the projection joins the heads of a variant, so a variant is one task
    for_variants(first, last, [&](std::size_t v) {
      for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) measure_variant(v, kv, *heads_[kv].exact);
    });
    return;
  }
  const std::vector<std::exception_ptr> errors = run_tasks((last - first) * g_.kv_heads, [&](std::size_t i) {
    const std::size_t v = first + i / g_.kv_heads;
    const std::size_t kv = i % g_.kv_heads;
    if (!states_[v].failed) measure_variant(v, kv, *heads_[kv].exact);
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

void UnitReplay::measure_streamed(std::size_t first, std::size_t last) {
  for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
    load(kv);
    for (const StepRange& range : chunks()) {
      const ExactSteps exact(heads_[kv].block, layer_, range, true);
      if (projects() && first == 0) add_exact_projection(kv, exact);
      for_variants(first, last, [&](std::size_t v) { measure_variant(v, kv, exact); });
    }
    release(kv);
  }
}

std::pair<double, double> UnitReplay::resident_bytes(const VariantState& state, std::size_t kv, std::size_t budget) const {
  const double entry = static_cast<double>((g_.key_dim + g_.value_dim) * layer_.element_bytes);
  const double resident = state.measures[kv].mean_readable(budget);
  if (state.selection.unit != Unit::query) return {resident * entry, resident * entry};
  // Every query head has a copy of its own; the union counts what several of them keep once.
  std::vector<bool> kept(g_.prompt, false);
  double copies = 0, distinct = 0;
  for (std::size_t h = 0; h < g_.group; ++h) {
    const UnitSelection& unit = state.selection.of(kv, h, g_.group);
    for (std::uint32_t i = 0; i < unit.counts[budget]; ++i) {
      distinct += kept[unit.order[i]] ? 0.0 : 1.0;
      kept[unit.order[i]] = true;
    }
    copies += unit.counts[budget];
  }
  const auto group = static_cast<double>(g_.group);
  const double decoded = resident - copies / group;  // tokens of the decode that a step reads on average
  return {resident * group * entry, (distinct + decoded) * entry};
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
  if (name == "set_consistency") return sets.consistency[budget];
  if (name == "set_jaccard") return sets.jaccard[budget];
  if (name == "set_mass_ratio") return sets.mass_ratio[budget];
  if (name == "free_consistency") return sets.free_consistency[budget];
  if (name == "free_consistency_corrected") return sets.free_corrected[budget];
  if (name == "window_consistency") return sets.window_consistency[budget];
  if (name == "evidence_recall") return sets.evidence[budget];
  if (name == "resident_bytes") return bytes;
  if (name == "resident_union_bytes") return union_bytes;
  throw InternalError("metric without a value: " + name);
}

/// The step metric of that name, if it is one.
std::optional<StepMetric> step_metric(const std::string& name) {
  if (name == "output_error") return StepMetric::output_error;
  if (name == "attention_recall") return StepMetric::attention_recall;
  if (name == "query_consistency") return StepMetric::query_consistency;
  if (name == "miss_rate") return StepMetric::miss_rate;
  if (name == "miss_rate_50") return StepMetric::miss_rate_50;
  if (name == "miss_rate_99") return StepMetric::miss_rate_99;
  return std::nullopt;
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
    const std::size_t units = state.selection.unit == Unit::query ? g_.group : 1;
    for (std::size_t h = 0; h < units; ++h) {
      const UnitSelection& unit = state.selection.of(kv, h, g_.group);
      row.evicted += static_cast<double>(g_.prompt - unit.counts[budget]) / static_cast<double>(units);
      row.clamped |= unit.counts[budget] < std::min(unit.protected_count, g_.prompt);
      row.near_ties += unit.near_ties[budget];
    }
    const auto [bytes, union_bytes] = resident_bytes(state, kv, budget);
    for (std::size_t m = 0; m < row_metrics_.size(); ++m) {
      row.values.push_back(row_value(state, kv, m, budget, bytes, union_bytes));
      const std::optional<StepMetric> per_step = step_metric(row_metrics_[m]);
      if (per_step) {
        cell.metrics[m].merge(measure.distribution(*per_step, budget));
        if (measure.keeps_steps()) {
          const std::span<const float> steps = measure.steps(*per_step, budget);
          result.detail.push_back({row.kv_head, cell.variant, cell.budget, static_cast<std::uint32_t>(m), {steps.begin(), steps.end()}});
        }
      } else {
        Distribution one;
        one.add(row.values.back());
        one.finish();
        cell.metrics[m].merge(one);
      }
    }
    result.rows.push_back(std::move(row));
  }
  if (projects()) {
    LayerRow row{cell.variant, cell.budget, layer_resident, {}};
    const std::vector<double> errors = state.projected.squared_norms(budget);
    Distribution& distribution = cell.metrics[row_metrics_.size()];
    for (std::size_t t = 0; t < g_.decode; ++t) {
      double norm = 0;
      for (std::size_t m = 0; m < hidden(); ++m)
        norm += static_cast<double>(exact_projection_(m, t)) * static_cast<double>(exact_projection_(m, t));
      distribution.add(norm > 0 ? std::sqrt(errors[t] / norm) : std::sqrt(errors[t]));
    }
    distribution.finish();
    row.values.push_back(distribution.sum / static_cast<double>(distribution.count));
    result.layer_rows.push_back(std::move(row));
  }
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
    if (settings_.save_kept && !settings_.variants[v]->policy->traits().step_order)
      result.kept.push_back(kept_set(state.selection, static_cast<std::uint32_t>(v), static_cast<std::uint32_t>(b)));
  }
  state = VariantState();
}

UnitResult UnitReplay::run() {
  UnitResult result;
  result.layer = g_.layer;
  double scoring = 0, measuring = 0;
  const auto seconds = [](Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); };
  const std::size_t batch = settings_.memory.hold ? std::max<std::size_t>(states_.size(), 1) : settings_.memory.variant_batch;
  for (std::size_t first = 0; first < states_.size(); first += batch) {
    const std::size_t last = std::min(states_.size(), first + batch);
    Clock::time_point start = Clock::now();
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
      load(kv);
      compute_oracle(kv);
      make_features(kv);
      score_head(kv, first, last);
      heads_[kv].features.reset();
      if (!settings_.memory.hold) release(kv);
    }
    select(first, last);
    scoring += seconds(start);
    start = Clock::now();
    if (settings_.memory.hold) {
      measure_held(first, last);
    } else {
      measure_streamed(first, last);
    }
    for (std::size_t v = first; v < last; ++v) emit(v, result);
    measuring += seconds(start);
  }
  std::stable_sort(result.rows.begin(), result.rows.end(),
                   [](const ResultRow& a, const ResultRow& b) { return a.kv_head < b.kv_head; });
  result.perf = {{"scoring_s", scoring}, {"measuring_s", measuring}};
  return result;
}

}  // namespace

UnitResult replay_unit(const LayerContext& layer, const UnitSettings& settings, BlockSource& source) {
  return UnitReplay(layer, settings, source).run();
}

}  // namespace kvsim
