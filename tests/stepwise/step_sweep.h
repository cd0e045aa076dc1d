// Replays decode-time policies on the small synthetic layer, and computes a step by itself in double to compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "policies/stepwise/stepwise_registry.h"
#include "sim/stepwise/held_cache.h"
#include "sim/stepwise/stepwise_unit.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {

/// Texts, hidden states and gates of a shape, so that every registered policy can run.
inline StepwiseInputs make_inputs(const Shape& shape) {
  const std::size_t tokens = shape.prompt + shape.decode;
  constexpr std::size_t kHidden = 24;
  StepwiseInputs inputs;
  Philox random(5, 7);
  inputs.final_hidden = Matrix<float>(tokens, kHidden);
  inputs.hidden = Matrix<float>(tokens, kHidden);
  inputs.retention.push_back(Matrix<float>(shape.kv_heads, tokens));
  for (std::size_t i = 0; i < tokens; ++i) {
    inputs.token_text.push_back(i % 9 == 8 ? ".\n" : fmt::format(" w{}", random.next_below(12)));
    inputs.token_id.push_back(static_cast<std::int32_t>(random.next_below(1000)));
    for (std::size_t c = 0; c < kHidden; ++c) {
      inputs.final_hidden(i, c) = static_cast<float>(random.next_double() - 0.5);
      inputs.hidden(i, c) = static_cast<float>(random.next_double() - 0.5);
    }
    for (std::size_t kv = 0; kv < shape.kv_heads; ++kv) inputs.retention[0](kv, i) = static_cast<float>(-0.2 * random.next_double());
  }
  return inputs;
}

struct StepSweep {
  std::vector<Variant> variants;
  UnitSettings settings;

  StepSweep(const std::vector<std::string>& specs, const std::vector<std::uint32_t>& budgets) {
    NoFiles files;
    for (const std::string& text : specs) {
      Variant variant;
      variant.stepwise = bind_stepwise_policy(parse_specs(text).front());
      variant.stepwise->prepare(files);
      variant.entry.spec = canonical_spec(*variant.stepwise);
      variants.push_back(std::move(variant));
    }
    for (const Variant& variant : variants) settings.variants.push_back(&variant);
    for (const std::uint32_t tokens : budgets) settings.budgets.push_back({fmt::format("{}", tokens), tokens});
    for (const MetricInfo& metric : all_metrics()) settings.metrics.emplace_back(metric.name);
    settings.save_kept = true;
    settings.detail = true;
  }

  UnitResult run(const Shape& shape) {
    const LayerContext layer = make_layer(shape);
    ShapeSource source(shape);
    return replay_stepwise_unit(layer, settings, make_inputs(shape), source);
  }
  std::size_t metric(const std::string& name) const {
    const std::vector<std::string> names = metrics_of_level(settings.metrics, MetricInfo::Level::row);
    return static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin());
  }
};

/// One decode step of one query head by the definitions, in double.
struct PlainStep {
  double error = 0, recall = 0, consistency = 0, miss = 0;  // miss: c = 0.9
};

inline std::vector<double> plain_weights(const HeadBlock& block, const LayerContext& layer, std::size_t row, const std::vector<TokenIndex>& held) {
  std::vector<double> w;
  double largest = -INFINITY, sum = 0;
  for (const TokenIndex p : held) {
    double dot = 0;
    for (std::size_t c = 0; c < block.key.cols(); ++c) dot += static_cast<double>(block.query(row, c)) * static_cast<double>(block.key(p, c));
    dot *= layer.rule.scale;
    if (layer.rule.softcap > 0) dot = layer.rule.softcap * std::tanh(dot / layer.rule.softcap);
    w.push_back(dot);
    largest = std::max(largest, dot);
  }
  for (double& x : w) sum += x = std::exp(x - largest);
  for (double& x : w) x /= sum;
  return w;
}

/// `held`: ascending, the step's own token last. All queries are recorded in `block`.
inline PlainStep plain_step(const HeadBlock& block, const LayerContext& layer, std::size_t h, std::size_t step, const std::vector<TokenIndex>& held) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t position = g.prompt + step, row = h * (g.prompt + g.decode) + position;
  std::vector<TokenIndex> visible;
  for (TokenIndex p = 0; p <= position; ++p)
    if (layer.rule.window == 0 || p + layer.rule.window > position) visible.push_back(p);
  const std::vector<double> exact = plain_weights(block, layer, row, visible), part = plain_weights(block, layer, row, held);
  PlainStep out;
  double norm = 0, difference = 0;
  for (std::size_t c = 0; c < g.value_dim; ++c) {
    double o = 0, mine = 0;
    for (std::size_t i = 0; i < visible.size(); ++i) o += exact[i] * static_cast<double>(block.value(visible[i], c));
    for (std::size_t i = 0; i < held.size(); ++i) mine += part[i] * static_cast<double>(block.value(held[i], c));
    norm += o * o;
    difference += (mine - o) * (mine - o);
  }
  out.error = std::sqrt(difference / norm);
  const std::set<TokenIndex> held_set(held.begin(), held.end());
  std::vector<std::size_t> order(visible.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return exact[a] > exact[b]; });
  double mass = 0;
  std::size_t needed = 0, missing = 0;
  for (const std::size_t i : order) {
    if (mass >= 0.9) break;
    mass += exact[i];
    ++needed;
    missing += held_set.count(visible[i]) == 0 ? 1 : 0;
  }
  for (std::size_t i = 0; i < visible.size(); ++i) out.recall += held_set.count(visible[i]) != 0 ? exact[i] : 0;
  out.miss = static_cast<double>(missing) / static_cast<double>(needed);
  std::size_t n = held.size() - 1, taken = 0, agree = 0;
  for (const std::size_t i : order) {
    if (taken == n) break;
    if (visible[i] == position) continue;
    ++taken;
    agree += held_set.count(visible[i]);
  }
  out.consistency = n == 0 ? NAN : static_cast<double>(agree) / static_cast<double>(n);
  return out;
}

/// Tokens that step `step` could read, from a kept set's times of eviction of one unit.
inline std::vector<TokenIndex> held_at(std::span<const std::uint32_t> evicted_at, std::size_t prompt, std::size_t step) {
  std::vector<TokenIndex> held;
  for (TokenIndex p = 0; p <= prompt + step; ++p)
    if (evicted_at[p] != kEvictedInPrompt && evicted_at[p] >= step) held.push_back(p);
  return held;
}

}  // namespace kvsim::test
