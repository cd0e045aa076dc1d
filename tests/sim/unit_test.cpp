// A unit's results against naive double-precision definitions, recomputed from the kept sets that it reports.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "kernels/error.h"
#include "tests/reference/attention.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

using reference::Row;

/// Exact attention of every row of a head, in double.
struct DenseHead {
  HeadBlock block;
  std::vector<Row> weights;  // [group * decode][tokens]
  std::vector<Row> outputs;

  DenseHead(HeadBlock from, const LayerContext& layer) : block(std::move(from)) {
    for (std::size_t row = 0; row < layer.geometry.group * layer.geometry.decode; ++row) {
      weights.push_back(reference::attention(block.key.view(), query(layer, row), position(layer, row), layer.rule));
      outputs.push_back(reference::output(weights.back(), block.value.view()));
    }
  }
  const float* query(const LayerContext& layer, std::size_t row) const {
    const LayerGeometry& g = layer.geometry;
    return block.query.row(row / g.decode * (g.prompt + g.decode) + g.prompt + row % g.decode);
  }
  static TokenIndex position(const LayerContext& layer, std::size_t row) {
    return static_cast<TokenIndex>(layer.geometry.prompt + row % layer.geometry.decode);
  }
};

/// Naive metrics of one KV head and budget; units[h] is the kept set that query head h reads.
class NaiveMetrics {
 public:
  NaiveMetrics(const LayerContext& layer, const DenseHead& head, const std::vector<std::vector<TokenIndex>>& units)
      : layer_(layer), head_(head), units_(units) {
    for (std::size_t row = 0; row < head.weights.size(); ++row) add_row(row);
    add_sets();
    for (auto& [name, values] : steps_) {
      double sum = 0, n = 0;
      for (const double value : values)
        if (!std::isnan(value)) sum += value, n += 1;
      mean_[name] = n > 0 ? sum / n : std::nan("");
    }
  }
  double mean(const std::string& name) const { return mean_.at(name); }
  double resident() const { return resident_ / static_cast<double>(head_.weights.size()); }
  const std::vector<Row>& deltas() const { return deltas_; }

 private:
  void add_row(std::size_t row) {
    const LayerGeometry& g = layer_.geometry;
    const std::vector<TokenIndex>& kept = units_[units_.size() == 1 ? 0 : row / g.decode];
    const TokenIndex position = DenseHead::position(layer_, row);
    std::vector<TokenIndex> held = kept;
    for (TokenIndex p = static_cast<TokenIndex>(g.prompt); p <= position; ++p) held.push_back(p);
    const Row& exact = head_.weights[row];
    const Row weights = reference::kept_attention(head_.block.key.view(), head_.query(layer_, row), position, layer_.rule, held);
    Row delta = reference::output(weights, head_.block.value.view());
    steps_["output_error"].push_back(reference::relative_error(delta, head_.outputs[row]));
    for (std::size_t c = 0; c < delta.size(); ++c) delta[c] -= head_.outputs[row][c];
    deltas_.push_back(delta);
    double recall = 0, visible = 0, readable = 0;
    std::vector<bool> is_held(exact.size(), false);
    for (const TokenIndex j : held) {
      is_held[j] = true;
      recall += exact[j];
      if (!reference::sees(position, layer_.rule.window, j)) continue;
      readable += 1;
      visible += j < g.prompt ? 1 : 0;
    }
    resident_ += readable;
    steps_["attention_recall"].push_back(recall);
    const auto ranks = reference::prompt_ranks(exact, g.prompt, position, layer_.rule.window, 1u << 30);
    double agree = 0;
    for (const TokenIndex j : kept) agree += ranks[j] < visible ? 1 : 0;
    steps_["query_consistency"].push_back(visible > 0 ? agree / visible : std::nan(""));
    for (const auto& [name, c] : {std::pair{"miss_rate", 0.9}, {"miss_rate_50", 0.5}, {"miss_rate_99", 0.99}}) {
      const auto needed = reference::needed_set(exact, position, layer_.rule.window, c);
      double missing = 0;
      for (const TokenIndex j : needed) missing += is_held[j] ? 0 : 1;
      steps_[name].push_back(missing / static_cast<double>(needed.size()));
    }
  }

  void add_sets() {
    const LayerGeometry& g = layer_.geometry;
    double consistency = 0, jaccard = 0, mass = 0, evidence = 0;
    for (std::size_t u = 0; u < units_.size(); ++u) {
      Row mean(g.prompt, 0.0);
      for (std::size_t row = 0; row < head_.weights.size(); ++row)
        if (units_.size() == 1 || row / g.decode == u)
          for (std::size_t j = 0; j < g.prompt; ++j) mean[j] += head_.weights[row][j];
      std::vector<TokenIndex> best = reference::by_weight(mean, 0, g.prompt);
      best.resize(units_[u].size());
      double both = 0, own_mass = 0, best_mass = 0, found = 0, marked = 0;
      for (const TokenIndex j : best) {
        both += std::count(units_[u].begin(), units_[u].end(), j) > 0 ? 1 : 0;
        best_mass += mean[j];
      }
      for (const TokenIndex j : units_[u]) own_mass += mean[j];
      for (const auto& [begin, end] : layer_.evidence) {
        marked += end - begin;
        for (const TokenIndex j : units_[u]) found += j >= begin && j < end ? 1 : 0;
      }
      const double n = static_cast<double>(best.size());
      consistency += both / n;
      jaccard += both / (2 * n - both);
      mass += own_mass / best_mass;
      evidence += found / marked;
    }
    const double units = static_cast<double>(units_.size());
    mean_["set_consistency"] = consistency / units;
    mean_["set_jaccard"] = jaccard / units;
    mean_["set_mass_ratio"] = mass / units;
    mean_["evidence_recall"] = evidence / units;
  }

  const LayerContext& layer_;
  const DenseHead& head_;
  const std::vector<std::vector<TokenIndex>>& units_;
  std::map<std::string, std::vector<double>> steps_;
  std::map<std::string, double> mean_;
  std::vector<Row> deltas_;
  double resident_ = 0;
};

std::vector<std::vector<TokenIndex>> units_of_head(const KeptSet& set, std::size_t kv, std::size_t group) {
  const std::size_t count = set.unit == "query" ? group : 1;
  std::vector<std::vector<TokenIndex>> units;
  for (std::size_t u = kv * count; u < (kv + 1) * count; ++u)
    units.emplace_back(set.indices.begin() + static_cast<std::ptrdiff_t>(set.offsets[u]),
                       set.indices.begin() + static_cast<std::ptrdiff_t>(set.offsets[u + 1]));
  return units;
}

const ResultRow& row_of(const UnitResult& result, std::size_t kv, const KeptSet& set) {
  for (const ResultRow& row : result.rows)
    if (row.kv_head == kv && row.variant == set.variant && row.budget == set.budget) return row;
  throw InternalError("no row");
}

/// |sum W delta| / |sum W o| averaged over steps.
double naive_projected_error(const LayerContext& layer, const std::vector<DenseHead>& heads, const std::vector<std::vector<Row>>& deltas) {
  const LayerGeometry& g = layer.geometry;
  double total = 0;
  for (std::size_t t = 0; t < g.decode; ++t) {
    const std::size_t hidden = heads[0].block.output_proj.cols();
    Row error(hidden, 0.0), exact(hidden, 0.0);
    for (std::size_t kv = 0; kv < heads.size(); ++kv)
      for (std::size_t h = 0; h < g.group; ++h)
        for (std::size_t c = 0; c < g.value_dim; ++c)
          for (std::size_t m = 0; m < hidden; ++m) {
            const double w = heads[kv].block.output_proj(h * g.value_dim + c, m);
            error[m] += w * deltas[kv][h * g.decode + t][c];
            exact[m] += w * heads[kv].outputs[h * g.decode + t][c];
          }
    total += reference::norm(error) / reference::norm(exact);
  }
  return total / static_cast<double>(g.decode);
}

const std::vector<std::string> kAllNames{"output_error", "attention_recall", "query_consistency", "set_consistency", "set_jaccard",
                                         "set_mass_ratio", "miss_rate", "miss_rate_50", "miss_rate_99", "evidence_recall"};

void expect_matches_definitions(const Shape& shape, const std::vector<std::string>& specs, double tolerance = 1e-5,
                                const std::vector<std::string>& names = kAllNames) {
  Sweep sweep(specs, {1, 7, 24, 60, 119, static_cast<std::uint32_t>(shape.prompt), 500});
  const LayerContext layer = make_layer(shape);
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  std::vector<DenseHead> heads;
  for (HeadBlock& block : make_blocks(shape)) heads.emplace_back(std::move(block), layer);
  ASSERT_EQ(result.kept.size(), specs.size() * sweep.settings.budgets.size());
  double worst = 0;
  for (const KeptSet& set : result.kept) {
    std::vector<std::vector<Row>> deltas;
    for (std::size_t kv = 0; kv < shape.kv_heads; ++kv) {
      const auto units = units_of_head(set, kv, shape.group);
      const NaiveMetrics naive(layer, heads[kv], units);
      const ResultRow& row = row_of(result, kv, set);
      EXPECT_NEAR(row.resident_tokens, naive.resident(), 1e-9);
      for (const std::string& name : names) {
        const double expected = naive.mean(name), got = row.values[sweep.metric(name)];
        ASSERT_EQ(std::isnan(expected), std::isnan(got)) << name;
        if (std::isnan(expected)) continue;
        EXPECT_NEAR(got, expected, tolerance * std::max(1.0, std::abs(expected)))
            << name << " of " << sweep.variants[set.variant].entry.spec << " at " << sweep.settings.budgets[set.budget].tokens;
        worst = std::max(worst, std::abs(got - expected));
      }
      deltas.push_back(naive.deltas());
    }
    if (shape.hidden == 0) continue;
    const double expected = naive_projected_error(layer, heads, deltas);
    bool found = false;
    for (const LayerRow& row : result.layer_rows) {
      if (row.variant != set.variant || row.budget != set.budget) continue;
      found = true;
      EXPECT_NEAR(row.values[0], expected, tolerance);
    }
    EXPECT_TRUE(found);
  }
  std::printf("largest deviation from the double reference: %.2g\n", worst);
}

TEST(ReplayUnit, MatchesDefinitionsForKvUnits) {
  expect_matches_definitions({}, {"snapkv(window=16)", "random", "knorm", "h2o", "ada(score=snapkv(window=16))", "streaming_llm", "oracle_static", "test_orders",
                                  "test_own_size"});
}

TEST(ReplayUnit, MatchesDefinitionsForQueryAndLayerUnits) {
  expect_matches_definitions({}, {"snapkv(window=16,unit=query)", "tova", "test_orders(unit=query)"});
}

TEST(ReplayUnit, MatchesDefinitionsUnderASlidingWindow) {
  Shape shape;
  shape.window = 37;
  expect_matches_definitions(shape, {"snapkv(window=16)", "random", "streaming_llm", "snapkv(window=16,unit=query)", "test_orders"});
}

TEST(ReplayUnit, MatchesDefinitionsWithSoftcapAndProjection) {
  Shape shape;
  shape.softcap = 6.0;
  shape.hidden = 20;
  expect_matches_definitions(shape, {"snapkv(window=16)", "random", "snapkv(window=16,unit=query)",
                                     "ada(score=snapkv(window=16),form=interp)", "test_orders", "test_orders(unit=query)"});
}

TEST(ReplayUnit, MatchesDefinitionsWithOneQueryHeadAndMany) {
  Shape shape;
  shape.group = 1;
  shape.kv_heads = 1;
  shape.decode = 1;
  expect_matches_definitions(shape, {"random", "knorm"});
  shape.group = 7;
  shape.decode = 33;
  expect_matches_definitions(shape, {"random", "snapkv(window=16)"});
}

TEST(ReplayUnit, RecomputesRowsWhoseKeptMassUnderflows) {
  // So sharp that a set without the heavy tokens keeps less than e^-80 of the mass; decode tokens are few and light.
  // Orders are left out: weights below the smallest float are ties by definition.
  Shape shape;
  shape.sharpness = 40;
  shape.decode = 3;
  expect_matches_definitions(shape, {"random", "knorm", "snapkv(window=16,unit=query)"}, 1e-5,
                             {"output_error", "attention_recall", "miss_rate", "miss_rate_50", "miss_rate_99"});
}

TEST(ReplayUnit, MeetsRowsBelowTheRecallFloor) {
  // What RecomputesRowsWhoseKeptMassUnderflows relies on.
  Shape shape;
  shape.sharpness = 40;
  shape.decode = 3;
  Sweep sweep({"random"}, {1});
  const UnitResult result = sweep.run(shape);
  EXPECT_LT(result.cells[0].metrics[sweep.metric("attention_recall")].min, kRecallFloor);
}

TEST(ReplayUnit, GivesTheSameBitsHeldStreamedAndForAnyThreads) {
  Shape shape;
  shape.hidden = 20;
  shape.samples = 3;
  shape.decode = 50;
  const std::vector<std::string> specs{"full", "random", "oracle_topk", "snapkv(window=16,unit=query)", "ada(score=snapkv(window=16))", "tova", "h2o",
                                       "test_orders", "test_orders(unit=query)"};
  const auto values = [&](bool hold, std::size_t chunk, std::size_t batch) {
    Sweep sweep(specs, {5, 40, 90, 120});
    sweep.settings.memory = {hold, chunk, batch, 0};
    sweep.settings.detail = true;
    const UnitResult result = sweep.run(shape);
    std::vector<double> list;
    for (const ResultRow& row : result.rows) list.insert(list.end(), row.values.begin(), row.values.end());
    for (const LayerEffect& effect : result.effects)
      for (const auto* numbers : {&effect.response, &effect.projected, &effect.relative}) list.insert(list.end(), numbers->begin(), numbers->end());
    for (const LayerRow& row : result.layer_rows) list.insert(list.end(), row.values.begin(), row.values.end());
    for (const StepDetail& detail : result.detail) list.insert(list.end(), detail.steps.begin(), detail.steps.end());
    for (const CellDistributions& cell : result.cells)
      for (const Distribution& d : cell.metrics) list.insert(list.end(), {d.sum, d.min, d.max, d.quantile(0.5), static_cast<double>(d.count)});
    for (double& value : list) value = std::isnan(value) ? -12345.0 : value;
    return list;
  };
  const std::vector<double> expected = values(true, 50, specs.size());
  EXPECT_GT(expected.size(), 1000u);
  EXPECT_EQ(values(false, 16, 3), expected);
  EXPECT_EQ(values(false, 32, 1), expected);
  EXPECT_EQ(values(false, 64, specs.size()), expected);
}

TEST(ReplayUnit, TopkOracleReachesTheMostRecall) {
  Sweep sweep({"oracle_topk", "oracle_static", "snapkv(window=16,unit=query)", "random"}, {4, 20, 60});
  const UnitResult result = sweep.run({});
  const std::size_t recall = sweep.metric("attention_recall"), consistency = sweep.metric("query_consistency");
  for (const ResultRow& best : result.rows) {
    if (best.variant != 0) continue;
    EXPECT_EQ(best.values[consistency], 1.0);
    for (const ResultRow& other : result.rows) {
      if (other.kv_head != best.kv_head || other.budget != best.budget) continue;
      EXPECT_LE(other.values[recall], best.values[recall] + 1e-6);
    }
  }
}

TEST(ReplayUnit, RecordsAFailingVariantAndGoesOn) {
  Sweep sweep({"random", "snapkv(window=119)", "knorm"}, {20});
  Shape shape;
  shape.prompt = 119;  // no token outside the window
  const UnitResult result = sweep.run(shape);
  ASSERT_EQ(result.failures.size(), 1u);
  EXPECT_EQ(result.failures[0].variant, 1u);
  EXPECT_EQ(result.rows.size(), 2 * shape.kv_heads);
  sweep.settings.fail_fast = true;
  EXPECT_THROW(sweep.run(shape), UserError);
}

}  // namespace
}  // namespace kvsim::test
