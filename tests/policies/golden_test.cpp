// Golden values: an independent float64 transcription of kvpress's formulas on the small inputs of golden_layer().
//
// Expected numbers were computed from the published formulas in plain float64, not by this code, and are
// given to six decimals.
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "policies/allotment.h"
#include "policies/registry.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

constexpr double kTolerance = 2e-6;

void expect_scores(std::string_view spec, const DenseLayer& layer, const Row& h0, const Row& h1) {
  const auto policy = policy_of(spec);
  const LayerScores scores = score_layer(*policy, layer, true);
  ASSERT_EQ(scores.units.size(), 2u);
  expect_row(scores.units[0].score, h0, {kTolerance, 0}, std::string(spec) + " h0");
  if (!h1.empty()) expect_row(scores.units[1].score, h1, {kTolerance, 0}, std::string(spec) + " h1");
}

TEST(Golden, Knorm) {
  expect_scores("knorm", golden_layer(),
                {-1.317756, -1.600993, -1.694841, -1.543848, -1.498232, -1.788761, -2.037903, -1.959923,
                 -1.759321, -1.917755, -2.292385, -2.383590},
                {});
}

TEST(Golden, KeyDiff) {
  expect_scores("keydiff", golden_layer(),
                {-0.797942, -0.999631, -0.830783, -0.323184, 0.493672, 0.962054, 0.950209, 0.621201,
                 -0.087541, -0.809121, -0.999151, -0.823015},
                {-0.814047, -0.998663, -0.791850, -0.049995, 0.618079, 0.944493, 0.960160, 0.454962,
                 -0.338108, -0.821803, -0.999313, -0.779592});
}

TEST(Golden, SnapKv) {
  expect_scores("snapkv(window=3,kernel=3)", golden_layer(),
                {0.065080, 0.092991, 0.085145, 0.079899, 0.079970, 0.084118, 0.090453, 0.098297, 0.068337,
                 1.128457, 1.128457, 1.128457},
                {0.046000, 0.067363, 0.068540, 0.081522, 0.101388, 0.119939, 0.128457, 0.120961, 0.076225,
                 1.128457, 1.128457, 1.128457});
}

TEST(Golden, TovaScoresAllHeadsAlike) {
  const Row row{0.060603, 0.061042, 0.073261, 0.097187, 0.124585, 0.136006,
                0.119881, 0.089371, 0.064055, 0.051740, 0.052956, 1.136006};
  expect_scores("tova", golden_layer(), row, row);
}

TEST(Golden, ObservedAttention) {
  expect_scores("observed_attention", golden_layer(),
                {0.246009, 0.180985, 0.163383, 0.143130, 0.137322, 0.128954, 0.109120, 0.098543, 0.106924,
                 0.110464, 0.080415, 0.066459},
                {0.264879, 0.176328, 0.129459, 0.125473, 0.138765, 0.140796, 0.138894, 0.136391, 0.113596,
                 0.070793, 0.054027, 0.072165});
}

TEST(Golden, H2oIsObservedAttentionTimesTheNumberOfQueriesThatSeeTheKey) {
  // The observed-attention values above times 12 - t.
  const Row observed{0.246009, 0.180985, 0.163383, 0.143130, 0.137322, 0.128954,
                     0.109120, 0.098543, 0.106924, 0.110464, 0.080415, 0.066459};
  const LayerScores scores = score_layer(*policy_of("h2o"), golden_layer(), true);
  for (std::size_t t = 0; t < 12; ++t) {
    EXPECT_NEAR(static_cast<double>(scores.units[0].score[t]), observed[t] * static_cast<double>(12 - t),
                2e-5);
  }
}

TEST(Golden, StreamingLlmKeepsSinksAndTheNewest) {
  const DenseLayer layer = golden_layer();
  const auto policy = policy_of("streaming_llm(2)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  // kvpress at ratio 0.5 with two sinks scores 1 1 0 0 0 0 0 0 1 1 1 1.
  EXPECT_EQ(kept_tokens(ranking, 0, 6), (std::vector<TokenIndex>{0, 1, 8, 9, 10, 11}));
}

TEST(Golden, CurReproducesTheInflatedLastBlock) {
  expect_scores("cur(sinks=1,local=5)", golden_layer(),
                {1, 0.043235, 0.051270, 0.047810, 0.048187, 0.044167, 0.051388, 0.043354, 0.035722, 0.047458,
                 0.267679, 0.288440},
                {1, 0.041589, 0.037841, 0.043071, 0.060212, 0.043303, 0.034409, 0.031133, 0.046805, 0.068561,
                 0.324722, 0.230571});
}

TEST(Golden, LagKvAcrossBlocks) {
  expect_scores("lagkv(sinks=1,lag=3,cross=true)", golden_layer(),
                {1, 0.687476, 0.242261, 0.070263, 0.609078, 0.249385, 0.141538, 1, 1, 1, 1, 1},
                {1, 0.683940, 0.233823, 0.082237, 0.647861, 0.272956, 0.079184, 1, 1, 1, 1, 1});
}

TEST(Golden, LagKvRanksInsideEachBlock) {
  const Row row{1, 2.0 / 3, 1.0 / 3, 0, 2.0 / 3, 1.0 / 3, 0, 1, 1, 1, 1, 1};
  expect_scores("lagkv(sinks=1,lag=3)", golden_layer(), row, row);
}

DenseLayer golden_layer_with_rope() {
  DenseLayer layer = golden_layer();  // here Q stands for the queries before the rotary embedding
  layer.queries_before_rope = true;
  layer.stats_sinks = 2;
  layer.layout = Rope::Layout::half;
  layer.inverse_frequency = {1.0f, 0.01f};  // theta = 10000, four channels
  return layer;
}

TEST(Golden, ExpectedAttention) {
  expect_scores("expected_attention(sinks=2,future=8)", golden_layer_with_rope(),
                {1.254941, 1.254941, 0.149440, 0.141762, 0.164312, 0.181229, 0.143133, 0.105314, 0.121523,
                 0.202873, 0.254941, 0.191471},
                {1.254941, 1.254941, 0.143099, 0.176336, 0.190064, 0.147252, 0.115554, 0.140026, 0.210874,
                 0.222911, 0.163442, 0.148294});
}

TEST(Golden, ExpectedAttentionWithoutCovarianceAndValues) {
  expect_scores("expected_attention(sinks=2,future=8,covariance=false,vnorm=false)", golden_layer_with_rope(),
                {1.116459, 1.116459, 0.110734, 0.108621, 0.101061, 0.092013, 0.085720, 0.084780, 0.089931,
                 0.099915, 0.110767, 0.116459},
                {});
}

TEST(Golden, ExpectedAttentionIsTheSameInBothRotaryLayouts) {
  // Interleaved pairs (0,1), (2,3) are the halves' pairs (0,2), (1,3) under the channel permutation 0 2 1 3.
  DenseLayer half = golden_layer_with_rope(), pairs = golden_layer_with_rope();
  pairs.layout = Rope::Layout::interleaved;
  for (auto* tensor : {&pairs.q, &pairs.k}) {
    for (auto& head : *tensor) {
      for (auto& row : head) std::swap(row[1], row[2]);
    }
  }
  const auto policy = policy_of("expected_attention(sinks=2,future=8)");
  const LayerScores a = score_layer(*policy, half), b = score_layer(*policy, pairs);
  for (std::size_t t = 0; t < 12; ++t) EXPECT_NEAR(a.units[0].score[t], b.units[0].score[t], 1e-6f);
}

TEST(Golden, ExpectedAttentionLeavesChannelsBehindThePartialRotaryAlone) {
  // With one frequency only channels 0 and 1 turn (half layout); written out by hand with R = [[c,-s],[s,c]]
  // + identity.
  DenseLayer layer = golden_layer_with_rope();
  layer.inverse_frequency = {1.0f};
  const LayerScores scores =
      score_layer(*policy_of("expected_attention(sinks=2,future=8,covariance=false,vnorm=false)"), layer);
  double c = 0, s = 0;
  for (int p = 12; p < 20; ++p) {
    c += std::cos(p) / 8;
    s += std::sin(p) / 8;
  }
  Row mean_weights(12, 0.0);
  for (std::size_t a = 0; a < 2; ++a) {
    Row mu(4, 0.0), z;
    for (std::size_t t = 2; t < 12; ++t) {
      for (std::size_t i = 0; i < 4; ++i) mu[i] += layer.q[a][t][i] / 10;
    }
    mu = {c * mu[0] - s * mu[1], s * mu[0] + c * mu[1], mu[2], mu[3]};
    double sum = 0;
    for (std::size_t t = 2; t < 12; ++t) {
      double dot = 0;
      for (std::size_t i = 0; i < 4; ++i) dot += mu[i] * layer.k[0][t][i];
      z.push_back(std::exp(dot / 2));
      sum += z.back();
    }
    for (std::size_t t = 2; t < 12; ++t) mean_weights[t] += z[t - 2] / sum / 2;
  }
  for (std::size_t t = 2; t < 12; ++t)
    EXPECT_NEAR(static_cast<double>(scores.units[0].score[t]), mean_weights[t], kTolerance);
}

TEST(Golden, AdaKeepsTheBestOfTheLayer) {
  const DenseLayer layer = golden_layer();
  const auto policy = policy_of("ada(score=snapkv(window=3,kernel=3),alpha=0.2)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const auto kept = allocate(*policy, layer, ranking, 6);
  EXPECT_EQ(kept_tokens(ranking, 0, kept[0]), (std::vector<TokenIndex>{1, 7, 9, 10, 11}));
  EXPECT_EQ(kept_tokens(ranking, 1, kept[1]), (std::vector<TokenIndex>{4, 5, 6, 7, 9, 10, 11}));
}

TEST(Golden, ChunkKvKeepsOneShortChunkWhereTheProtectedWindowDominates) {
  const DenseLayer layer = golden_layer();
  const auto policy = policy_of("chunkkv(score=snapkv(window=3,kernel=3),length=5)");
  const LayerScores scores = score_layer(*policy, layer, true);
  const Row chunks{0.153579, 0.608740, 2.256914};
  for (std::size_t t = 0; t < 12; ++t)
    EXPECT_NEAR(static_cast<double>(scores.units[0].score[t]), chunks[t / 5], kTolerance);
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, scores);
  const auto kept = allocate(*policy, layer, ranking, 6);
  EXPECT_EQ(kept, (std::vector<std::uint32_t>{2, 2}));
  EXPECT_EQ(kept_tokens(ranking, 0, kept[0]), (std::vector<TokenIndex>{10, 11}));
}

/// Budgets of all layers at a prompt length and mean budget.
std::vector<std::uint32_t> pyramid(std::string_view spec, std::size_t prompt, std::uint32_t budget,
                                   std::uint32_t layers = 32) {
  const auto policy = policy_of(spec);
  DenseLayer layer;
  layer.geometry.prompt = prompt;
  layer.geometry.model_layers = layers;
  for (std::uint32_t l = 0; l < layers; ++l) layer.geometry.recorded_layers.push_back(l);
  LayerRanking ranking;
  ranking.order.resize(1);
  std::vector<std::uint32_t> out;
  for (std::uint32_t l = 0; l < layers; ++l) {
    layer.geometry.layer = l;
    out.push_back(allocate(*policy, layer, ranking, budget)[0]);
  }
  return out;
}

std::uint64_t sum(const std::vector<std::uint32_t>& counts) {
  std::uint64_t total = 0;
  for (const std::uint32_t n : counts) total += n;
  return total;
}

TEST(Golden, PyramidKvLayerBudgets) {
  // Table of layer budgets in the formulas' section on PyramidKV: first layers, last layers, sum.
  auto layers = pyramid("pyramidkv(total=repo)", 1024, 512);
  EXPECT_EQ(std::vector(layers.begin(), layers.begin() + 4),
            (std::vector<std::uint32_t>{960, 931, 902, 873}));
  EXPECT_EQ(std::vector(layers.end() - 3, layers.end()), (std::vector<std::uint32_t>{122, 93, 64}));
  EXPECT_EQ(sum(layers), 16384u);
  layers = pyramid("pyramidkv(total=repo)", 4096, 2048);
  EXPECT_EQ(std::vector(layers.begin(), layers.begin() + 4),
            (std::vector<std::uint32_t>{3994, 3868, 3743, 3617}));
  EXPECT_EQ(std::vector(layers.end() - 3, layers.end()), (std::vector<std::uint32_t>{353, 228, 102}));
  EXPECT_EQ(sum(layers), 65536u);
  layers = pyramid("pyramidkv(total=repo)", 4096, 3072);
  EXPECT_EQ(std::vector(layers.begin(), layers.begin() + 4),
            (std::vector<std::uint32_t>{4032, 3970, 3908, 3846}));
  EXPECT_EQ(std::vector(layers.end() - 3, layers.end()), (std::vector<std::uint32_t>{2236, 2174, 2112}));
  EXPECT_EQ(pyramid("pyramidkv(total=repo)", 4096, 1024),
            std::vector<std::uint32_t>(32, 1024));  // flat: 1024 / 20 < 64
}

TEST(Golden, PyramidKvExactTotalIsKvpressUpToRounding) {
  for (const std::uint32_t budget : {100u, 1279u, 1281u, 1500u, 2048u, 3072u, 3500u, 4096u}) {
    const auto exact = pyramid("pyramidkv", 4096, budget),
               repo = pyramid("pyramidkv(total=repo)", 4096, budget);
    EXPECT_EQ(sum(exact), std::uint64_t{32} * budget);
    for (std::size_t l = 0; l < 32; ++l) {
      EXPECT_NEAR(static_cast<double>(exact[l]), static_cast<double>(repo[l]), 1.0)
          << budget << ", layer " << l;
    }
  }
}

// --- worked examples of the policy survey (numpy), G1 to G14
// ---------------------------------------------------------

/// HeadFeatures of hand-written attention rows, one per query head: mean over the window, sum over the
/// prompt.
class WrittenFeatures final : public HeadFeatures {
 public:
  WrittenFeatures(std::vector<std::vector<float>> rows, Matrix<float> keys = {})
      : rows_(std::move(rows)), keys_(std::move(keys)) {
    geometry_.prompt = rows_.empty() ? keys_.rows() : rows_[0].size();
    geometry_.group = std::max<std::size_t>(1, rows_.size());
    geometry_.key_dim = keys_.cols();
  }
  const LayerGeometry& geometry() const override { return geometry_; }
  std::uint32_t kv_head() const override { return 0; }
  MatrixView<const float> keys() const override { return keys_.view(); }
  MatrixView<const float> values() const override { return {}; }
  Rope rope() const override { return {}; }
  std::span<const float> window_mean(std::uint32_t, std::size_t h) const override { return rows_.at(h); }
  std::span<const float> attention_sum(std::size_t h) const override { return rows_.at(h); }
  std::span<const float> attention_mean_over_visible(std::size_t h) const override { return rows_.at(h); }
  QueryStats query_stats(std::size_t) const override { return {}; }
  std::span<const float> decode_mean(std::size_t h) const override { return rows_.at(h); }

 private:
  LayerGeometry geometry_;
  std::vector<std::vector<float>> rows_;
  Matrix<float> keys_;
};

LayerRanking ranking_of(const Policy& policy, const HeadFeatures& head) {
  LayerScores scores{policy.unit(),
                     std::vector<UnitScores>(policy.unit() == Unit::query ? head.geometry().group : 1)};
  policy.score(head, scores.units);
  policy.join(head.geometry(), scores);
  return rank_layer(policy, head.geometry(), std::move(scores));
}

TEST(WorkedExample, SnapKvPooling) {
  // G1: column means of two window rows before the window of two; the survey's sums are twice these numbers.
  const std::vector<float> mean{0.2f, 0.05f, 0.05f, 0.25f, 0.01f, 0.04f, 0, 0};
  const WrittenFeatures head({mean});
  const auto average = ranking_of(*policy_of("snapkv(window=2,kernel=3)"), head);
  const Row avg{0.166667, 0.2, 0.233333, 0.206667, 0.2, 0.033333};
  for (std::size_t t = 0; t < 6; ++t)
    EXPECT_NEAR(2 * static_cast<double>(average.scores.units[0].score[t]), avg[t], kTolerance);
  EXPECT_EQ(kept_tokens(average, 0, 5), (std::vector<TokenIndex>{1, 2, 3, 6, 7}));
  const auto largest = ranking_of(*policy_of("snapkv(window=2,kernel=3,pool=max)"), head);
  const Row max{0.4, 0.4, 0.5, 0.5, 0.5, 0.08};
  for (std::size_t t = 0; t < 6; ++t)
    EXPECT_NEAR(2 * static_cast<double>(largest.scores.units[0].score[t]), max[t], kTolerance);
  EXPECT_EQ(kept_tokens(largest, 0, 5), (std::vector<TokenIndex>{2, 3, 4, 6, 7}));
  const auto raw = ranking_of(*policy_of("snapkv(window=2,kernel=1)"), head);
  EXPECT_EQ(kept_tokens(raw, 0, 5), (std::vector<TokenIndex>{0, 1, 3, 6, 7}));  // tie 1/2 to the earlier
}

TEST(WorkedExample, PyramidKvInTheAuthorsForm) {
  // G10: n 4000, capacity 128, window 8, 32 layers: 234, 227, ... 17 beyond the window, sum 4016 where 3840
  // was asked for; n 200, 4 layers: 192, 144, 96, 48.
  const auto deep = pyramid("pyramidkv(window=8,form=authors,total=repo)", 4000, 128);
  EXPECT_EQ(deep[0], 234u + 8);
  EXPECT_EQ(deep[1], 227u + 8);
  EXPECT_EQ(deep[31], 17u + 8);
  EXPECT_EQ(sum(deep), 4016u + 32 * 8);
  const Row short_prompt{192, 144, 96, 48};
  for (std::uint32_t l = 0; l < 4; ++l) {
    EXPECT_EQ(authors_layer_share(120, 20, 192, l, 4, true), short_prompt[l]);
  }
  // The code itself does not come there: below twice the tokens beyond the window it stays flat.
  EXPECT_EQ(pyramid("pyramidkv(window=8,form=authors,total=repo)", 200, 128, 4),
            std::vector<std::uint32_t>(4, 128));
  EXPECT_EQ(sum(pyramid("pyramidkv(window=8,form=authors)", 4000, 128)), 32u * 128);
}

TEST(WorkedExample, AdaHeadBudgets) {
  // G11: two heads, B' = 2; kvpress's floor of one token each changes nothing, the authors' interpolation
  // does.
  LayerScores scores{Unit::kv, {{{.50f, .20f, .10f, .05f}, {}, {}, {}}, {{.15f, .08f, .04f, .03f}, {}, {}, {}}}};
  LayerGeometry geometry;
  geometry.prompt = 4;
  geometry.kv_heads = 2;
  const auto budgets = [&](std::string_view spec) {
    const auto policy = policy_of(spec);
    std::vector<std::uint32_t> kept(2);
    policy->allocate(geometry, rank_layer(*policy, geometry, scores), 2, kept);
    return kept;
  };
  EXPECT_EQ(budgets("ada(alpha=0,form=interp,total=repo)"), (std::vector<std::uint32_t>{3, 1}));
  EXPECT_EQ(budgets("ada(alpha=0.5,form=interp,total=repo)"), (std::vector<std::uint32_t>{2, 2}));
  EXPECT_EQ(budgets("ada(alpha=0.5)"), (std::vector<std::uint32_t>{3, 1}));
  EXPECT_EQ(budgets("ada(alpha=1,form=interp)"), (std::vector<std::uint32_t>{2, 2}));
  EXPECT_EQ(budgets("ada(alpha=1)"), (std::vector<std::uint32_t>{2, 2}));
}

TEST(WorkedExample, KeyDirectionAndKeyNorm) {
  // G13
  Matrix<float> keys(5, 2);
  const float given[5][2] = {{1, 0}, {1, .1f}, {1, -.1f}, {0, 1}, {3, 0}};
  for (std::size_t t = 0; t < 5; ++t) std::copy_n(given[t], 2, keys.row(t));
  const WrittenFeatures head({}, std::move(keys));
  const auto difference = ranking_of(*policy_of("keydiff"), head);
  const Row expected{-.97, -.989376, -.940997, -.243103, -.97};
  for (std::size_t t = 0; t < 5; ++t)
    EXPECT_NEAR(static_cast<double>(difference.scores.units[0].score[t]), expected[t], 1e-5);
  EXPECT_EQ(kept_tokens(difference, 0, 2), (std::vector<TokenIndex>{2, 3}));
  EXPECT_EQ(kept_tokens(ranking_of(*policy_of("knorm"), head), 0, 2), (std::vector<TokenIndex>{0, 3}));
}

TEST(WorkedExample, CausalSumsOfH2oAndObservedAttention) {
  // G14: rows [1], [.6 .4], [.5 .1 .4], [.3 .1 .3 .3]; logits are their logarithms (scale 1, one-hot keys).
  const double rows[4][4] = {{1, 0, 0, 0}, {.6, .4, 0, 0}, {.5, .1, .4, 0}, {.3, .1, .3, .3}};
  DenseLayer layer;
  layer.geometry.prompt = 4;
  layer.geometry.key_dim = layer.geometry.value_dim = 4;
  layer.fill([&](std::size_t, std::size_t t, std::size_t c) { return c <= t ? std::log(rows[t][c]) : 0.0; },
             [](std::size_t, std::size_t t, std::size_t c) { return t == c ? 1.0 : 0.0; },
             [](std::size_t, std::size_t, std::size_t) { return 1.0; });
  const Row total{2.4, .6, .7, .3}, visible{.6, .2, .35, .3};
  const LayerScores h2o = score_layer(*policy_of("h2o"), layer),
                    observed = score_layer(*policy_of("observed_attention"), layer);
  for (std::size_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(static_cast<double>(h2o.units[0].score[t]), total[t], kTolerance);
    EXPECT_NEAR(static_cast<double>(observed.units[0].score[t]), visible[t], kTolerance);
  }
}

TEST(WorkedExample, TovaMeanOverHeads) {
  // G14: [.5 .1 .2 .2] and [.1 .4 .1 .4] give [.3 .25 .15 .3]; the newest token is kept in any case.
  const WrittenFeatures head({{.5f, .1f, .2f, .2f}, {.1f, .4f, .1f, .4f}});
  const auto ranking = ranking_of(*policy_of("tova"), head);
  const Row expected{.3, .25, .15};
  for (std::size_t t = 0; t < 3; ++t)
    EXPECT_NEAR(static_cast<double>(ranking.scores.units[0].score[t]), expected[t], kTolerance);
  EXPECT_EQ(ranking.order[0], (std::vector<TokenIndex>{3, 0, 1, 2}));
}

TEST(WorkedExample, GroupsJoinByMeanOrMaximum) {
  // Two query heads [.5 .1 .3] and [.1 .45 .3]: mean [.3 .275 .3] with a tie of 0 and 2, maximum [.5 .45 .3].
  const WrittenFeatures head({{.5f, .1f, .3f}, {.1f, .45f, .3f}});
  EXPECT_EQ(ranking_of(*policy_of("h2o(group=mean)"), head).order[0], (std::vector<TokenIndex>{0, 2, 1}));
  EXPECT_EQ(ranking_of(*policy_of("h2o(group=max)"), head).order[0], (std::vector<TokenIndex>{0, 1, 2}));
  EXPECT_EQ(ranking_of(*policy_of("h2o(group=sum)"), head).order[0], (std::vector<TokenIndex>{0, 2, 1}));
  EXPECT_EQ(ranking_of(*policy_of("h2o(group=first)"), head).order[0], (std::vector<TokenIndex>{0, 2, 1}));
  const auto per_head = ranking_of(*policy_of("h2o(unit=query)"), head);
  EXPECT_EQ(per_head.order[1], (std::vector<TokenIndex>{1, 2, 0}));
}

}  // namespace
}  // namespace kvsim::test
