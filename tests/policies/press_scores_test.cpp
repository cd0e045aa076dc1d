// Scores of kvpress's remaining presses and of KVCache-Factory's selectors: golden values, plain references
// in double.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <numeric>
#include <set>

#include "kernels/error.h"
#include "policies/products.h"
#include "policies/query_filter.h"
#include "policies/registry.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

using Rows = std::vector<Row>;

// The formulas' golden values (independent float64 transcription) have six decimals.
constexpr double kGolden = 4e-6;

TEST(Golden, NonCausalAttentionWithItsPaddedLastChunk) {
  const LayerScores scores = score_layer(*policy_of("noncausal(chunk=5)"), golden_layer(), true);
  expect_row(scores.units[0].score,
             {0.409146, 1.681324, 0.312466, -1.047588, 0.497728, 0.908315, 1.051001, -1.197300, -0.948650,
              -0.240562, 0.348548, -0.810031},
             kGolden, "h0");
  expect_row(scores.units[1].score,
             {1.088727, 1.883998, -0.250929, -1.689595, -0.012950, 0.754019, 1.289816, -0.571201, -0.955650,
              -0.892894, -0.450095, -1.157644},
             kGolden, "h1");
}

TEST(Golden, CapKv) {
  DenseLayer layer = golden_layer();  // Q stands for the queries before the rotary embedding
  layer.queries_before_rope = true;
  layer.stats_sinks = 2;
  layer.layout = Rope::Layout::half;
  layer.inverse_frequency = {1.0f, 0.01f};
  const LayerScores scores = score_layer(*policy_of("capkv(sinks=2,future=8)"), layer, true);
  expect_row(scores.units[0].score,
             {1.564285, 1.564285, 0.508019, 0.282016, 0.028662, 0.002120, 0.000512, 0.000318, 0.000928,
              0.014645, 0.141656, 0.564285},
             kGolden, "h0");
  expect_row(scores.units[1].score,
             {1.564285, 1.564285, 0.530482, 0.135155, 0.021941, 0.005428, 0.001617, 0.001438, 0.011533,
              0.070235, 0.246350, 0.511762},
             kGolden, "h1");
}

/// Solves M x = b by elimination with pivoting.
Row solved(Rows m, Row b) {
  const std::size_t d = b.size();
  for (std::size_t c = 0; c < d; ++c) {
    std::size_t pivot = c;
    for (std::size_t r = c; r < d; ++r)
      if (std::abs(m[r][c]) > std::abs(m[pivot][c])) pivot = r;
    std::swap(m[c], m[pivot]);
    std::swap(b[c], b[pivot]);
    for (std::size_t r = 0; r < d; ++r) {
      if (r == c) continue;
      const double factor = m[r][c] / m[c][c];
      for (std::size_t k = c; k < d; ++k) m[r][k] -= factor * m[c][k];
      b[r] -= factor * b[c];
    }
  }
  for (std::size_t c = 0; c < d; ++c) b[c] /= m[c][c];
  return b;
}

void standardised(Rows& rows) {
  double sum = 0, squares = 0, n = 0;
  for (const Row& row : rows)
    for (const double x : row) sum += x, n += 1;
  for (const Row& row : rows)
    for (const double x : row) squares += (x - sum / n) * (x - sum / n);
  for (Row& row : rows)
    for (double& x : row) x = (x - sum / n) / std::sqrt(squares / (n - 1));
}

/// Leverage of keys, standardised over the layer, in double.
Rows plain_leverage(const DenseLayer& layer) {
  const LayerGeometry& g = layer.geometry;
  Rows out;
  for (std::size_t h = 0; h < g.kv_heads; ++h) {
    Rows x(layer.k[h].begin(), layer.k[h].begin() + static_cast<std::ptrdiff_t>(g.prompt));
    for (std::size_t c = 0; c < g.key_dim; ++c) {
      double mean = 0;
      for (const Row& row : x) mean += row[c] / static_cast<double>(g.prompt);
      for (Row& row : x) row[c] -= mean;
    }
    Rows gram(g.key_dim, Row(g.key_dim, 0.0));
    for (std::size_t a = 0; a < g.key_dim; ++a) {
      gram[a][a] = 1e-2;
      for (std::size_t b = 0; b < g.key_dim; ++b)
        for (const Row& row : x) gram[a][b] += row[a] * row[b];
    }
    out.emplace_back();
    for (const Row& row : x) {
      const Row solution = solved(gram, row);
      out[h].push_back(std::inner_product(row.begin(), row.end(), solution.begin(), 0.0));
    }
  }
  standardised(out);
  return out;
}

TEST(Leverage, IsThatOfTheCentredKeys) {
  const DenseLayer layer = random_layer(40, 2, 1, 31);
  const LayerScores scores = score_layer(*policy_of("leverage"), layer, true);
  const Rows expected = plain_leverage(layer);
  for (std::size_t h = 0; h < 2; ++h)
    expect_row(scores.units[h].score, expected[h], 1e-5, "KV head " + std::to_string(h));
}

TEST(Leverage, LooksAtKeysBeforeTheRotaryEmbedding) {
  const DenseLayer plain = random_layer(40, 1, 1, 32);
  for (const bool half : {true, false}) {
    DenseLayer rotated = plain;
    rotated.layout = half ? Rope::Layout::half : Rope::Layout::interleaved;
    rotated.inverse_frequency = {1.0f, 0.3f, 0.01f};  // six of eight channels turn
    rotated.attention_scaling = 1.25;
    for (std::size_t t = 0; t < 40; ++t) {
      Row& key = rotated.k[0][t];
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t a = half ? i : 2 * i, b = half ? i + 3 : 2 * i + 1;
        const double angle = static_cast<double>(t) * static_cast<double>(rotated.inverse_frequency[i]);
        const double x = key[a], y = key[b];
        key[a] = 1.25 * (x * std::cos(angle) - y * std::sin(angle));
        key[b] = 1.25 * (x * std::sin(angle) + y * std::cos(angle));
      }
    }
    const LayerScores scores = score_layer(*policy_of("leverage"), rotated, true);
    expect_row(scores.units[0].score, plain_leverage(plain)[0], 1e-5, half ? "half" : "interleaved");
  }
}

TEST(Leverage, WithASketchIsRepeatableAndDependsOnTheSeed) {
  const DenseLayer layer = random_layer(40, 1, 1, 33);
  const auto scores = [&](const char* spec) {
    return score_layer(*policy_of(spec), layer, true).units[0].score;
  };
  EXPECT_EQ(scores("leverage(sketch=4)"), scores("leverage(sketch=4,seed=0)"));
  EXPECT_NE(scores("leverage(sketch=4)"), scores("leverage(sketch=4,seed=1)"));
  // Leverages of a sketch as wide as the keys are those of the keys: an invertible map changes none, but for
  // the ridge.
  const Rows exact = plain_leverage(layer);
  const std::vector<float> wide = scores("leverage(sketch=8)");
  for (std::size_t t = 0; t < 40; ++t) EXPECT_NEAR(static_cast<double>(wide[t]), exact[0][t], 0.1);
}

TEST(Compactor, BlendsBothScoresOfTheTokensBetweenItsEnds) {
  DenseLayer layer = random_layer(30, 2, 2, 34);
  DenseLayer inner = layer;  // without the two sinks and the recent token
  inner.geometry.prompt = 27;
  for (auto* tensor : {&inner.q, &inner.k, &inner.v})
    for (auto& head : *tensor) head.erase(head.begin(), head.begin() + 2);
  const LayerScores leverage = score_layer(*policy_of("leverage"), inner);
  const LayerScores attention = score_layer(*policy_of("noncausal(chunk=8)"), inner);
  const LayerScores scores =
      score_layer(*policy_of("compactor(sinks=2,recent=1,chunk=8,blending=0.3)"), layer, true);
  for (std::size_t h = 0; h < 2; ++h) {
    Row expected;
    for (std::size_t t = 0; t < 27; ++t)
      expected.push_back(0.3 * static_cast<double>(leverage.units[h].score[t]) +
                         static_cast<double>(attention.units[h].score[t]));
    expect_row({scores.units[h].score.begin() + 2, scores.units[h].score.end() - 1}, expected, 1e-5, "blend");
    EXPECT_EQ(scores.units[h].protected_tokens, (std::vector<TokenIndex>{0, 1, 29}));
  }
}

TEST(Compactor, BlendsByTheShareRemovedUnlessToldOtherwise) {
  DenseLayer layer = random_layer(30, 2, 1, 35);
  layer.budgets = {6, 15};
  const auto policy = policy_of("compactor(sinks=2,recent=1,chunk=8)");
  EXPECT_TRUE(policy->traits().order_by_budget);
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  for (std::size_t b = 0; b < 2; ++b) {
    const std::vector<std::uint32_t> kept(2, layer.budgets[b]);
    const auto fixed = policy_of(b == 0 ? "compactor(sinks=2,recent=1,chunk=8,blending=0.8)"
                                        : "compactor(sinks=2,recent=1,chunk=8,blending=0.5)");
    EXPECT_FALSE(fixed->traits().order_by_budget);
    const LayerRanking expected = rank_layer(*fixed, layer.geometry, score_layer(*fixed, layer, true));
    EXPECT_EQ(order_at(*policy, layer.geometry, ranking, {b, kept[0]}, kept), expected.order) << kept[0];
  }
}

TEST(Compactor, RefusesAPromptWithoutAnInside) {
  EXPECT_THROW(score_layer(*policy_of("compactor"), random_layer(12, 1, 1, 3)), UserError);
  EXPECT_NO_THROW(score_layer(*policy_of("compactor"), random_layer(13, 1, 1, 3)));
  EXPECT_NE(refusal("compactor(blending=-0.5)"), "accepted");
}

TEST(LeadingEigenvector, IsThatOfTheLargestEigenvalue) {
  // Eigenvalues 3, 2, 1 along known orthogonal directions.
  const double directions[3][3] = {
      {2 / 3., 2 / 3., 1 / 3.}, {-2 / 3., 1 / 3., 2 / 3.}, {1 / 3., -2 / 3., 2 / 3.}};
  Matrix<double> matrix(3, 3);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t r = 0; r < 3; ++r)
      for (std::size_t c = 0; c < 3; ++c)
        matrix(r, c) += (3.0 - static_cast<double>(i)) * directions[i][r] * directions[i][c];
  const Row found = leading_eigenvector(matrix);
  for (std::size_t c = 0; c < 3; ++c) EXPECT_NEAR(found[c], directions[0][c], 1e-12);
  EXPECT_EQ(leading_eigenvector(Matrix<double>(2, 2)), Row(2, 0.0));
}

TEST(QFilter, KeepsKeysAlongTheMainDirectionOfTheQueries) {
  DenseLayer layer = random_layer(30, 1, 2, 41);
  const Row direction{0.5, -0.5, 0.5, 0, 0, -0.5, 0, 0};  // length 1
  for (auto& head : layer.q)
    for (auto& query : head) {
      const double size = 5 + query[0] / 10;
      for (std::size_t c = 0; c < 8; ++c) query[c] = size * direction[c];
    }
  const LayerScores scores = score_layer(*policy_of("qfilter"), layer, true);
  Row expected;
  for (std::size_t t = 0; t < 30; ++t)
    expected.push_back(std::inner_product(direction.begin(), direction.end(), layer.k[0][t].begin(), 0.0));
  expect_row(scores.units[0].score, expected, 1e-5, "own filter");
}

TEST(QFilter, TakesFiltersFromAFile) {
  const DenseLayer layer = random_layer(12, 2, 1, 42);
  Arrays files;
  ExternalArray& filters = files.of["/filters"];
  filters.shape = {4, 2, 8};
  for (int i = 0; i < 64; ++i) filters.data.push_back(0.01f * static_cast<float>(i * i % 17));
  const auto policy = policy_of("qfilter(file=filters.h5)");
  policy->prepare(files);
  policy->check(layer.geometry);
  const LayerScores scores = score_layer(*policy, layer, true);
  for (std::size_t h = 0; h < 2; ++h) {
    Row expected(12, 0.0);
    for (std::size_t t = 0; t < 12; ++t)
      for (std::size_t c = 0; c < 8; ++c)  // layer 1 of the model
        expected[t] -= static_cast<double>(filters.data[(2 + h) * 8 + c]) * layer.k[h][t][c];
    expect_row(scores.units[h].score, expected, 1e-5, "file");
  }
  filters.shape = {4, 2, 4};
  EXPECT_THROW(policy->check(layer.geometry), UserError);
}

TEST(ExpectedAttentionStats, WithTheTracesOwnStatisticsIsExpectedAttention) {
  const DenseLayer layer = random_layer(30, 2, 2, 43);
  Arrays files;
  ExternalArray &mean = files.of["/query_mean"], &covariance = files.of["/query_covariance"];
  mean.shape = {4, 4, 8};
  covariance.shape = {4, 4, 8, 8};
  for (std::size_t l = 0; l < 4; ++l) {
    for (std::uint32_t h = 0; h < 2; ++h) {
      const DenseFeatures head(layer, h);
      for (std::size_t g = 0; g < 2; ++g) {
        const QueryStats stats = head.query_stats(g);
        for (const float x : stats.mean) mean.data.push_back(l == 1 ? x : 0.0f);
        for (std::size_t i = 0; i < 64; ++i)
          covariance.data.push_back(l == 1 ? stats.covariance(i / 8, i % 8) : 0.0f);
      }
    }
  }
  const auto policy = policy_of("expected_attention_stats(file=queries.h5)");
  policy->prepare(files);
  policy->check(layer.geometry);
  const LayerScores own = score_layer(*policy_of("expected_attention"), layer, true),
                    read = score_layer(*policy, layer, true);
  for (std::size_t h = 0; h < 2; ++h) EXPECT_EQ(own.units[h].score, read.units[h].score);
  EXPECT_NE(refusal("expected_attention_stats"), "accepted");
  mean.shape = {4, 2, 16};
  EXPECT_THROW(policy->check(layer.geometry), UserError);
}

TEST(LearnedScores, PassAnArrayOnAndProtectAsTheirAuthorsDo) {
  const DenseLayer layer = random_layer(100, 1, 1, 44);
  Arrays files;
  ExternalArray& scores = files.of["/scores"];
  scores.shape = {4, 1, 100};
  for (int i = 0; i < 400; ++i) scores.data.push_back(static_cast<float>(i * 37 % 101));
  const auto zap = policy_of("kvzap(file=s.h5)"), fast = policy_of("fastkvzip(file=s.h5)");
  zap->prepare(files);
  fast->prepare(files);
  EXPECT_EQ(score_layer(*zap, layer, true).units[0].score,
            std::vector<float>(scores.data.begin() + 100, scores.data.begin() + 200));
  EXPECT_EQ(score_layer(*fast, layer, true).units[0].protected_tokens,
            (std::vector<TokenIndex>{0, 1, 2, 3, 99, 98}));
  EXPECT_NE(refusal("kvzap"), "accepted");
  scores.shape = {4, 100, 1};
  EXPECT_THROW(zap->check(layer.geometry), UserError);
}

TEST(Finch, WeighsEveryRowByTheKeysBeforeIt) {
  const DenseLayer layer = random_layer(20, 2, 2, 51, 0);
  const LayerScores scores = score_layer(*policy_of("finch(window=5)"), layer, true);
  for (std::uint32_t h = 0; h < 2; ++h) {
    const DenseFeatures head(layer, h);
    Row expected(15, 0.0);
    for (std::size_t g = 0; g < 2; ++g)
      for (std::size_t j = 0; j < 5; ++j)
        for (std::size_t t = 0; t < 15; ++t)
          expected[t] +=
              static_cast<double>(15 + j) * static_cast<double>(head.attention({.count = 5}, g)(t, j)) / 10;
    expect_row({scores.units[h].score.begin(), scores.units[h].score.begin() + 15}, expected, 1e-6, "finch");
  }
}

TEST(Finch, WithoutNormalisationIsSnapKvWithoutPooling) {
  const DenseLayer layer = random_layer(40, 2, 2, 52);
  const LayerScores a = score_layer(*policy_of("finch(window=6,normalize=false)"), layer, true);
  const LayerScores b = score_layer(*policy_of("snapkv(window=6,kernel=1)"), layer, true);
  for (std::size_t h = 0; h < 2; ++h)
    for (std::size_t t = 0; t < 40; ++t) EXPECT_NEAR(a.units[h].score[t], b.units[h].score[t], 1e-6f);
}

TEST(Finch, KeepsTheSameShareOfEveryChunk) {
  const DenseLayer layer = random_layer(25, 1, 1, 53);
  const auto chunked = policy_of("finch(window=3,length=10)"), whole = policy_of("finch(window=3)");
  const LayerRanking ranking = rank_layer(*chunked, layer.geometry, score_layer(*chunked, layer, true));
  const LayerRanking plain = rank_layer(*whole, layer.geometry, score_layer(*whole, layer, true));
  for (std::uint32_t budget = 1; budget <= 25; ++budget) {
    std::set<TokenIndex> expected;
    for (TokenIndex begin = 0; begin < 25; begin += 10) {
      const TokenIndex length = std::min<TokenIndex>(10, 25 - begin);
      std::uint32_t left = std::max(1u, length * budget / 25);
      // The question first, of which the earlier tokens; then by score.
      for (TokenIndex t = 22; t < 25 && left > 0; ++t)
        if (t >= begin && t < begin + length) expected.insert(t), --left;
      for (const TokenIndex t : plain.order[0])
        if (left > 0 && t >= begin && t < begin + length && t < 22) expected.insert(t), --left;
    }
    const std::uint32_t kept = allocate(*chunked, layer, ranking, budget)[0];
    const std::vector<TokenIndex> found = kept_tokens(ranking, 0, kept);
    EXPECT_EQ(std::set<TokenIndex>(found.begin(), found.end()), expected) << budget;
  }
  EXPECT_NE(refusal("finch"), "accepted");
}

/// The first `budget` tokens of the order at place `b`, ascending.
std::vector<TokenIndex> kept_at(const Policy& policy, const DenseLayer& layer, std::size_t b,
                                std::size_t unit = 0) {
  const LayerRanking ranking = rank_layer(policy, layer.geometry, score_layer(policy, layer, true));
  const std::vector<std::uint32_t> kept(ranking.order.size(), layer.budgets[b]);
  std::vector<TokenIndex> order =
      order_at(policy, layer.geometry, ranking, {b, layer.budgets[b]}, kept)[unit];
  order.resize(layer.budgets[b]);
  std::sort(order.begin(), order.end());
  return order;
}

TEST(Block, OfAPlainFunctionOfTheTokenIsThatScore) {
  DenseLayer layer = random_layer(50, 1, 1, 61);
  layer.budgets = {1, 7, 20, 49, 50};
  const auto inner = policy_of("knorm");
  const LayerRanking plain = rank_layer(*inner, layer.geometry, score_layer(*inner, layer, true));
  for (const char* length : {"1", "3", "8", "49", "64"}) {
    const auto policy = policy_of(std::string("block(score=knorm,length=") + length + ")");
    for (std::size_t b = 0; b < layer.budgets.size(); ++b)
      EXPECT_EQ(kept_at(*policy, layer, b), kept_tokens(plain, 0, layer.budgets[b])) << length;
  }
}

TEST(Block, ReadsKeyDiffBlockByBlock) {
  DenseLayer layer = random_layer(30, 1, 1, 62);
  layer.budgets = {4, 11};
  const auto policy = policy_of("block(length=5)");
  for (std::size_t b = 0; b < 2; ++b) {
    std::vector<TokenIndex> held(layer.budgets[b]);
    std::iota(held.begin(), held.end(), TokenIndex{0});
    for (TokenIndex next = layer.budgets[b]; next < 30;) {
      for (int i = 0; i < 5 && next < 30; ++i) held.push_back(next++);
      Row anchor(8, 0.0);
      const auto length = [](const Row& x) {
        return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
      };
      for (const TokenIndex t : held)
        for (std::size_t c = 0; c < 8; ++c) anchor[c] += layer.k[0][t][c] / length(layer.k[0][t]);
      const auto cosine = [&](TokenIndex t) {
        return std::inner_product(anchor.begin(), anchor.end(), layer.k[0][t].begin(), 0.0) /
               length(layer.k[0][t]);
      };
      std::sort(held.begin(), held.end(), [&](TokenIndex x, TokenIndex y) { return cosine(x) < cosine(y); });
      held.resize(layer.budgets[b]);
    }
    std::sort(held.begin(), held.end());
    EXPECT_EQ(kept_at(*policy, layer, b), held) << layer.budgets[b];
  }
}

TEST(Block, RefusesScoresOfQueries) {
  EXPECT_NE(refusal("block(score=snapkv)"), "accepted");
  EXPECT_NE(refusal("block(score=block)"), "accepted");
  EXPECT_EQ(refusal("block(score=lagkv)"), "accepted");
}

TEST(Nacl, DrawsWithTheProbabilitiesOfTheSoftmax) {
  // softmax([.4 .2 .1]) of the survey's worked example (G14); the fourth token is the proxy.
  const double votes[4] = {.4, .2, .1, .3};
  DenseLayer layer;
  layer.geometry.prompt = layer.geometry.key_dim = layer.geometry.value_dim = 4;
  layer.fill([&](std::size_t, std::size_t, std::size_t c) { return std::log(votes[c]); },
             [](std::size_t, std::size_t t, std::size_t c) { return t == c ? 1.0 : 0.0; },
             [](std::size_t, std::size_t, std::size_t) { return 1.0; });
  layer.budgets = {2};
  std::array<int, 4> drawn{};
  constexpr int kDraws = 4000;
  for (int seed = 0; seed < kDraws; ++seed) {
    const auto policy = policy_of("nacl(suffix=1,random=1,seed=" + std::to_string(seed) + ")");
    const std::vector<TokenIndex> kept = kept_at(*policy, layer, 0);
    ASSERT_EQ(kept[1], 3u);
    ++drawn[kept[0]];
  }
  const double expected[3] = {.390694, .319873, .289433};
  for (std::size_t t = 0; t < 3; ++t)
    EXPECT_NEAR(static_cast<double>(drawn[t]) / kDraws, expected[t], 0.025) << t;
}

TEST(Nacl, KeepsProxiesThenTheBestThenTheDrawn) {
  DenseLayer layer = random_layer(40, 1, 1, 71);
  layer.budgets = {3, 15, 25};
  const auto policy = policy_of("nacl(suffix=4,prefix=2,random=0.4)");
  EXPECT_EQ(kept_at(*policy, layer, 0),
            (std::vector<TokenIndex>{37, 38, 39}));  // the newest of what is protected
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const std::vector<TokenIndex> small = kept_at(*policy, layer, 1), large = kept_at(*policy, layer, 2);
  EXPECT_TRUE(std::includes(large.begin(), large.end(), small.begin(), small.end()));
  const std::set<TokenIndex> kept(small.begin(), small.end());
  for (const TokenIndex t : {0u, 1u, 36u, 37u, 38u, 39u}) EXPECT_TRUE(kept.contains(t)) << t;
  // 15 - 6 = 9 tokens, of which trunc(.4 * 9) = 3 are drawn.
  std::size_t best = 0;
  for (std::size_t i = 6; i < 12; ++i) best += kept.contains(ranking.order[0][i]) ? 1 : 0;
  EXPECT_EQ(best, 6u);
  EXPECT_NE(refusal("nacl(suffix=0)"), "accepted");
}

TEST(Nacl, WithoutTheRandomPartIsTheVoteOfTheProxies) {
  DenseLayer layer = random_layer(40, 2, 2, 72);
  layer.budgets = {9, 20};
  const auto policy = policy_of("nacl(suffix=5,random=0,unit=kv)");
  const auto votes = policy_of("compose(query=window(5),reduce=[sum,group(mean)],recent=5)");
  const LayerRanking plain = rank_layer(*votes, layer.geometry, score_layer(*votes, layer));
  for (std::size_t b = 0; b < 2; ++b)
    for (std::size_t h = 0; h < 2; ++h)
      EXPECT_EQ(kept_at(*policy, layer, b, h), kept_tokens(plain, h, layer.budgets[b]));
}

TEST(Scissorhands, CountsQueriesThatGiveLessThanTheEvenShare) {
  const DenseLayer layer = random_layer(30, 1, 2, 81);
  const LayerScores scores =
      score_layer(*policy_of("scissorhands(form=count,window=7,recent=2)"), layer, true);
  const DenseFeatures head(layer, 0);
  for (std::size_t h = 0; h < 2; ++h) {
    Row expected(28, 0.0);
    for (std::size_t j = 0; j < 7; ++j) {
      const std::size_t seen = 30 - 7 + j + 1;
      for (std::size_t t = 0; t < std::min<std::size_t>(seen, 28); ++t)
        expected[t] -=
            static_cast<double>(head.attention({.count = 7}, h)(t, j)) < 1.0 / static_cast<double>(seen) ? 1
                                                                                                         : 0;
    }
    expect_row({scores.units[h].score.begin(), scores.units[h].score.begin() + 28}, expected, 1e-6, "counts");
  }
}

TEST(Scissorhands, AsAMeanIsVatpWithoutValues) {
  const DenseLayer layer = random_layer(40, 2, 2, 82);
  const auto a = policy_of("scissorhands(window=9,recent=3,sinks=1)");
  const auto b = policy_of("vatp(base=scissorhands,window=9,recent=3,sinks=1,recent_share=0,norm=none)");
  EXPECT_EQ(rank_layer(*a, layer.geometry, score_layer(*a, layer, true)).order,
            rank_layer(*b, layer.geometry, score_layer(*b, layer, true)).order);
}

TEST(Skip, KeepsTheNamedLayersWhole) {
  DenseLayer layer = random_layer(20, 2, 1, 91);
  const auto policy = policy_of("skip(layers=[0,2])");
  Arrays none;
  policy->prepare(none);
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  for (std::uint32_t l = 0; l < 4; ++l) {
    layer.geometry.layer = l;
    EXPECT_EQ(allocate(*policy, layer, ranking, 5), std::vector<std::uint32_t>(2, l == 0 || l == 2 ? 20 : 5))
        << l;
  }
  const auto far = policy_of("skip(layers=[7])");
  far->prepare(none);
  EXPECT_THROW(far->check(layer.geometry), UserError);
  EXPECT_NE(refusal("skip(layers=[first])"), "accepted");
  EXPECT_EQ(refusal("skip(layers=1)"), "accepted");
}

TEST(Products, InverseFactorsGiveTheQuadraticForm) {
  Matrix<double> matrix(3, 3);
  const double given[3][3] = {{4, 1, .5}, {1, 3, -.25}, {.5, -.25, 2}};
  for (std::size_t r = 0; r < 3; ++r) std::copy_n(given[r], 3, matrix.row(r));
  Matrix<float> rows(2, 3);
  for (std::size_t i = 0; i < 6; ++i) rows(i / 3, i % 3) = static_cast<float>(i) - 2.5f;
  const std::vector<double> found = squared_lengths(rows.view(), inverse_factor(matrix));
  for (std::size_t r = 0; r < 2; ++r) {
    const Row x{rows(r, 0), rows(r, 1), rows(r, 2)};
    const Row solution = solved({{4, 1, .5}, {1, 3, -.25}, {.5, -.25, 2}}, x);
    EXPECT_NEAR(found[r], std::inner_product(x.begin(), x.end(), solution.begin(), 0.0), 1e-5);
  }
  matrix(2, 2) = -1;
  EXPECT_TRUE(inverse_factor(matrix).empty());
}

}  // namespace
}  // namespace kvsim::test
