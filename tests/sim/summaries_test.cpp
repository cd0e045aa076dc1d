// Layers that are scored ahead, so that budget can move between them.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

/// Three layers of a model as a trace would give them.
struct Model {
  std::vector<Shape> shapes;
  std::vector<LayerContext> layers;

  Model() {
    for (std::uint32_t l = 0; l < 3; ++l) {
      Shape shape;
      shape.seed = l + 1;
      shape.sharpness = 0.3 + 0.6 * l;
      shapes.push_back(shape);
      LayerContext layer = make_layer(shape);
      layer.geometry.recorded_layers = {1, 3, 4};
      layer.geometry.layer = layer.geometry.recorded_layers[l];
      layers.push_back(layer);
    }
  }
  std::vector<ModelSummaries> summarise(Sweep& sweep, std::size_t batch) const {
    std::vector<ModelSummaries> summaries(sweep.variants.size());
    UnitSettings settings = sweep.settings;
    settings.metrics.clear();
    settings.memory = {false, 16, batch, 0};
    for (std::size_t l = 0; l < layers.size(); ++l) {
      ShapeSource source(shapes[l]);
      add_summaries(layers[l], settings, source, summaries);
    }
    return summaries;
  }
  /// Tokens that every unit of every layer keeps: [variant][budget].
  std::vector<std::vector<std::vector<std::size_t>>> kept(Sweep& sweep, const std::vector<ModelSummaries>& summaries) const {
    sweep.settings.summaries.clear();
    for (const ModelSummaries& one : summaries) sweep.settings.summaries.push_back(&one);
    std::vector<std::vector<std::vector<std::size_t>>> counts(sweep.variants.size(), std::vector<std::vector<std::size_t>>(sweep.settings.budgets.size()));
    for (std::size_t l = 0; l < layers.size(); ++l) {
      ShapeSource source(shapes[l]);
      sweep.settings.memory.step_chunk = shapes[l].decode;
      const UnitResult result = replay_unit(layers[l], sweep.settings, source);
      EXPECT_TRUE(result.failures.empty()) << result.failures.front().message;
      for (const KeptSet& set : result.kept)
        for (std::size_t u = 0; u + 1 < set.offsets.size(); ++u)
          counts[set.variant][set.budget].push_back(set.offsets[u + 1] - set.offsets[u]);
    }
    return counts;
  }
};

const std::vector<std::string> kSpecs{"cake(window=16,tau1=1.6,tau2=0.6)",
                                      "pool(score=snapkv(window=16),over=model)",
                                      "pool(score=snapkv(window=16),over=model,floor=0.5)",
                                      "pool(score=snapkv(window=16,unit=query),over=model)",
                                      "kvzip",
                                      "kvcompose(structured=false)",
                                      "duo(sinks=4,recent=8)"};

TEST(AddSummaries, LetsPoliciesKeepTheTotalOverTheLayersExactly) {
  const Model model;
  const std::vector<std::uint32_t> budgets{1, 5, 17, 40, 90, 119, 120};
  Sweep sweep(kSpecs, budgets);
  const auto counts = model.kept(sweep, model.summarise(sweep, kSpecs.size()));
  bool moved = false;
  for (std::size_t v = 0; v < kSpecs.size(); ++v)
    for (std::size_t b = 0; b < budgets.size(); ++b) {
      const auto& units = counts[v][b];
      EXPECT_EQ(std::accumulate(units.begin(), units.end(), std::size_t{0}), budgets[b] * units.size()) << kSpecs[v] << " at " << budgets[b];
      moved |= units.front() != units.back();
    }
  EXPECT_TRUE(moved);
}

TEST(AddSummaries, GivesEveryHeadItsFloor) {
  const Model model;
  Sweep sweep({"pool(score=snapkv(window=16),over=model,floor=0.5)"}, {40});
  const std::vector<std::vector<std::vector<std::size_t>>> kept = model.kept(sweep, model.summarise(sweep, 1));
  for (const std::size_t count : kept[0][0]) EXPECT_GE(count, 20u);
}

TEST(AddSummaries, DoesNotDependOnHowVariantsAreBatched) {
  const Model model;
  Sweep sweep(kSpecs, {20, 60});
  const std::vector<ModelSummaries> at_once = model.summarise(sweep, kSpecs.size()), singly = model.summarise(sweep, 1);
  for (std::size_t v = 0; v < kSpecs.size(); ++v) {
    EXPECT_EQ(at_once[v].layers.size(), 3u);
    EXPECT_EQ(at_once[v].layers, singly[v].layers) << kSpecs[v];
  }
}

TEST(AddSummaries, RemembersAVariantThatFailsAndGoesOn) {
  Model model;
  for (Shape& shape : model.shapes) shape.prompt = 32;
  for (LayerContext& layer : model.layers) {
    layer.geometry.prompt = 32;
    layer.evidence.clear();  // it stood behind them
  }
  Sweep sweep({"cake(window=32)", "cake(window=16)"}, {20});  // the first has no token outside its window
  const std::vector<ModelSummaries> summaries = model.summarise(sweep, 2);
  EXPECT_FALSE(summaries[0].failure.empty());
  EXPECT_TRUE(summaries[1].failure.empty());
  EXPECT_EQ(summaries[1].layers.size(), 3u);
  for (const ModelSummaries& one : summaries) sweep.settings.summaries.push_back(&one);
  ShapeSource source(model.shapes[0]);
  sweep.settings.memory.step_chunk = model.shapes[0].decode;
  const UnitResult result = replay_unit(model.layers[0], sweep.settings, source);
  ASSERT_EQ(result.failures.size(), 1u);
  EXPECT_EQ(result.failures[0].variant, 0u);
}

TEST(ReplayUnit, IsItsOwnModelWhereALayerStandsAlone) {
  Sweep sweep({"cake(window=16)", "snapkv(window=16)"}, {40});
  for (const ResultRow& row : sweep.run({}).rows) EXPECT_EQ(row.evicted, 80.0);
}

}  // namespace
}  // namespace kvsim::test
