// Replays one unit, a layer of a trace: scores every head, selects, and has it measured.
#include "sim/unit.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>
#include <limits>

#include "policies/recipe.h"
#include "sim/unit_replay.h"

namespace kvsim {
void UnitReplay::fail(std::size_t v, const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const UserError& error) {
    if (settings_.fail_fast) throw UserError("{}: {}", settings_.variants[v]->entry.spec, error.what());
    if (states_[v].failed) return;  // the first reason is the one that is told
    states_[v] = VariantState();
    states_[v].failed = true;
    states_[v].failure = error.what();
  }
}

void UnitReplay::load(std::size_t kv) {
  heads_[kv].block = source_.next();
  KVSIM_CHECK(heads_[kv].block.kv_head == kv, "head {} came as {}", kv, heads_[kv].block.kv_head);
  if (!heads_[kv].block.output_proj.empty()) heads_hidden_ = heads_[kv].block.output_proj.cols();
  if (measures_relative()) heads_[kv].sketch = sketch_of(heads_[kv].block.output_proj.view());
  samples_ = needs_responses(settings_.metrics) ? heads_[kv].block.sensitivity.rows() / g_.value_dim : 0;
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
  std::vector<std::vector<double>> removal(judges_scores() ? g_.group : 0,
                                           std::vector<double>(g_.prompt, 0.0));
  for (const StepRange& range : chunks()) {
    heads_[kv].attending.reset();  // its place on the device is for these steps
    auto exact = std::make_unique<ExactSteps>(heads_[kv].block, layer_, range, settings_.memory.hold,
                                              settings_.device);
    for (std::size_t h = 0; h < g_.group; ++h) exact->add_prompt_sums(h, sums[h]);
    for (std::size_t h = 0; h < removal.size(); ++h)
      add_removal_squares(*exact, heads_[kv].block, h, removal[h]);
    if (settings_.memory.hold) {
      heads_[kv].exact = std::move(exact);
    } else if (exact->on_device() != nullptr) {
      heads_[kv].attending = std::move(exact);
    }
  }
  for (std::size_t h = 0; h < g_.group; ++h) {
    std::vector<float> mean(g_.prompt);
    for (std::size_t i = 0; i < g_.prompt; ++i)
      mean[i] = static_cast<float>(sums[h][i] / static_cast<double>(g_.decode));
    oracle.of_query_head.emplace_back(mean);
    oracle.decode_mean.push_back(std::move(mean));
  }
  if (!removal.empty()) oracle.removal_costs.emplace(removal, has_query_units_);
}

void UnitReplay::make_features(std::size_t kv) {
  HeadState& head = heads_[kv];
  if (settings_.device != nullptr && !head.exact && !head.attending)
    head.attending = std::make_unique<ExactSteps>(
        head.block, layer_, StepRange{0, std::min(kStepBlock, g_.decode)}, false, settings_.device);
  const ExactSteps* const device = settings_.device == nullptr ? nullptr
                                   : head.exact                ? head.exact.get()
                                                               : head.attending.get();
  head.features = std::make_unique<BlockFeatures>(head.block, layer_, oracles_[kv].decode_mean,
                                                  windows_.empty() ? 0 : *windows_.rbegin(), budget_tokens_,
                                                  head.exact.get(), device);
  if (device != nullptr)
    head.features->prepare_windows(std::vector<std::uint32_t>(windows_.begin(), windows_.end()));
  head.hindsight = std::make_unique<HindsightFeatures>(*head.features);
}

void UnitReplay::rank_oracle(std::size_t kv) {
  // The very numbers that oracle_static ranks by, so that near ties fall alike.
  if (!oracles_[kv].of_kv_head) oracles_[kv].of_kv_head.emplace(decode_reference(*heads_[kv].features));
}

void UnitReplay::score_heads(std::size_t first_kv, std::size_t last_kv, std::size_t first, std::size_t last,
                             bool hindsight) {
  const auto units_of = [&](const Policy& policy) {
    return policy.unit() == Unit::query ? g_.group : std::size_t{1};
  };
  for (std::size_t v = first; v < last; ++v) {
    const Policy& policy = *settings_.variants[v]->policy;
    for (LayerScores* scores : {&states_[v].scores, &states_[v].hindsight_scores}) {
      scores->unit = policy.unit();
      scores->units.resize(g_.kv_heads * units_of(policy));
    }
  }
  // All heads at once: policies differ much in what they cost, so the heads of one keep the threads busy
  // while another is long.
  const std::size_t variants = last - first;
  const std::vector<std::exception_ptr> errors =
      run_on_all_threads(variants * (last_kv - first_kv), [&](std::size_t i) {
        const std::size_t kv = first_kv + i / variants;
        VariantState& state = states_[first + i % variants];
        if (state.failed) return;
        const Policy& policy = *settings_.variants[first + i % variants]->policy;
        const std::size_t units = units_of(policy);
        policy.score(*heads_[kv].features, std::span(state.scores.units).subspan(kv * units, units));
        if (hindsight && has_hindsight(policy))
          policy.score(*heads_[kv].hindsight,
                       std::span(state.hindsight_scores.units).subspan(kv * units, units));
      });
  for (std::size_t i = 0; i < errors.size(); ++i)
    if (errors[i]) fail(first + i % variants, errors[i]);
}

void UnitReplay::release_features(std::size_t kv, std::size_t first, std::size_t last) {
  heads_[kv].hindsight.reset();
  if (!settings_.memory.hold || !transforms(first, last)) heads_[kv].features.reset();
}

std::vector<std::vector<float>> UnitReplay::own_summary(const Policy& policy,
                                                        const LayerScores& scores) const {
  KVSIM_CHECK(g_.recorded_layers.size() == 1, "{} was not given the summaries of {} layers",
              policy.traits().name, g_.recorded_layers.size());
  return {policy.summarise(g_, rank_layer(policy, g_, scores))};
}

void UnitReplay::select(std::size_t first, std::size_t last) {
  for_variants(first, last, [&](std::size_t v) {
    const Policy& policy = *settings_.variants[v]->policy;
    VariantState& state = states_[v];
    SelectionInput input{std::move(state.scores), std::move(state.hindsight_scores), {}};
    policy.join(g_, input.scores);
    if (has_hindsight(policy)) {
      policy.join(g_, input.hindsight);
    } else {
      input.hindsight.units.clear();
    }
    std::vector<std::vector<float>> own;
    if (policy.traits().model_wide) {
      if (settings_.summaries.empty()) own = own_summary(policy, input.scores);
      input.summaries = settings_.summaries.empty() ? own : settings_.summaries[v]->layers;
    }
    state.selection = select_layer(policy, g_, std::move(input), settings_.budgets);
    if (judges_scores() && !policy.traits().step_order)
      for (std::size_t kv = 0; kv < g_.kv_heads; ++kv)
        state.score_truth.push_back(score_truth(state.selection.ranking, kv, *oracles_[kv].removal_costs));
    state.selection.ranking = LayerRanking();
    state.scores = LayerScores();
    state.hindsight_scores = LayerScores();
    state.measures.resize(g_.kv_heads);
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
      state.measures[kv] = HeadMeasure(settings_.budgets.size(), g_.group, g_.decode, settings_.detail);
      const HeadOracle& oracle = oracles_[kv];
      state.sets.push_back(policy.traits().step_order
                               ? SetMetrics(settings_.budgets.size())
                               : measure_sets(layer_, kv, state.selection, settings_.budgets.size(),
                                              oracle.of_query_head, *oracle.of_kv_head));
    }
    if (measures_layer()) state.projected = ProjectedError(settings_.budgets.size(), hidden(), g_.decode);
    if (measures_relative())
      state.sketched = ProjectedError(settings_.budgets.size(), std::min(hidden(), kSketch), g_.decode);
    if (responds()) state.response = SampledResponse(settings_.budgets.size(), samples_, g_.decode);
  });
}

void UnitReplay::emit_all(std::size_t first, std::size_t last, UnitResult& result) {
  std::vector<UnitResult> parts(last - first);
  for (const std::exception_ptr& error :
       run_on_all_threads(parts.size(), [&](std::size_t i) { emit(first + i, parts[i]); }))
    if (error) std::rethrow_exception(error);
  const auto append = [](auto& to, auto& from) {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  };
  for (UnitResult& part : parts) {
    append(result.rows, part.rows);
    append(result.layer_rows, part.layer_rows);
    append(result.cells, part.cells);
    append(result.effects, part.effects);
    append(result.failures, part.failures);
    append(result.kept, part.kept);
    append(result.detail, part.detail);
  }
}

UnitResult UnitReplay::run() {
  using Clock = std::chrono::steady_clock;
  UnitResult result;
  result.layer = g_.layer;
  double scoring = 0, measuring = 0;
  const auto seconds = [](Clock::time_point from) {
    return std::chrono::duration<double>(Clock::now() - from).count();
  };
  for (std::size_t v = 0; v < settings_.summaries.size(); ++v) {
    if (settings_.summaries[v] == nullptr || settings_.summaries[v]->failure.empty()) continue;
    states_[v].failed = true;
    states_[v].failure = settings_.summaries[v]->failure;
  }
  const std::size_t batch =
      settings_.memory.hold ? std::max<std::size_t>(states_.size(), 1) : settings_.memory.variant_batch;
  for (std::size_t first = 0; first < states_.size(); first += batch) {
    const std::size_t last = std::min(states_.size(), first + batch);
    Clock::time_point start = Clock::now();
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
      load(kv);
      compute_oracle(kv);
      make_features(kv);
      rank_oracle(kv);
      if (settings_.memory.hold) continue;
      score_heads(kv, kv + 1, first, last, true);
      release(kv);
    }
    if (settings_.memory.hold) score_heads(0, g_.kv_heads, first, last, true);
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) release_features(kv, first, last);
    select(first, last);
    scoring += seconds(start);
    start = Clock::now();
    if (settings_.memory.hold) {
      measure_held(first, last);
    } else {
      measure_streamed(first, last);
    }
    emit_all(first, last, result);
    measuring += seconds(start);
  }
  std::stable_sort(result.rows.begin(), result.rows.end(),
                   [](const ResultRow& a, const ResultRow& b) { return a.kv_head < b.kv_head; });
  result.perf = {{"scoring_s", scoring}, {"measuring_s", measuring}};
  return result;
}

void UnitReplay::summarise(std::span<ModelSummaries> summaries) {
  const bool future =
      std::any_of(settings_.variants.begin(), settings_.variants.end(),
                  [](const Variant* variant) { return has(variant->policy->needs(), Need::decode_queries); });
  for (std::size_t v = 0; v < states_.size(); ++v) states_[v].failed = !summaries[v].failure.empty();
  for (std::size_t first = 0; first < states_.size(); first += settings_.memory.variant_batch) {
    const std::size_t last = std::min(states_.size(), first + settings_.memory.variant_batch);
    for (std::size_t kv = 0; kv < g_.kv_heads; ++kv) {
      load(kv);
      if (future) compute_oracle(kv);
      make_features(kv);
      score_heads(kv, kv + 1, first, last, false);
      release(kv);
    }
    for_variants(first, last, [&](std::size_t v) {
      const Policy& policy = *settings_.variants[v]->policy;
      LayerScores scores = std::move(states_[v].scores);
      policy.join(g_, scores);
      summaries[v].layers.push_back(policy.summarise(g_, rank_layer(policy, g_, std::move(scores))));
    });
    for (std::size_t v = first; v < last; ++v)
      if (states_[v].failed && summaries[v].failure.empty()) summaries[v].failure = states_[v].failure;
    for (std::size_t v = first; v < last; ++v) states_[v] = VariantState();
  }
}

void add_summaries(const LayerContext& layer, const UnitSettings& settings, BlockSource& source,
                   std::span<ModelSummaries> summaries) {
  UnitReplay(layer, settings, source).summarise(summaries);
}

UnitResult replay_unit(const LayerContext& layer, const UnitSettings& settings, BlockSource& source) {
  return UnitReplay(layer, settings, source).run();
}

}  // namespace kvsim
