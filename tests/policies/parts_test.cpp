// Parts of compose against plain computations, what goes together, and what is computed once.
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/error.h"
#include "kernels/order.h"
#include "policies/compose_parts.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

/// Two passes, an output projection, budgets of a run.
DenseLayer full_layer() {
  DenseLayer layer = random_layer(40, 2, 3, 11, 12);
  layer.geometry.lookaheads = {{"snapkv-6", 6, 8}, {"snapkv-12", 12, 8}};
  layer.budgets = {4, 8, 12, 24};
  Philox random(3, 3);
  for (const LookaheadPass& pass : layer.geometry.lookaheads) {
    for (std::size_t h = 0; h < 6; ++h) {
      auto& rows = layer.lookahead[pass.name].emplace_back(8, std::vector<double>(8));
      for (auto& row : rows)
        for (double& x : row) x = 6 * random.next_double() - 3;
    }
  }
  for (std::size_t h = 0; h < 6; ++h) {
    auto& rows = layer.output_projection.emplace_back(8, std::vector<double>(5));
    for (auto& row : rows)
      for (double& x : row) x = 2 * random.next_double() - 1;
  }
  return layer;
}

std::vector<float> scores_of(std::string_view spec, const DenseLayer& layer, std::uint32_t kv = 0) {
  const DenseFeatures head(layer, kv);
  const auto policy = prepared_policy(spec);
  std::vector<UnitScores> out(policy->unit() == Unit::query ? layer.geometry.group : 1);
  policy->score(head, out);
  return out[0].score;
}

/// The first scores, as many as are expected.
void expect_scores(std::string_view spec, const DenseLayer& layer, const Row& expected,
                   double tolerance = 2e-6) {
  const std::vector<float> got = scores_of(spec, layer);
  ASSERT_GE(got.size(), expected.size()) << spec;
  expect_row(std::span(got).first(expected.size()), expected, tolerance, std::string(spec));
}

/// One query head of one KV head, for rows written by hand: keys are unit vectors and queries logits.
DenseLayer rows_layer(const std::vector<Row>& weights) {
  DenseLayer layer;
  LayerGeometry& g = layer.geometry;
  const std::size_t n = weights.front().size();
  g.prompt = g.key_dim = n;
  g.value_dim = 1;
  g.recorded_layers = {0};
  layer.fill(
      [&](std::size_t, std::size_t t, std::size_t c) {
        const std::size_t first = n - weights.size();
        const double a = t < first ? 1.0 : weights[t - first][c];
        return a > 0 ? std::log(a) : -60.0;
      },
      [](std::size_t, std::size_t t, std::size_t c) { return t == c ? 1.0 : 0.0; },
      [](std::size_t, std::size_t, std::size_t) { return 1.0; });
  return layer;
}

TEST(Parts, GoldenG1PoolingOfSnapKv) {  // reference, 3.5 and Appendix A; two more columns so that rows sum to
                                        // 1 and see all
  const std::vector<Row> rows{{.30, .05, .02, .20, .01, .02, .40, 0}, {.10, .05, .08, .30, .01, .06, .40, 0}};
  const DenseLayer layer = rows_layer(rows);
  expect_scores("compose(query=window(2),reduce=[sum,group],recent=2)", layer, {.4, .1, .1, .5, .02, .08});
  expect_scores("compose(query=window(2),reduce=[sum,max(3),group],recent=2)", layer,
                {.4, .4, .5, .5, .5, .08});
  expect_scores("compose(query=window(2),reduce=[sum,avg(3),group],recent=2)", layer,
                {.166667, .2, .233333, .206667, .2, .033333});
}

TEST(Parts, GoldenG3MeanAndVarianceOfCake) {  // reference, 2.3 and Appendix A: indicator of L1
  const DenseLayer layer = rows_layer({{.6, .1, .05, .25, 0}, {.1, .6, .05, .25, 0}});
  expect_scores("compose(query=window(2),reduce=[meanvar(200),group],recent=2)", layer, {25.35, 25.35, .05},
                1e-5);
  expect_scores("compose(query=window(2),reduce=[meanvar(0),group],recent=2)", layer, {.35, .35, .05});
}

TEST(Parts, FoldsEqualThePlainComputation) {
  const DenseLayer layer = full_layer();
  const DenseFeatures head(layer, 0);
  const QueryRows window{.count = 5},
      pseudo{.source = QueryRows::Source::lookahead, .count = 8, .pass = "snapkv-12"};
  const auto folded = [&](auto fold) {
    Row out(40);
    for (std::size_t h = 0; h < 3; ++h) {
      const MatrixView<const float> a = head.attention(window, h), b = head.attention(pseudo, h);
      for (std::size_t t = 0; t < 40; ++t) {
        Row all;
        for (std::size_t i = 0; i < 5; ++i) all.push_back(static_cast<double>(a(t, i)));
        for (std::size_t i = 0; i < 8; ++i) all.push_back(static_cast<double>(b(t, i)));
        out[t] += fold(all) / 3;
      }
    }
    return out;
  };
  const std::string query = "compose(query=[window(5),lookahead(snapkv-12)],reduce=[";
  const auto sum = [](const Row& x) { return std::accumulate(x.begin(), x.end(), 0.0); };
  expect_scores(query + "sum,group])", layer, folded(sum));
  expect_scores(query + "mean,group])", layer, folded([&](const Row& x) { return sum(x) / 13; }));
  expect_scores(query + "max,group])", layer,
                folded([](const Row& x) { return *std::max_element(x.begin(), x.end()); }));
  expect_scores(query + "last,group])", layer, folded([](const Row& x) { return x.back(); }));
  expect_scores(query + "squares,group])", layer,
                folded([](const Row& x) { return std::inner_product(x.begin(), x.end(), x.begin(), 0.0); }));
  expect_scores(query + "meanvar(3),group])", layer, folded([&](const Row& x) {
                  const double mean = sum(x) / 13;
                  double variance = 0;
                  for (const double v : x) variance += (v - mean) * (v - mean) / 12;
                  return mean + 3 * variance;
                }));
}

TEST(Parts, AllPromptQueriesFoldTileByTile) {
  const DenseLayer layer = full_layer();
  const DenseFeatures head(layer, 0);
  Row squares(40), counts(40);
  for (std::size_t h = 0; h < 3; ++h) {
    head.each_prompt_tile(h, [&](const PromptTile& tile) {
      for (std::size_t t = 0; t <= tile.first; ++t) {
        const double a = static_cast<double>(tile.weights(t, 0));
        squares[t] += a * a / 3;
        counts[t] += a * static_cast<double>(tile.first + 1) >= 1 ? 1.0 / 3 : 0.0;
      }
    });
  }
  expect_scores("compose(query=all,reduce=[squares,group])", layer, squares);
  expect_scores("compose(base=indicator(above),query=all,reduce=[count,group])", layer, counts);
}

TEST(Parts,
     ScissorhandsCountsWhoGetsLessThanItsShare) {  // reference, 3.4 and G14: low counts [1,3,2,1,0] of t = 5
  // As pseudo queries, which see all five keys.
  DenseLayer layer = rows_layer({{.2, .2, .2, .2, .2}});
  layer.geometry.lookaheads = {{"snapkv-2", 2, 3}};
  layer.lookahead["snapkv-2"].emplace_back();
  for (const Row& row : {Row{.4, .1, .1, .201, .199}, Row{.5, .05, .05, .1, .3}, Row{.1, .05, .25, .3, .3}}) {
    layer.lookahead["snapkv-2"][0].emplace_back();
    for (const double a : row) layer.lookahead["snapkv-2"][0].back().push_back(std::log(a));
  }
  expect_scores("compose(base=indicator(below),query=lookahead(pass=snapkv-2,length=3),reduce=[count,group])",
                layer, {1, 3, 2, 1, 1});
  expect_scores(
      "compose(base=indicator(below),query=lookahead(pass=snapkv-2,length=3),reduce=[count,minus,group])",
      layer, {-1, -3, -2, -1, -1});
}

TEST(Parts, LogitMaximumAndSoftmaxOverTheOlderTokens) {  // R-KV's importance, reference 3.10
  const DenseLayer layer = full_layer();
  Row importance(40 - 6);
  for (std::size_t i = 0; i < 6; ++i) {
    Row logit(40 - 6, -1e300);
    for (std::size_t h = 0; h < 3; ++h)
      for (std::size_t t = 0; t < logit.size(); ++t) {
        double dot = 0;
        for (std::size_t c = 0; c < 8; ++c) dot += layer.q[h][34 + i][c] * layer.k[0][t][c];
        logit[t] = std::max(logit[t], dot * layer.geometry.softmax_scale);
      }
    double sum = 0;
    for (double& x : logit) sum += x = std::exp(x);
    for (std::size_t t = 0; t < logit.size(); ++t) importance[t] += logit[t] / sum / 6;
  }
  const std::string parts = "compose(base=logit,query=window(6),reduce=[group(logit_max),softmax(older),mean";
  expect_scores(parts + "],recent=6)", layer, importance);
  expect_scores(parts + ",max(7)],recent=6)", layer, pooled(importance, 7, false));
}

TEST(Parts, GoldenG9RedundancyOfRKv) {  // reference, 3.10 and Appendix A
  DenseLayer layer;
  layer.geometry.prompt = 5;
  layer.geometry.key_dim = layer.geometry.value_dim = 2;
  const double keys[5][2] = {{1, 0}, {.9, .1}, {0, 1}, {1, .05}, {0, -1}};
  layer.fill([](std::size_t, std::size_t, std::size_t) { return 0.0; },
             [&](std::size_t, std::size_t t, std::size_t c) { return keys[t][c]; },
             [](std::size_t, std::size_t, std::size_t) { return 0.0; });
  const DenseFeatures head(layer, 0);
  const std::span<const float> got = key_redundancy(head, 0.5);
  const Row expected{.278548, .228112, .158085, .186991, .148263};
  for (std::size_t t = 0; t < 5; ++t) EXPECT_NEAR(static_cast<double>(got[t]), expected[t], 2e-6);
  std::vector<Row> rows{{.10, .40, .20, .20, .10}};
  mix_redundancy({.lambda = 0.1, .threshold = 0.5}, head, rows);
  const Row mixed{-.240693, -.165301, -.122277, -.148292, -.123437};
  for (std::size_t t = 0; t < 5; ++t) EXPECT_NEAR(rows[0][t], mixed[t], 2e-6);
}

TEST(Parts, GoldenG4ValuesWeighTheScore) {  // reference, 2.4, 2.5 and Appendix A: one query over three tokens
  DenseLayer layer;
  layer.geometry.prompt = 3;
  layer.geometry.key_dim = layer.geometry.value_dim = 2;
  layer.geometry.softmax_scale = 1 / std::sqrt(2.0);
  layer.geometry.lookaheads = {{"full", 3, 1}};
  const double keys[3][2] = {{2, 0}, {0, 1}, {-1, 0}}, values[3][2] = {{1, 0}, {0, 2}, {3, 3}};
  layer.fill([](std::size_t, std::size_t, std::size_t) { return 1.0; },
             [&](std::size_t, std::size_t t, std::size_t c) { return keys[t][c]; },
             [&](std::size_t, std::size_t t, std::size_t c) { return values[t][c]; });
  layer.lookahead["full"] = {{{1, 1}}};
  const std::string query = "query=lookahead(pass=full,length=1),reduce=[sum,group]";
  expect_scores("compose(" + query + ",value=l1)", layer, {.619985, .611391, .445918});
  expect_scores("compose(" + query + ",value=caote)", layer, {1.385127, .633359, .245405});
  expect_scores("compose(" + query + ",value=fast_caote)", layer, {2.772976, .605120, .171361}, 3e-6);
  expect_scores("compose(query=lookahead(pass=full,length=1),reduce=[squares,group],value=l2sq)", layer,
                {.384382, .373798, .099421});
  expect_scores("compose(base=obd(value)," + query + ")", layer, {.384382, .373798, .099421});
  expect_scores("compose(base=obd(key)," + query + ")", layer, {.554129, .096687, .025802});
  expect_scores("compose(base=obd(joint)," + query + ")", layer, {1.109261, .778585, .023926});
}

TEST(Parts, ProxiesAreTheFirstAndTheLastQueries) {
  const DenseLayer layer = full_layer();
  const DenseFeatures head(layer, 0);
  Row sum(40);
  for (std::size_t h = 0; h < 3; ++h) {
    head.each_prompt_tile(h, [&](const PromptTile& tile) {
      if (tile.first < 3 || tile.first >= 36)
        for (std::size_t t = 0; t <= tile.first; ++t) sum[t] += static_cast<double>(tile.weights(t, 0)) / 3;
    });
  }
  expect_scores("compose(query=proxy(first=3,last=4),reduce=[sum,group])", layer, sum);
}

TEST(Parts, ForcedTokensAndRecentSharesAreKeptFirst) {
  const DenseLayer layer = full_layer();
  const auto policy = prepared_policy(
      "compose(query=window(4),reduce=[mean,group],sinks=2,recent_share=0.5,forced=[17,99,1])");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  EXPECT_EQ(ranking.scores.units[0].protected_tokens, (std::vector<TokenIndex>{0, 1, 17}));
  const std::vector<std::uint32_t> kept = allocate(*policy, layer, ranking, 8);
  const auto order = order_at(*policy, layer.geometry, ranking, {1, 8}, kept)[0];
  EXPECT_EQ((std::vector<TokenIndex>(order.begin(), order.begin() + 7)),
            (std::vector<TokenIndex>{0, 1, 39, 38, 37, 36, 17}));
}

TEST(Parts, CakeWithoutVarianceIsSnapKv) {  // reference, 7.5
  const DenseLayer layer = full_layer();
  for (std::uint32_t kv = 0; kv < 2; ++kv)
    EXPECT_EQ(
        scores_of("compose(query=window(32),reduce=[meanvar(0),avg(5),group(mean)],recent=32)", layer, kv),
        scores_of("snapkv(window=32)", layer, kv));
}

TEST(Parts, SumAndMeanRankAlike) {  // reference, 7.5: positive scaling
  const DenseLayer layer = full_layer();
  const auto sum =
      prepared_policy("compose(query=[window(8),lookahead(snapkv-6)],reduce=[sum,max(5),group])");
  const auto mean =
      prepared_policy("compose(query=[window(8),lookahead(snapkv-6)],reduce=[mean,max(5),group])");
  const LayerRanking a = rank_layer(*sum, layer.geometry, score_layer(*sum, layer));
  const LayerRanking b = rank_layer(*mean, layer.geometry, score_layer(*mean, layer));
  EXPECT_EQ(a.order, b.order);
}

TEST(Parts, RefuseWhatMakesNoSenseTogether) {  // reference, 7.6
  const std::vector<std::pair<std::string, std::string>> cases{
      {"compose(query=[all,window(4)])", "stands alone"},
      {"compose(query=[window(4),window(8)])", "twice"},
      {"compose(query=[window(4),current])", "overlap"},
      {"compose(query=[lookahead(mask=repo),window(4)])", "put lookahead last"},
      {"compose(query=window(4),reduce=[mean])", "needs a group"},
      {"compose(query=window(4),reduce=[mean,group,group])", "joined twice"},
      {"compose(query=window(4),reduce=[mean,sum,group])", "and no other"},
      {"compose(query=window(4),reduce=[avg(3),mean,group])", "must begin"},
      {"compose(query=window(4),reduce=[mean,softmax,group])", "stand before"},
      {"compose(query=window(4),reduce=[visible,group])", "needs query=all"},
      {"compose(query=window(4),reduce=[count,group])", "base=indicator"},
      {"compose(query=window(4),reduce=[sum,minus,group])", "minus"},
      {"compose(query=current,reduce=[meanvar,group])", "several queries"},
      {"compose(query=window(4),reduce=[group(logit_max),mean])", "base=logit"},
      {"compose(base=logit,query=all,reduce=[mean,group])", "every pair"},
      {"compose(base=logit,query=window(4),reduce=[mean,group],value=l1)", "negative"},
      {"compose(base=logit,query=window(4),reduce=[group(logit_max),softmax(older),mean])", "recent=n"},
      {"compose(base=indicator(above),query=window(4),reduce=[count,group],value=l1)",
       "no share of any output"},
      {"compose(base=position,value=l1)", "no share of any output"},
      {"compose(base=knorm,value=l2)", "negative"},
      {"compose(base=knorm,query=window(4))", "reads no queries"},
      {"compose(base=obd(joint),query=window(4),reduce=[max,group])", "write sum"},
      {"compose(base=obd(joint),query=window(4),value=l1)", "holds the values already"},
      {"compose(query=window(4),reduce=[mean,value(l1),group],value=l2)", "twice"},
      {"compose(query=window(4),select=two_stage)", "value=wo"},
      {"compose(query=window(4),unit=layer,heads=ada)", "unit=kv or unit=query"},
      {"compose(score=laq,sinks=4)", "another order at every budget"},
      {"compose(query=proxy(first=0,last=0))", "needs some queries"}};
  for (const auto& [spec, words] : cases)
    EXPECT_NE(refusal(spec).find(words), std::string::npos) << spec << ": " << refusal(spec);
}

/// Every example of help, and every preset, is a line that binds, prints and scores.
TEST(Parts, ExamplesOfHelpWork) {
  const DenseLayer layer = random_layer(90, 1, 2, 4, 12);
  const std::string page = explain_parts();
  std::istringstream lines(page);
  std::size_t examples = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::size_t at = line.find("compose(");
    if (at == std::string::npos) continue;
    ++examples;
    EXPECT_EQ(refusal(line.substr(at)), "accepted") << line;
  }
  EXPECT_GT(examples, 35u);
}

/// Counts what is computed rather than found.
class CountingFeatures final : public MeansOf {
 public:
  using MeansOf::MeansOf;
  MatrixView<const float> values() const override { return ++values_read, head_.values(); }
  MatrixView<const float> queries(const QueryRows& rows, std::size_t h) const override {
    return ++queries_read, head_.queries(rows, h);
  }
  MatrixView<const float> attention(const QueryRows& rows, std::size_t h) const override {
    return ++rows_folded, head_.attention(rows, h);
  }
  std::span<const std::uint32_t> budgets() const override { return head_.budgets(); }

  mutable int values_read = 0, queries_read = 0, rows_folded = 0;
};

TEST(SharedParts, AreComputedOnceForAllVariants) {
  const DenseLayer layer = full_layer();
  const DenseFeatures dense(layer, 0);
  const CountingFeatures head(dense);
  const auto score = [&](const std::string& spec) {
    const auto policy = prepared_policy(spec);
    std::vector<UnitScores> out(policy->unit() == Unit::query ? 3 : 1);
    policy->score(head, out);
  };
  const std::string query = "query=lookahead(snapkv-12)";
  // Sum over the pseudo queries: once per query head, whatever pools, joins, weighs or protects behind it.
  for (const char* rest :
       {"reduce=[sum,group]", "reduce=[sum,max(7),group(max)]", "reduce=[sum,avg(5),group],recent=3",
        "reduce=[sum],unit=query", "reduce=[sum,group],heads=ada", "reduce=[sum,group,max(3)],sinks=2"})
    score(fmt::format("compose({},{})", query, rest));
  score("laq(lookahead=snapkv-12)");
  EXPECT_EQ(head.rows_folded, 3);
  // Norms of the values: once per norm.
  for (const char* value : {"l1", "l2", "l1", "l2", "l2sq"})
    score(fmt::format("compose({},reduce=[sum,group],value={})", query, value));
  EXPECT_EQ(head.values_read, 3);
  EXPECT_EQ(head.rows_folded, 3);
  // Logits: once per query head.
  for (const char* rest :
       {"reduce=[mean,group]", "reduce=[max,group]", "reduce=[group(logit_max),softmax,mean]"})
    score(fmt::format("compose(base=logit,{},{})", query, rest));
  EXPECT_EQ(head.queries_read, 3);
}

}  // namespace
}  // namespace kvsim::test
