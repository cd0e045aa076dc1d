// score_truth: the closed form against brute-force removal in double, rank correlation, and the metric of a
// whole unit.
#include "sim/score_truth.h"
#include "sim/rank_correlation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "policies/removal_cost.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim {
namespace {

using test::Shape;

/// Attention output of one decode query in double over the visible tokens but `without`.
std::vector<double> output(const HeadBlock& block, const LayerContext& layer, std::size_t head,
                           std::size_t step, std::size_t without) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t tokens = g.prompt + g.decode, position = g.prompt + step;
  const float* query = block.query.row(head * tokens + position);
  const std::size_t first =
      layer.rule.window == 0 || position + 1 <= layer.rule.window ? 0 : position + 1 - layer.rule.window;
  std::vector<double> logit(position + 1, -std::numeric_limits<double>::infinity());
  double most = -std::numeric_limits<double>::infinity();
  for (std::size_t i = first; i <= position; ++i) {
    if (i == without) continue;
    double dot = 0;
    for (std::size_t c = 0; c < g.key_dim; ++c)
      dot += static_cast<double>(query[c]) * static_cast<double>(block.key(i, c));
    logit[i] = dot * layer.rule.scale;
    if (layer.rule.softcap > 0) logit[i] = layer.rule.softcap * std::tanh(logit[i] / layer.rule.softcap);
    most = std::max(most, logit[i]);
  }
  std::vector<double> out(g.value_dim, 0.0);
  double mass = 0;
  for (std::size_t i = first; i <= position; ++i) {
    if (i == without) continue;
    const double weight = std::exp(logit[i] - most);
    mass += weight;
    for (std::size_t c = 0; c < g.value_dim; ++c) out[c] += weight * static_cast<double>(block.value(i, c));
  }
  for (double& x : out) x /= mass;
  return out;
}

/// Squared change of a head's outputs over all steps when token `i` is left out.
double removal_square(const HeadBlock& block, const LayerContext& layer, std::size_t head, std::size_t i) {
  double sum = 0;
  for (std::size_t step = 0; step < layer.geometry.decode; ++step) {
    const std::vector<double> with =
        output(block, layer, head, step, std::numeric_limits<std::size_t>::max());
    const std::vector<double> without = output(block, layer, head, step, i);
    for (std::size_t c = 0; c < with.size(); ++c) sum += (with[c] - without[c]) * (with[c] - without[c]);
  }
  return sum;
}

class RemovalCost : public testing::TestWithParam<Shape> {};

TEST_P(RemovalCost, EqualsBruteForceRemovalOfEveryToken) {
  const LayerContext layer = test::make_layer(GetParam());
  for (const HeadBlock& block : test::make_blocks(GetParam())) {
    const ExactSteps exact(block, layer, {0, layer.geometry.decode}, false);
    for (std::size_t head = 0; head < layer.geometry.group; ++head) {
      std::vector<double> squares(layer.geometry.prompt, 0.0);
      add_removal_squares(exact, block, head, squares);
      for (std::size_t i = 0; i < squares.size(); ++i) {
        const double expected = std::sqrt(removal_square(block, layer, head, i));
        ASSERT_NEAR(std::sqrt(squares[i]), expected, 1e-6 + 2e-4 * expected)
            << "head " << head << ", token " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RemovalCost,
    testing::Values(Shape{.prompt = 40, .decode = 7},
                    Shape{.prompt = 300, .decode = 3, .kv_heads = 1, .group = 1},  // several token tasks
                    Shape{.prompt = 33, .decode = 70, .kv_heads = 1},              // several row blocks
                    Shape{.prompt = 40, .decode = 9, .window = 16},
                    Shape{.prompt = 40, .decode = 5, .softcap = 4},
                    Shape{.prompt = 30, .decode = 5, .sharpness = 2.5}));

TEST(RemovalCostOf, TheWorkedExample) {
  // Golden values of section 2.5 of the policy reference: a of example G4, |v - o| from its values and
  // outputs.
  const double o[2] = {.842944, .834349}, v[3][2] = {{1, 0}, {0, 2}, {3, 3}},
               a[3] = {.619985, .305695, .07432};
  const double expected[3] = {1.385127, .633359, .245405};
  for (int i = 0; i < 3; ++i)
    EXPECT_NEAR(removal_cost(a[i], std::hypot(v[i][0] - o[0], v[i][1] - o[1])), expected[i], 5e-6);
}

TEST(RemovalCostOf, TheOnlyTokenStaysFinite) {
  EXPECT_TRUE(std::isfinite(removal_cost(1.0, 1.0)));
  EXPECT_GT(removal_cost(1.0, 1.0), removal_cost(0.999999, 1.0));
  EXPECT_EQ(removal_cost(1.0, 0.0), 0.0);
}

TEST(RemovalCostOf, StepsMayBeCutAnywhere) {
  const Shape shape{.prompt = 50, .decode = 20, .kv_heads = 1};
  const LayerContext layer = test::make_layer(shape);
  const HeadBlock block = std::move(test::make_blocks(shape).front());
  const auto cut_at = [&](std::size_t cut) {
    std::vector<double> squares(shape.prompt, 0.0);
    for (const StepRange& range : {StepRange{0, cut}, StepRange{cut, 20 - cut}})
      add_removal_squares(ExactSteps(block, layer, range, false), block, 1, squares);
    return squares;
  };
  EXPECT_EQ(cut_at(16), cut_at(3));
}

TEST(RankCorrelation, IsSpearmansWithAveragedTies) {
  const std::vector<double> a{1, 2, 3, 4};
  EXPECT_DOUBLE_EQ(rank_correlation(a, std::vector<double>{10, 20, 30, 1000}), 1.0);
  EXPECT_DOUBLE_EQ(rank_correlation(a, std::vector<double>{0, -1, -2, -3}), -1.0);
  EXPECT_DOUBLE_EQ(rank_correlation(a, std::vector<double>{2, 1, 4, 3}), 0.6);  // 1 - 6 * 4 / (4 * 15)
  // Ranks 1.5 1.5 3 4 against 1 2 3 4: 4.5 / sqrt(4.5 * 5).
  EXPECT_NEAR(rank_correlation(std::vector<double>{7, 7, 8, 9}, a), 4.5 / std::sqrt(22.5), 1e-12);
  EXPECT_TRUE(std::isnan(rank_correlation(std::vector<double>{5, 5, 5, 5}, a)));
  EXPECT_TRUE(std::isnan(rank_correlation(std::vector<double>{1}, std::vector<double>{2})));
}

TEST(RankCorrelation, OfOrdersIsThatOfTheValuesAndReadsTheTokensOfTheOrdersAlone) {
  const std::vector<float> a{7, -100, 7, 8, 9}, b{1, 100, 2, 3, 4};
  const std::vector<TokenIndex> order_a{4, 3, 0, 2}, order_b{4, 3, 2, 0};  // token 1 left out
  EXPECT_EQ(rank_correlation(RankedValues{a, order_a}, RankedValues{b, order_b}),
            rank_correlation(std::vector<double>{7, 7, 8, 9}, std::vector<double>{1, 2, 3, 4}));
  EXPECT_NEAR(rank_correlation(RankedValues{a, order_a}, RankedValues{b, order_b}), 4.5 / std::sqrt(22.5),
              1e-12);
}

LayerRanking ranked(LayerScores scores, const std::string& policy = "knorm") {
  const test::Sweep sweep({policy}, {1});
  LayerGeometry layer;
  layer.prompt = scores.units[0].score.size();
  return rank_layer(*sweep.variants[0].policy, layer, std::move(scores));
}

std::vector<std::vector<double>> squares_of(const std::vector<std::vector<double>>& costs) {
  std::vector<std::vector<double>> squares = costs;
  for (std::vector<double>& of_head : squares)
    for (double& x : of_head) x *= x;
  return squares;
}

TEST(ScoreTruth, LeavesProtectedTokensOut) {
  LayerScores scores;
  scores.units.resize(1);
  scores.units[0].score = {0, 0, 1, 2, 3};
  const RemovalCosts costs(squares_of({{9, 8, 1, 2, 3}}), false);
  EXPECT_LT(score_truth(ranked(scores), 0, costs), 0.0);
  scores.units[0].protected_tokens = {0, 1};
  EXPECT_DOUBLE_EQ(score_truth(ranked(scores), 0, costs), 1.0);
}

TEST(ScoreTruth, IsTheMeanOverQueryHeadsWhereEachHasAUnit) {
  LayerScores scores;
  scores.unit = Unit::query;
  scores.units.resize(4);
  for (UnitScores& unit : scores.units) unit.score = {1, 2, 3};
  scores.units[3].score = {3, 2, 1};
  const RemovalCosts costs(squares_of({{1, 2, 3}, {1, 2, 3}}), true);
  const LayerRanking ranking = ranked(scores);
  EXPECT_DOUBLE_EQ(score_truth(ranking, 0, costs), 1.0);
  EXPECT_DOUBLE_EQ(score_truth(ranking, 1, costs), 0.0);
}

TEST(ScoreTruth, OfAUnitIsHigherForTheFutureThanForChanceAndTheSameAtEveryBudget) {
  test::Sweep sweep({"oracle_static", "random(seed=3)", "full", "oracle_topk"}, {10, 40});
  const UnitResult result = sweep.run(Shape{});
  const std::size_t metric = sweep.metric("score_truth");
  std::map<std::uint32_t, std::vector<double>> of_variant;
  for (const ResultRow& row : result.rows) of_variant[row.variant].push_back(row.values[metric]);
  for (std::size_t kv = 0; kv < 2; ++kv) {
    EXPECT_GT(of_variant[0][2 * kv], 0.7);
    EXPECT_EQ(of_variant[0][2 * kv], of_variant[0][2 * kv + 1]);
    EXPECT_LT(std::abs(of_variant[1][2 * kv]), 0.4);
    EXPECT_TRUE(std::isnan(of_variant[2][2 * kv]));  // one score for all tokens
    EXPECT_TRUE(std::isnan(of_variant[3][2 * kv]));  // an order for every step
  }
}

TEST(ScoreTruth, DoesNotDependOnHowTheUnitWasCut) {
  test::Sweep whole({"knorm", "streaming_llm"}, {10, 40}), cut({"knorm", "streaming_llm"}, {10, 40});
  cut.settings.memory.hold = false;
  cut.settings.memory.step_chunk = 16;
  cut.settings.memory.variant_batch = 1;
  const UnitResult a = whole.run(Shape{}), b = cut.run(Shape{});
  const std::size_t metric = whole.metric("score_truth");
  ASSERT_EQ(a.rows.size(), b.rows.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.rows.size(); ++i) {
    EXPECT_EQ(a.rows[i].values[metric], b.rows[i].values[metric]);
    sum += std::abs(a.rows[i].values[metric]);
  }
  EXPECT_GT(sum, 0.0);
}

}  // namespace
}  // namespace kvsim
