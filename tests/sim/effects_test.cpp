// What the errors of a layer do downstream, and of all layers together, against plain double-precision sums.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "sim/predicted_kl.h"
#include "sim/projection.h"
#include "tests/reference/attention.h"
#include "tests/stepwise/step_sweep.h"

namespace kvsim::test {
namespace {

constexpr double kTolerance = 2e-5;

/// Positions that query head h of KV head kv reads at a step, ascending, its own last.
using Held = std::function<std::vector<TokenIndex>(std::size_t kv, std::size_t h, std::size_t step)>;

/// o' - o of one query head and step.
std::vector<double> plain_delta(const HeadBlock& block, const LayerContext& layer, std::size_t h, std::size_t step, const std::vector<TokenIndex>& held) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t position = g.prompt + step, row = h * (g.prompt + g.decode) + position;
  std::vector<TokenIndex> visible, readable;
  for (TokenIndex p = 0; p <= position; ++p)
    if (reference::sees(static_cast<TokenIndex>(position), layer.rule.window, p)) visible.push_back(p);
  for (const TokenIndex p : held)
    if (reference::sees(static_cast<TokenIndex>(position), layer.rule.window, p)) readable.push_back(p);
  std::vector<double> delta(g.value_dim, 0.0);
  const auto add = [&](const std::vector<TokenIndex>& tokens, double sign) {
    const std::vector<double> weights = plain_weights(block, layer, row, tokens);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      for (std::size_t c = 0; c < g.value_dim; ++c) delta[c] += sign * weights[i] * static_cast<double>(block.value(tokens[i], c));
  };
  add(readable, 1);
  add(visible, -1);
  return delta;
}

void expect_effect(const LayerEffect& effect, const Shape& shape, const Held& held) {
  const LayerContext layer = make_layer(shape);
  const LayerGeometry& g = layer.geometry;
  const std::vector<HeadBlock> blocks = make_blocks(shape);
  EXPECT_EQ(effect.samples, shape.samples);
  EXPECT_DOUBLE_EQ(effect.depth, 4.0 / 6.0);  // layer 3 of 6
  ASSERT_EQ(effect.response.size(), shape.samples * g.decode);
  ASSERT_EQ(effect.projected.size(), shape.hidden > 0 ? g.decode : 0);
  ASSERT_EQ(effect.relative.size(), effect.projected.size());
  for (std::size_t t = 0; t < g.decode; ++t) {
    std::vector<double> response(shape.samples, 0.0), projected(shape.hidden, 0.0);
    for (std::size_t kv = 0; kv < g.kv_heads; ++kv)
      for (std::size_t h = 0; h < g.group; ++h) {
        const std::vector<double> delta = plain_delta(blocks[kv], layer, h, t, held(kv, h, t));
        for (std::size_t c = 0; c < g.value_dim; ++c) {
          for (std::size_t r = 0; r < shape.samples; ++r)
            response[r] += delta[c] * static_cast<double>(blocks[kv].sensitivity(r * g.value_dim + c, h * g.decode + t));
          for (std::size_t m = 0; m < shape.hidden; ++m)
            projected[m] += delta[c] * static_cast<double>(blocks[kv].output_proj(h * g.value_dim + c, m));
        }
      }
    for (std::size_t r = 0; r < shape.samples; ++r) EXPECT_NEAR(effect.response[r * g.decode + t], response[r], kTolerance) << "step " << t;
    if (shape.hidden == 0) continue;
    const double norm = reference::norm(projected);
    EXPECT_NEAR(effect.projected[t], norm, kTolerance * std::max(1.0, norm));
    EXPECT_NEAR(effect.relative[t], norm / static_cast<double>(residual_norms(g.decode)[t]), kTolerance);
  }
}

/// Kept prompt positions of a prompt-time set, and all decoded tokens so far.
Held held_of(const KeptSet& set, const Shape& shape) {
  return [&set, &shape](std::size_t kv, std::size_t h, std::size_t step) {
    const std::size_t u = set.unit == "query" ? kv * shape.group + h : kv;
    std::vector<TokenIndex> held(set.indices.begin() + static_cast<std::ptrdiff_t>(set.offsets[u]),
                                 set.indices.begin() + static_cast<std::ptrdiff_t>(set.offsets[u + 1]));
    for (std::size_t p = shape.prompt; p <= shape.prompt + step; ++p) held.push_back(static_cast<TokenIndex>(p));
    return held;
  };
}

Shape shape_with_all() {
  Shape shape;
  shape.hidden = 20;
  shape.samples = 3;
  return shape;
}

const LayerEffect& effect_of(const UnitResult& result, const KeptSet& set) {
  for (const LayerEffect& effect : result.effects)
    if (effect.variant == set.variant && effect.budget == set.budget) return effect;
  throw InternalError("no effect");
}

void expect_effects(const Shape& shape) {
  Sweep sweep({"random", "snapkv(window=16,unit=query)", "ada(score=snapkv(window=16))", "test_orders"}, {5, 40, 120});
  const UnitResult result = sweep.run(shape);
  ASSERT_EQ(result.kept.size(), 12u);
  ASSERT_EQ(result.effects.size(), 12u);
  for (const KeptSet& set : result.kept) expect_effect(effect_of(result, set), shape, held_of(set, shape));
}

TEST(LayerEffects, MatchDefinitions) { expect_effects(shape_with_all()); }

TEST(LayerEffects, MatchDefinitionsUnderASlidingWindow) {
  Shape shape = shape_with_all();
  shape.window = 37;
  expect_effects(shape);
}

TEST(LayerEffects, MatchDefinitionsWithoutOutputProjection) {
  Shape shape = shape_with_all();
  shape.hidden = 0;
  expect_effects(shape);
}

TEST(LayerEffects, MatchDefinitionsOfDecodeTimePolicies) {
  const Shape shape = shape_with_all();
  StepSweep sweep({"decode:streaming_llm", "decode:h2o", "decode:h2o(unit=query)"}, {16, 60});
  const UnitResult result = sweep.run(shape);
  ASSERT_EQ(result.kept.size(), 6u);
  for (const KeptSet& set : result.kept) {
    const std::size_t tokens = shape.prompt + shape.decode;
    expect_effect(effect_of(result, set), shape, [&](std::size_t kv, std::size_t h, std::size_t step) {
      const std::size_t u = set.unit == "query" ? kv * shape.group + h : kv;
      return held_at(std::span(set.evicted_at).subspan(u * tokens, tokens), shape.prompt, step);
    });
  }
}

TEST(LayerEffects, AreThereForNoneOfTheOtherMetrics) {
  const Shape shape = shape_with_all();
  Sweep sweep({"random"}, {40});
  std::erase_if(sweep.settings.metrics, [](const std::string& name) {
    return !metrics_of_level(std::vector<std::string>{name}, MetricInfo::Level::trace).empty();
  });
  EXPECT_TRUE(sweep.run(shape).effects.empty());
}

TEST(SketchOf, KeepsNormsOfSumsOnAverage) {
  // Of 400 random vectors after a projection into 300 numbers.
  Philox random(7, 1);
  const auto noise = [&random] { return static_cast<float>(random.next_double() * 2 - 1); };
  Matrix<float> projection(24, 300);
  for (std::size_t i = 0; i < projection.rows(); ++i)
    for (std::size_t m = 0; m < projection.cols(); ++m) projection(i, m) = noise();
  const Matrix<float> sketch = sketch_of(projection.view());
  ASSERT_EQ(sketch.rows(), 24u);
  ASSERT_EQ(sketch.cols(), kSketch);
  double ratios = 0, squares = 0;
  constexpr int kVectors = 400;
  for (int n = 0; n < kVectors; ++n) {
    std::vector<double> exact(300, 0.0), sketched(kSketch, 0.0);
    for (std::size_t i = 0; i < 24; ++i) {
      const double x = static_cast<double>(noise());
      for (std::size_t m = 0; m < exact.size(); ++m) exact[m] += x * static_cast<double>(projection(i, m));
      for (std::size_t k = 0; k < kSketch; ++k) sketched[k] += x * static_cast<double>(sketch(i, k));
    }
    const double ratio = reference::norm(sketched) / reference::norm(exact);
    ratios += ratio;
    squares += (ratio - 1) * (ratio - 1);
  }
  // One draw of signs for all vectors, of which 24 are independent: the mean itself is off by a hundredth or so.
  EXPECT_NEAR(ratios / kVectors, 1.0, 0.05);
  EXPECT_NEAR(std::sqrt(squares / kVectors), std::sqrt(2.0 / kSketch) / 2, 0.03);
}

TEST(SketchOf, IsTheProjectionItselfWhereThatIsSmall) {
  Matrix<float> projection(3, 20);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t m = 0; m < 20; ++m) projection(i, m) = static_cast<float>(i * 20 + m);
  const Matrix<float> sketch = sketch_of(projection.view());
  ASSERT_EQ(sketch.cols(), 20u);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t m = 0; m < 20; ++m) EXPECT_EQ(sketch(i, m), projection(i, m));
}

LayerEffect made_up(double depth, std::vector<float> response, std::vector<float> projected, std::vector<float> relative) {
  LayerEffect effect;
  effect.depth = depth;
  effect.samples = 2;
  effect.response = std::move(response);
  effect.projected = std::move(projected);
  effect.relative = std::move(relative);
  return effect;
}

TEST(EffectSum, AddsUpTheLayers) {
  // Two samples, two steps: response [sample][step].
  EffectSum sum;
  sum.add(made_up(0.3, {1, 0, -2, 0.5f}, {3, 1}, {0.5f, 0.25f}));
  sum.add(made_up(0.6, {-1, 1, 1, 0.5f}, {1, 2}, {0.1f, 0.5f}));
  sum.add(made_up(1.0, {2, 0, 0, 0}, {1, 0}, {0.2f, 0}));
  const auto expect = [&](const char* metric, double first, double second) {
    const std::vector<double> steps = sum.steps(metric);
    ASSERT_EQ(steps.size(), 2u) << metric;
    EXPECT_NEAR(steps[0], first, 1e-6) << metric;
    EXPECT_NEAR(steps[1], second, 1e-6) << metric;
  };
  // Sums over layers: sample 0: 2, 1; sample 1: -1, 1.
  expect("predicted_kl_linear", 1.5, 1.0);
  expect("predicted_kl_quadratic", (4 + 1) / 4.0, (1 + 1) / 4.0);
  expect("predicted_kl_saturated", std::log1p(1.25), std::log1p(0.5));
  expect("predicted_kl_layers", (1 + 4 + 1 + 1 + 4) / 4.0, (0.25 + 1 + 0.25) / 4.0);
  expect("projected_sum", 5, 3);
  expect("residual_error", 0.8, 0.75);
  expect("predicted_kl", 4.6 * (0.01 + 0.04), 4.6 * 0.25);  // layers from 40 % of the depth on
}

TEST(EffectSum, IsUndefinedWhereALayerSaysNothing) {
  EffectSum sum;
  sum.add(made_up(0.5, {1, 0, -2, 0.5f}, {3, 1}, {0.5f, 0.25f}));
  sum.add(made_up(1.0, {}, {1, 2}, {0.1f, 0.5f}));
  EXPECT_TRUE(sum.steps("predicted_kl_linear").empty());
  EXPECT_EQ(sum.steps("predicted_kl").size(), 2u);
  sum.add({});
  for (const MetricInfo& metric : all_metrics()) {
    if (metric.level != MetricInfo::Level::trace) continue;
    EXPECT_TRUE(sum.steps(metric.name).empty()) << metric.name;
  }
  EXPECT_TRUE(EffectSum().steps("predicted_kl").empty());
}

TEST(EffectSum, PredictsNothingFromEarlyLayersAlone) {
  EffectSum sum;
  sum.add(made_up(0.2, {1, 0, -2, 0.5f}, {3, 1}, {0.5f, 0.25f}));
  sum.add(made_up(0.4, {1, 0, -2, 0.5f}, {3, 1}, {0.5f, 0.25f}));
  EXPECT_TRUE(sum.steps("predicted_kl").empty());
  EXPECT_EQ(sum.steps("residual_error").size(), 2u);
}

TEST(EffectSum, RefusesLayersOfDifferentShapes) {
  EffectSum sum;
  sum.add(made_up(0.5, {1, 0, -2, 0.5f}, {3, 1}, {0.5f, 0.25f}));
  EXPECT_THROW(sum.add(made_up(1.0, {1, 0}, {3, 1}, {0.5f, 0.25f})), UserError);
  EXPECT_THROW(sum.add(made_up(1.0, {1, 0, -2, 0.5f}, {3}, {0.5f})), UserError);
}

}  // namespace
}  // namespace kvsim::test
