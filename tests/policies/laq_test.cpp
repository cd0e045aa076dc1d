// Lookahead Q-Cache: which pass serves which budget, masks, golden values, and what it equals.
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "policies/lookahead.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

/// A layer whose first passes hold queries of their own; `passes` = capacities.
DenseLayer layer_with_passes(const std::vector<std::uint32_t>& passes, std::size_t prompt = 40,
                             std::size_t length = 8) {
  DenseLayer layer = random_layer(prompt, 2, 3, 5, 12);
  layer.geometry.lookaheads.clear();
  layer.lookahead.clear();
  for (const std::uint32_t capacity : passes) {
    const std::string name = fmt::format("snapkv-{}", capacity);
    layer.geometry.lookaheads.push_back({name, capacity, static_cast<std::uint32_t>(length)});
    auto& heads = layer.lookahead[name];
    heads.resize(6);
    Philox random(capacity, 1);
    for (auto& rows : heads) {
      rows.resize(length, std::vector<double>(layer.geometry.key_dim));
      for (auto& row : rows)
        for (double& x : row) x = 8 * random.next_double() - 4;
    }
  }
  return layer;
}

/// A head of width n whose keys are unit vectors, so that queries are logits.
DenseLayer logit_layer(const std::vector<std::vector<double>>& window,
                       const std::vector<std::vector<double>>& pseudo) {
  DenseLayer layer;
  LayerGeometry& g = layer.geometry;
  const std::size_t n = pseudo.front().size();
  g.prompt = g.key_dim = n;
  g.value_dim = 1;
  g.recorded_layers = {0};
  g.lookaheads = {{"snapkv-2", 2, static_cast<std::uint32_t>(pseudo.size())}};
  layer.fill([&](std::size_t, std::size_t t,
                 std::size_t c) { return t + window.size() >= n ? window[t + window.size() - n][c] : 0.0; },
             [](std::size_t, std::size_t t, std::size_t c) { return t == c ? 1.0 : 0.0; },
             [](std::size_t, std::size_t, std::size_t) { return 1.0; });
  layer.lookahead["snapkv-2"] = {pseudo};
  return layer;
}

void expect_scores(std::string_view spec, const DenseLayer& layer, const std::vector<double>& expected) {
  const DenseFeatures head(layer, 0);
  std::vector<UnitScores> out(1);
  prepared_policy(spec)->score(head, out);
  for (std::size_t t = 0; t < expected.size(); ++t)
    EXPECT_NEAR(static_cast<double>(out[0].score[t]), expected[t], 2e-6) << spec << ", token " << t;
}

TEST(Laq, GoldenG2aWithAndWithoutTheAuthorsMask) {  // reference, 2.1 and Appendix A
  const DenseLayer layer = logit_layer({}, {{0, 0, 0, 3}, {0, 1, 0, 0}});
  expect_scores("laq(length=2,kernel=1,mask=repo)", layer, {.508211, .8087, .508211, .174878});
  expect_scores("laq(length=2,kernel=1)", layer, {.218195, .518684, .218195, 1.044926});
}

TEST(LaqPlus, GoldenG2bWithAndWithoutTheAuthorsMask) {  // reference, 2.2 and Appendix A
  const DenseLayer layer = logit_layer({{2.5, 0, 0, 0, 4, 0}}, {{0, 0, 0, 0, 0, 0}, {0, 0, 2.2, 0, 0, 0}});
  expect_scores("laq_pp(length=2,window=1,kernel=1,mask=repo)", layer,
                {1.073705, .337167, .909359, .337167, .271301});
  expect_scores("laq_pp(length=2,window=1,kernel=1)", layer, {.410084, .252096, .824289, .252096, 1.009339});
}

TEST(Laq, LengthTakesTheFirstPseudoQueries) {
  const DenseLayer layer = layer_with_passes({16});
  DenseLayer shorter = layer;
  for (auto& rows : shorter.lookahead["snapkv-16"]) rows.resize(3);
  shorter.geometry.lookaheads[0].queries = 3;
  const auto policy = prepared_policy("laq(length=3)");
  for (std::size_t u = 0; u < 2; ++u)
    EXPECT_EQ(score_layer(*policy, layer).units[u].score, score_layer(*policy, shorter).units[u].score);
  EXPECT_NE(score_layer(*policy, layer).units[0].score,
            score_layer(*prepared_policy("laq"), layer).units[0].score);
}

TEST(Laq, TakesAtEveryBudgetThePassOfTheNearestCapacityNotAboveIt) {
  const LayerGeometry layer = layer_with_passes({8, 16, 32}).geometry;
  const PassChoice any{""};
  for (const auto& [budget, name] : std::vector<std::pair<std::uint32_t, std::string>>{{1, "snapkv-8"},
                                                                                       {8, "snapkv-8"},
                                                                                       {15, "snapkv-8"},
                                                                                       {16, "snapkv-16"},
                                                                                       {31, "snapkv-16"},
                                                                                       {32, "snapkv-32"},
                                                                                       {999, "snapkv-32"}}) {
    EXPECT_EQ(any.at(layer, budget).name, name) << budget;
    EXPECT_EQ(lookahead_pass_at(*prepared_policy("laq"), layer, budget), name);
    EXPECT_EQ(lookahead_pass_at(*prepared_policy("ada(score=laq_pp)"), layer, budget), name);
    EXPECT_EQ(lookahead_pass_at(*prepared_policy("laq(lookahead=snapkv-16)"), layer, budget), "snapkv-16");
    EXPECT_EQ(lookahead_pass_at(*prepared_policy("snapkv(window=4)"), layer, budget), "");
  }
}

TEST(Laq, PrefersThePapersFirstPassWhereSeveralMethodsWereRecorded) {
  LayerGeometry layer = layer_with_passes({16}).geometry;
  layer.lookaheads.push_back({"streaming_llm-12", 12, 8});
  layer.lookaheads.push_back({"full", 40, 8});
  EXPECT_EQ(PassChoice{""}.at(layer, 13).name, "snapkv-16");
  EXPECT_EQ(PassChoice{"streaming_llm"}.at(layer, 13).name, "streaming_llm-12");
  EXPECT_EQ(PassChoice{"full"}.at(layer, 13).name, "full");
  EXPECT_TRUE(PassChoice{""}.by_budget());
  EXPECT_TRUE(PassChoice{"snapkv"}.by_budget());
  EXPECT_FALSE(PassChoice{"snapkv-16"}.by_budget());
}

TEST(Laq, OrdersEveryBudgetAsTheNamedPassDoes) {
  const DenseLayer layer = layer_with_passes({8, 16, 32});
  for (const std::string form :
       {"laq(lookahead={}", "laq_pp(lookahead={},window=4", "laq(lookahead={},unit=query",
        "ada(score=laq(lookahead={})", "compose(query=[window(4),lookahead(pass={})],unit=layer",
        "compose(query=lookahead(pass={}),heads=ada(0.3)"}) {
    const auto any = prepared_policy(fmt::format(fmt::runtime(form), "\"\"") + ")");
    EXPECT_TRUE(any->traits().order_by_budget);
    EXPECT_FALSE(any->traits().nested);
    const LayerRanking ranking = rank_layer(*any, layer.geometry, score_layer(*any, layer));
    for (const std::uint32_t budget : {4u, 8u, 12u, 16u, 33u}) {
      const std::string pass = lookahead_pass_at(*any, layer.geometry, budget);
      const auto named = prepared_policy(fmt::format(fmt::runtime(form), pass) + ")");
      EXPECT_FALSE(named->traits().order_by_budget);
      const LayerRanking expected = rank_layer(*named, layer.geometry, score_layer(*named, layer));
      const std::vector<std::uint32_t> kept = allocate(*any, layer, ranking, budget);
      EXPECT_EQ(kept, allocate(*named, layer, expected, budget)) << form << budget;
      EXPECT_EQ(order_at(*any, layer.geometry, ranking, {0, budget}, kept), expected.order) << form << budget;
    }
  }
}

TEST(LaqPlus, WithoutPseudoQueriesIsSnapKv) {  // reference, 7.5
  const DenseLayer layer = layer_with_passes({});
  const auto plus = prepared_policy("laq_pp(length=0,unit=query)"),
             snap = prepared_policy("snapkv(window=8,kernel=7,pool=max,unit=query)");
  const LayerRanking left = rank_layer(*plus, layer.geometry, score_layer(*plus, layer));
  const LayerRanking right = rank_layer(*snap, layer.geometry, score_layer(*snap, layer));
  EXPECT_EQ(left.order, right.order);
  EXPECT_FALSE(has(plus->needs(), Need::lookahead));
}

TEST(Laq, FedWithTheTrueDecodeQueriesIsTheOracle) {  // reference, 7.5: recall 1 against an oracle with T = 8
  DenseLayer layer = layer_with_passes({16});
  for (std::size_t h = 0; h < 6; ++h)
    for (std::size_t i = 0; i < 8; ++i)
      layer.lookahead["snapkv-16"][h][i] = layer.q[h][layer.geometry.prompt + i];
  const auto policy = prepared_policy("laq(unit=query)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  const std::size_t prompt = layer.geometry.prompt;
  for (std::size_t h = 0; h < 6; ++h) {
    std::vector<double> sum(prompt, 0.0);
    for (std::size_t i = 0; i < 8; ++i) {  // softmax of the true decode query over the prompt alone
      std::vector<double> weight(prompt);
      double total = 0;
      for (std::size_t t = 0; t < prompt; ++t) {
        double dot = 0;
        for (std::size_t c = 0; c < layer.geometry.key_dim; ++c)
          dot += layer.q[h][prompt + i][c] * layer.k[h / 3][t][c];
        total += weight[t] = std::exp(dot * layer.geometry.softmax_scale);
      }
      for (std::size_t t = 0; t < prompt; ++t) sum[t] += weight[t] / total;
    }
    const std::vector<double> ideal = pooled(sum, 7, false);
    for (const std::size_t budget : {5u, 13u, 20u}) {
      double kept = 0, best = 0;
      std::vector<double> sorted = ideal;
      std::sort(sorted.rbegin(), sorted.rend());
      for (std::size_t i = 0; i < budget; ++i) {
        kept += ideal[ranking.order[h][i]];
        best += sorted[i];
      }
      EXPECT_NEAR(kept, best, 1e-6) << "query head " << h << ", budget " << budget;
    }
  }
}

TEST(Laq, RefusesPassesAndLengthsThatAreNotThere) {
  const LayerGeometry layer = layer_with_passes({16, 32}).geometry;
  EXPECT_EQ(refusal("laq", &layer), "accepted");
  EXPECT_NE(refusal("laq(lookahead=snapkv-64)", &layer).find("it has snapkv-16, snapkv-32"),
            std::string::npos);
  EXPECT_NE(refusal("compose(query=lookahead(snapkv-64))", &layer).find("it has snapkv-16, snapkv-32"),
            std::string::npos);
  EXPECT_NE(refusal("laq(length=9)", &layer).find("holds 8 pseudo queries"), std::string::npos);
  EXPECT_NE(refusal("laq_pp(window=40)", &layer).find("needs a prompt of more than 40 tokens"),
            std::string::npos);
  EXPECT_NE(refusal("laq_pp(window=39,mask=repo)", &layer).find("needs as many prompt tokens"),
            std::string::npos);
  const LayerGeometry bare = layer_with_passes({}).geometry;
  EXPECT_NE(refusal("laq", &bare).find("--lookahead 8"), std::string::npos);
  EXPECT_NE(refusal("laq(kernel=4)").find("must be odd"), std::string::npos);
  EXPECT_NE(refusal("chunkkv(score=laq)").find("one order for all budgets"), std::string::npos);
  EXPECT_EQ(refusal("chunkkv(score=laq(lookahead=snapkv-16))"), "accepted");
}

}  // namespace
}  // namespace kvsim::test
