// Budgets over heads and layers: worked examples of the papers' codes, brute force, conservation of the total.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <tuple>

#include "kernels/error.h"
#include "kernels/philox.h"
#include "policies/layer_preference.h"
#include "policies/model_pool.h"
#include "policies/registry.h"
#include "policies/stop_signal.h"
#include "tests/policies/given_attention.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

using Counts = std::vector<std::uint32_t>;

/// Prepared with these files, which live as long as the program: the policy goes on to use them.
std::unique_ptr<Policy> policy_with(std::string_view spec, Arrays files = {}) {
  static std::vector<std::unique_ptr<Arrays>> kept;
  kept.push_back(std::make_unique<Arrays>(std::move(files)));
  std::unique_ptr<Policy> policy = policy_of(spec);
  policy->prepare(*kept.back());
  return policy;
}

/// A made-up ranking of `units` random units in layer `place` of four.
LayerRanking random_ranking(const Policy& policy, LayerGeometry& layer, std::size_t place, std::size_t units, std::size_t guarded = 0) {
  layer.recorded_layers = {0, 1, 2, 3};
  layer.layer = static_cast<std::uint32_t>(place);
  layer.kv_heads = units;
  LayerScores scores;
  for (std::size_t u = 0; u < units; ++u) {
    UnitScores& unit = scores.units.emplace_back();
    Philox random(3, stream_of(place, u));
    for (std::size_t t = 0; t < layer.prompt; ++t)
      unit.score.push_back(static_cast<float>(std::floor(random.next_double() * 40 * static_cast<double>(place + 1)) / 16));  // with ties
    for (std::size_t i = 0; i < guarded; ++i) unit.protected_tokens.push_back(static_cast<TokenIndex>(i));
  }
  return rank_layer(policy, layer, std::move(scores));
}

Counts counts_at(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget) {
  Counts kept(ranking.order.size());
  policy.allocate(layer, ranking, budget, kept);
  return kept;
}

// Reference, Appendix A, G3: one head, two queries, three candidates (and the two window tokens).
const std::vector<std::vector<std::vector<double>>> kCakeRows{{{.30, .25, .20, 0, 0}, {.20, .25, .30, 0, 0}},
                                                              {{.60, .10, .05, 0, 0}, {.10, .60, .05, 0, 0}},
                                                              {{.90, .03, .02, 0, 0}, {.80, .08, .05, 0, 0}}};

TEST(LayerPreference, GivesTheWorkedExampleOfCake) {
  const double expected[3][3] = {{2.0593, .010000, .020593}, {1.37308, .250000, .343270}, {.80862, .006700, .005418}};
  std::vector<std::vector<float>> summaries;
  for (std::size_t l = 0; l < 3; ++l) {
    const AttentionSpread spread = attention_spread(GivenAttention({kCakeRows[l]}), {{.source = QueryRows::Source::window, .count = 2}}, 3);
    EXPECT_NEAR(spread.entropy, expected[l][0], 5e-5);
    EXPECT_NEAR(spread.variance, expected[l][1], 2e-6);
    EXPECT_NEAR(LayerPreference().preference(spread), expected[l][2], 2e-6);
    summaries.push_back(spread.to_floats());
  }
  // total = 96 * 3, cap 200; stages [200], [88,200], [51,200,37].
  std::vector<double> preference;
  for (const std::vector<float>& four : summaries) preference.push_back(LayerPreference().preference(AttentionSpread::from_floats(four)));
  EXPECT_EQ(share_by_preference(std::span(preference).first(1), 288, 200), (Counts{200}));
  EXPECT_EQ(share_by_preference(std::span(preference).first(2), 288, 200), (Counts{88, 200}));
  EXPECT_EQ(share_by_preference(preference, 288, 200), (Counts{51, 200, 37}));
  for (const bool cascade : {false, true})
    for (std::size_t l = 0; l < 3; ++l)
      EXPECT_EQ((LayerPreference{1, 1, cascade}.tokens(summaries, l, 98, 2, 202)), (Counts{53, 202, 39})[l]);
}

TEST(LayerPreference, TakesTheReciprocalsOfTheTemperatures) {
  EXPECT_DOUBLE_EQ((LayerPreference{2, 0.5, false}.preference({16, 3})), 4.0 * 9.0);
}

TEST(LayerPreference, CascadesToTheLeastOfAllStages) {
  Philox random(11, 1);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::vector<float>> summaries;
    std::vector<double> preference;
    for (int l = 0; l < 6; ++l) {
      summaries.push_back(AttentionSpread{std::exp(6 * random.next_double()), 1}.to_floats());
      preference.push_back(LayerPreference().preference(AttentionSpread::from_floats(summaries.back())));
    }
    std::uint64_t once = 0, cascaded = 0;
    for (std::size_t l = 0; l < 6; ++l) {
      once += LayerPreference{1, 1, false}.tokens(summaries, l, 40, 8, 100);
      const std::uint32_t own = LayerPreference{1, 1, true}.tokens(summaries, l, 40, 8, 100);
      cascaded += own;
      std::uint32_t least = 1000;
      for (std::size_t m = l; m < 6; ++m) least = std::min(least, share_by_preference(std::span(preference).first(m + 1), 32 * 6, 92)[l]);
      EXPECT_EQ(own, least + 8);
    }
    EXPECT_EQ(once, 40u * 6);
    EXPECT_LE(cascaded, once);
  }
}

TEST(ShareByPreference, KeepsAnyTotalThatFits) {
  Philox random(7, 1);
  for (int round = 0; round < 200; ++round) {
    std::vector<double> preference;
    const std::uint32_t layers = 1 + random.next_below(9), cap = 1 + random.next_below(50);
    for (std::uint32_t l = 0; l < layers; ++l) preference.push_back(random.next_below(5) == 0 ? 0.0 : std::exp(20 * random.next_double()));
    const std::uint64_t total = random.next_below(layers * cap + 1);
    const Counts counts = share_by_preference(preference, total, cap);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}), total);
    EXPECT_LE(*std::max_element(counts.begin(), counts.end()), cap);
  }
}

TEST(Cake, ScoresByMeanAndVariance) {
  const DenseLayer layer = random_layer(30, 1, 1, 8);
  const DenseFeatures head(layer, 0);
  std::vector<UnitScores> out(1);
  prepared_policy("cake(window=4,kernel=1)")->score(head, out);
  const MatrixView<const float> rows = head.attention({.source = QueryRows::Source::window, .count = 4}, 0);
  for (std::size_t t = 0; t < 26; ++t) {
    double mean = 0, squares = 0;
    for (std::size_t r = 0; r < 4; ++r) mean += static_cast<double>(rows(t, r)) / 4;
    for (std::size_t r = 0; r < 4; ++r) squares += std::pow(static_cast<double>(rows(t, r)) - mean, 2) / 3;
    EXPECT_NEAR(out[0].score[t], mean + 200 * squares, 1e-5);
  }
}

TEST(Cake, IsSnapKvWithoutVarianceAndPreference) {
  const DenseLayer layer = random_layer(80, 2, 3, 5);
  const auto cake = prepared_policy("cake(window=16,gamma=0)"), snapkv = prepared_policy("snapkv(window=16)");
  LayerRanking ours = rank_layer(*cake, layer.geometry, score_layer(*cake, layer, true));
  const LayerRanking theirs = rank_layer(*snapkv, layer.geometry, score_layer(*snapkv, layer));
  EXPECT_EQ(ours.order, theirs.order);
  const std::vector<std::vector<float>> alike(4, cake->summarise(layer.geometry, ours));
  ours.summaries = alike;
  for (const std::uint32_t budget : {3u, 16u, 40u, 80u, 100u})
    EXPECT_EQ(counts_at(*cake, layer.geometry, ours, budget), counts_at(*snapkv, layer.geometry, theirs, budget));
}

// Reference, Appendix A, G5.
const std::vector<std::vector<std::vector<double>>> kStopRows{{{.30, .05, .05, .05, .01, .02, .02, .05, .15, .30}},
                                                              {{.40, .02, .02, .02, .02, .01, .03, .08, .10, .30}}};

TEST(DBudgetKv, StopsWhereTheWorkedExampleDoes) {
  const GivenAttention head(kStopRows);
  const struct {
    const char* spec;
    std::uint32_t cut;
    double signal;
  } cases[]{{"dbudgetkv(threshold=0.01)", 3, .005179},
            {"dbudgetkv", 4, .025617},
            {"dbudgetkv(threshold=0.01,protected=true)", 3, .002373},
            {"dbudgetkv(protected=true)", 5, .047311},
            {"dbudgetkv(threshold=0)", 0, 0}};
  for (const auto& [spec, cut, signal] : cases) {
    const auto policy = prepared_policy(spec);
    LayerScores scores;
    scores.units.resize(1);
    policy->score(head, scores.units);
    policy->join(head.geometry(), scores);
    const LayerRanking ranking = rank_layer(*policy, head.geometry(), std::move(scores));
    const Counts kept = counts_at(*policy, head.geometry(), ranking, 10);
    EXPECT_EQ(kept[0], 10 - cut) << spec;
    EXPECT_NEAR(dynamic_cast<const StopSignal&>(*policy).stop_signal(head.geometry(), ranking, 10, kept), signal, 2e-6) << spec;
    EXPECT_EQ(counts_at(*policy, head.geometry(), ranking, 5)[0], 5u) << "the budget is the most it keeps";
  }
}

TEST(DBudgetKv, CutsTheSameNumberOfAnyRanking) {
  const DenseLayer layer = random_layer(60, 2, 2, 9);
  const auto policy = prepared_policy("dbudgetkv(score=knorm,threshold=0.3)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const Counts kept = counts_at(*policy, layer.geometry, ranking, 60);
  EXPECT_EQ(kept[0], kept[1]);
  // By definition, over all four query heads.
  const auto norm = [&](std::size_t left) {
    double sum = 0;
    for (std::uint32_t kv = 0; kv < 2; ++kv)
      for (std::size_t h = 0; h < 2; ++h) {
        const DenseFeatures head(layer, kv);
        double squares = 0;
        for (std::size_t i = 0; i < left; ++i) squares += std::pow(head.attention({.count = 1}, h)(ranking.order[kv][i], 0), 2);
        sum += std::sqrt(squares);
      }
    return sum;
  };
  std::size_t cut = 0;
  while (cut < 60 && (norm(60) - norm(60 - cut - 1)) / norm(60) <= 0.3) ++cut;
  EXPECT_GT(cut, 3u);
  EXPECT_EQ(kept[0], 60 - cut);
}

TEST(DBudgetKv, RefusesScoresWithoutOneOrder) {
  EXPECT_THROW(prepared_policy("dbudgetkv(score=cake)"), UserError);
  EXPECT_THROW(prepared_policy("dbudgetkv(score=laq)"), UserError);
}

TEST(Pool, IsAdaKvWithAGuaranteeOverALayer) {
  const auto pool = prepared_policy("pool(score=knorm,floor=0.25)"), ada = prepared_policy("ada(score=knorm,alpha=0.25)");
  LayerGeometry layer;
  layer.prompt = 50;
  const LayerRanking ranking = random_ranking(*pool, layer, 1, 3);
  for (std::uint32_t budget = 1; budget < 55; ++budget) EXPECT_EQ(counts_at(*pool, layer, ranking, budget), counts_at(*ada, layer, ranking, budget));
}

TEST(Pool, TakesTheBestOfTheWholeModel) {
  const auto pool = prepared_policy("pool(score=knorm,over=model,floor=0.2)");
  std::vector<LayerGeometry> layers(4);
  std::vector<LayerRanking> rankings;
  std::vector<std::vector<float>> summaries;
  for (std::size_t l = 0; l < 4; ++l) {
    layers[l].prompt = 30;
    rankings.push_back(random_ranking(*pool, layers[l], l, 2, 3));
    summaries.push_back(pool->summarise(layers[l], rankings[l]));
  }
  for (std::uint32_t budget = 1; budget <= 33; ++budget) {
    const std::uint32_t mean = std::min(budget, 30u), floor = mean / 5;
    // Brute force: what every unit has for certain, then protected tokens by place, then scores; ties by place, layer, unit.
    std::vector<std::tuple<int, double, std::size_t, std::size_t>> tokens;
    for (std::size_t l = 0; l < 4; ++l)
      for (std::size_t u = 0; u < 2; ++u)
        for (std::size_t i = 0; i < 30; ++i) {
          const double score = static_cast<double>(rankings[l].scores.units[u].score[rankings[l].order[u][i]]);
          const bool certain = i < floor, guarded = i < 3;
          tokens.emplace_back(certain ? 0 : guarded ? 1 : 2, certain || guarded ? 0.0 : -score, i, l * 2 + u);
        }
    std::sort(tokens.begin(), tokens.end());
    Counts expected(8, 0);
    for (std::size_t i = 0; i < mean * 8; ++i) ++expected[std::get<3>(tokens[i])];
    Counts got;
    for (std::size_t l = 0; l < 4; ++l) {
      rankings[l].summaries = summaries;
      for (const std::uint32_t count : counts_at(*pool, layers[l], rankings[l], budget)) got.push_back(count);
    }
    EXPECT_EQ(got, expected) << "budget " << budget;
  }
}

TEST(KvZip, RanksTheLargestWeightOverTheGroupAfterTheSinks) {
  DenseLayer layer = random_layer(12, 2, 2, 4);
  layer.geometry.second_pass = {"kvzip"};
  for (std::size_t h = 0; h < 4; ++h) {
    auto& row = layer.second_pass["kvzip"].emplace_back();
    for (std::size_t t = 0; t < 12; ++t) row.push_back(static_cast<float>((t * 7 + h * 5) % 12) / 12);
  }
  const auto policy = prepared_policy("kvzip(sinks=2)");
  EXPECT_NO_THROW(policy->check(layer.geometry));
  EXPECT_THROW(prepared_policy("kvzip(plus=true)")->check(layer.geometry), UserError);
  const LayerScores scores = score_layer(*policy, layer, true);
  for (std::size_t u = 0; u < 2; ++u)
    for (std::size_t t = 0; t < 12; ++t) {
      const auto& rows = layer.second_pass["kvzip"];
      EXPECT_EQ(scores.units[u].score[t], t < 2 ? 1e9f : std::max(rows[2 * u][t], rows[2 * u + 1][t]));
    }
}

TEST(KvCompose, CountsCompositesOverAllLayers) {
  // Two heads, four tokens. Sorted scores: layer 0 (.9 .5 .2 .1) and (.7 .3 .2 .0), layer 1 (.8 .8 .6 .1) and (.4 .4 .4 .3).
  // Composites: (.8 .4 .2 .05) and (.6 .6 .5 .2); layer 0 takes the maximum: (.8 .6 .5 .2).
  const auto policy = prepared_policy("kvcompose(across=false)");
  LayerGeometry layer;
  layer.prompt = 4;
  layer.kv_heads = 2;
  layer.recorded_layers = {0, 1};
  const std::vector<std::vector<std::vector<float>>> scores{{{.5f, .9f, .1f, .2f}, {.7f, .0f, .3f, .2f}}, {{.8f, .8f, .6f, .1f}, {.4f, .3f, .4f, .4f}}};
  std::vector<LayerRanking> rankings;
  std::vector<std::vector<float>> summaries;
  for (const auto& heads : scores) {
    LayerScores of;
    for (const auto& row : heads) of.units.push_back({row, {}, {}, {}});
    rankings.push_back(rank_layer(*policy, layer, std::move(of)));
    summaries.push_back(policy->summarise(layer, rankings.back()));
  }
  const auto counts = [&](std::uint32_t budget) {
    Counts all;
    for (std::uint32_t l = 0; l < 2; ++l) {
      layer.layer = l;
      rankings[l].summaries = summaries;
      for (const std::uint32_t count : counts_at(*policy, layer, rankings[l], budget)) all.push_back(count);
    }
    return all;
  };
  EXPECT_EQ(counts(1), (Counts{1, 1, 1, 1}));  // .8, then .6 of layer 1: its first place comes before layer 0's second
  EXPECT_EQ(counts(2), (Counts{2, 2, 2, 2}));  // .8, .6, .6, .6
  EXPECT_EQ(counts(3), (Counts{3, 3, 3, 3}));
}

TEST(KvCompose, AddsTheMeanOverTheHeads) {
  const auto policy = prepared_policy("kvcompose");
  LayerScores scores;
  scores.units.push_back({{1.0f, 2.0f}, {}, {}, {}});
  scores.units.push_back({{3.0f, 0.0f}, {}, {}, {}});
  policy->join({}, scores);
  EXPECT_EQ(scores.units[0].score, (std::vector<float>{3.0f, 3.0f}));
  EXPECT_EQ(scores.units[1].score, (std::vector<float>{5.0f, 1.0f}));
}

LayerGeometry four_layers(std::size_t prompt, std::size_t heads, std::uint32_t own) {
  LayerGeometry layer;
  layer.prompt = prompt;
  layer.kv_heads = heads;
  layer.model_layers = 4;
  layer.recorded_layers = {0, 1, 2, 3};
  layer.layer = own;
  return layer;
}

TEST(Duo, GivesWholePromptsToTheBestHeads) {
  Arrays files;
  files.of["/p"] = {{4, 2}, {.1f, .9f, .3f, .3f, .0f, .2f, .8f, .1f}};
  const auto policy = policy_with("duo(file=f,dataset=/p,sinks=4,recent=8)", files);
  const DenseLayer dense = random_layer(60, 2, 2, 3);
  const LayerRanking ranking = rank_layer(*policy, dense.geometry, score_layer(*policy, dense, true));
  EXPECT_EQ(kept_tokens(ranking, 0, 12), (std::vector<TokenIndex>{0, 1, 2, 3, 52, 53, 54, 55, 56, 57, 58, 59}));
  Counts all;
  for (std::uint32_t l = 0; l < 4; ++l)
    for (const std::uint32_t count : counts_at(*policy, four_layers(60, 2, l), ranking, 20)) all.push_back(count);
  // 8 heads of 12 leave 64 of 160 tokens: 48 for the best head, 16 for the second.
  EXPECT_EQ(all, (Counts{12, 60, 12, 12, 12, 12, 28, 12}));
  EXPECT_EQ(counts_at(*policy, four_layers(60, 2, 0), ranking, 7), (Counts{7, 7}));
  EXPECT_THROW(policy->check(four_layers(60, 3, 0)), UserError);
}

TEST(Duo, FindsRetrievalHeadsFromTheTrace) {
  // Queries that point along the keys of far positions: with a slow rotation the first head looks far back, the second at
  // its neighbours only.
  DenseLayer layer = random_layer(40, 2, 1, 3, 2, 2);
  layer.layout = Rope::Layout::half;
  layer.inverse_frequency = {0.006f};
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t t = 0; t < 42; ++t) {
      layer.q[h][t] = {4.0, 0.0};
      const double phase = (h == 0 ? 2.9 : 0.0) + 0.006 * static_cast<double>(t);  // a key turned by t positions
      layer.k[h][t] = {4.0 * std::cos(phase), 4.0 * std::sin(phase)};
    }
  const auto policy = prepared_policy("duo");
  LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const std::vector<float> scores = policy->summarise(layer.geometry, ranking);
  ASSERT_EQ(scores.size(), 2u);
  EXPECT_GT(scores[0], scores[1] + 0.2f);
}

TEST(SimLayer, LetsLazyLayersKeepFirstAndNewestOnly) {
  const auto policy = prepared_policy("simlayer(threshold=0.9,recent=8)");
  const DenseLayer dense = random_layer(60, 2, 2, 3);
  LayerRanking ranking = rank_layer(*policy, dense.geometry, score_layer(*policy, dense, true));
  const std::vector<std::vector<float>> summaries{{.95f}, {.2f}, {.97f}, {.1f}};
  ranking.summaries = summaries;
  const auto counts = [&](std::uint32_t budget) {
    Counts all;
    for (std::uint32_t l = 0; l < 4; ++l) all.push_back(counts_at(*policy, four_layers(60, 2, l), ranking, budget)[0]);
    return all;
  };
  EXPECT_EQ(counts(20), (Counts{11, 29, 11, 29}));
  EXPECT_EQ(counts(21), (Counts{11, 31, 11, 31}));
  EXPECT_EQ(counts(60), (Counts{11, 60, 11, 60}));
  EXPECT_EQ(counts(5), (Counts{5, 5, 5, 5}));
}

TEST(SimLayer, MeasuresTheAttentionOfFirstAndNewestTokens) {
  const auto policy = prepared_policy("simlayer(threshold=0.9,initial=2,recent=3)");
  const DenseLayer dense = random_layer(20, 1, 2, 3);
  const LayerRanking ranking = rank_layer(*policy, dense.geometry, score_layer(*policy, dense, true));
  double expected = 0;
  for (std::size_t h = 0; h < 2; ++h)
    for (const std::size_t t : {0u, 1u, 16u, 17u, 18u}) expected += static_cast<double>(DenseFeatures(dense, 0).attention({.count = 1}, h)(t, 0)) / 2;
  EXPECT_NEAR(policy->summarise(dense.geometry, ranking)[0], expected, 1e-6);
  const DenseLayer small = random_layer(6, 1, 2, 3);
  EXPECT_EQ(policy->summarise(small.geometry, rank_layer(*policy, small.geometry, score_layer(*policy, small)))[0], 0.0f);
}

TEST(PerLayer, SharesByTheListAndKeepsTheTotal) {
  const auto policy = prepared_policy("per_layer(score=knorm,shares=[4,2,1,0])");
  LayerGeometry layer;
  layer.prompt = 30;
  for (std::uint32_t budget = 1; budget <= 32; ++budget) {
    Counts all;
    for (std::uint32_t l = 0; l < 4; ++l) {
      const LayerRanking ranking = random_ranking(*policy, layer, l, 2);
      layer.model_layers = 4;
      const Counts kept = counts_at(*policy, layer, ranking, budget);
      EXPECT_EQ(kept[0], kept[1]);
      all.push_back(kept[0]);
    }
    EXPECT_EQ(std::accumulate(all.begin(), all.end(), 0u), std::min(budget, 30u) * 4);
    if (budget == 7) {
      EXPECT_EQ(all, (Counts{16, 8, 4, 0}));
    }
    if (budget == 27) {
      EXPECT_EQ(all, (Counts{30, 30, 30, 18}));
    }
  }
}

TEST(PerLayer, RefusesListsThatDoNotFit) {
  const auto error_of = [](std::string_view spec) {
    try {
      prepared_policy(spec)->check(four_layers(30, 2, 0));
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(error_of("per_layer(score=knorm,shares=[1,2,3])"), "shares has 3 numbers, the model 4 layers");
  EXPECT_EQ(error_of("per_layer(score=knorm)"), "per_layer needs shares=[...], one number per layer");
  EXPECT_EQ(error_of("per_layer(score=knorm,shares=[1,2,x,1])"), "per_layer: share x is no number of 0 or more");
  EXPECT_EQ(error_of("per_layer(score=knorm,shares=[0,0,0,0])"), "per_layer: all shares are 0");
  EXPECT_EQ(error_of("per_layer(score=knorm,shares=[1,2,3,4])"), "accepted");
}

TEST(Lu, FollowsItsCurve) {
  Arrays files;
  ExternalArray& curve = files.of["/curve"] = {{99, 4, 2}, {}};
  for (std::size_t row = 0; row < 99; ++row)
    for (std::size_t i = 0; i < 8; ++i)  // at 50%: shares .2 .8 .5 .5 .5 .5 .9 .1; elsewhere uniform
      curve.data.push_back(row == 49 ? (std::vector<float>{.8f, .2f, .5f, .5f, .5f, .5f, .1f, .9f})[i] : static_cast<float>(row + 1) / 100);
  const auto policy = policy_with("lu(score=knorm,file=f)", files);
  const auto press = policy_with("lu(score=knorm,file=f,total=repo)", files);
  LayerGeometry layer;
  layer.prompt = 30;
  for (const std::uint32_t budget : {1u, 8u, 15u, 22u, 30u}) {
    Counts exact, repo;
    for (std::size_t l = 0; l < 4; ++l) {
      const LayerRanking ranking = random_ranking(*policy, layer, l, 2);
      layer.model_layers = 4;
      for (const std::uint32_t count : counts_at(*policy, layer, ranking, budget)) exact.push_back(count);
      for (const std::uint32_t count : counts_at(*press, layer, ranking, budget)) repo.push_back(count);
    }
    EXPECT_EQ(std::accumulate(exact.begin(), exact.end(), 0u), budget * 8);
    if (budget == 15) {
      EXPECT_EQ(exact, (Counts{6, 24, 15, 15, 15, 15, 27, 3}));
      EXPECT_EQ(repo, exact);
    }
  }
  EXPECT_THROW(prepared_policy("lu"), UserError);
  EXPECT_THROW(policy->check(four_layers(30, 3, 0)), UserError);
}

}  // namespace
}  // namespace kvsim::test
