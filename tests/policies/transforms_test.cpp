// What policies put in the place of kept entries: worked examples and definitions.
#include <gtest/gtest.h>

#include <cmath>

#include "policies/registry.h"
#include "policies/rotation.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

/// Channels that are 0 for every row of `keys`.
std::vector<std::size_t> dropped(const Matrix<float>& keys) {
  std::vector<std::size_t> channels;
  for (std::size_t c = 0; c < keys.cols(); ++c) {
    bool zero = true;
    for (std::size_t i = 0; i < keys.rows(); ++i) zero &= keys(i, c) == 0.0f;
    if (zero) channels.push_back(c);
  }
  return channels;
}

DenseLayer plain_layer(const std::vector<std::vector<double>>& queries, const std::vector<std::vector<double>>& keys) {
  DenseLayer layer;
  layer.geometry.prompt = keys.size();
  layer.geometry.key_dim = layer.geometry.value_dim = keys[0].size();
  layer.q = {queries};
  layer.k = {keys};
  layer.v = {keys};
  return layer;
}

TEST(Think, DropsTheChannelsOfTheWorkedExample) {
  // Reference, Appendix A, G7: scores 1.666667, 1.333333, 4.5, 1.0; ratio .5 drops 1 and 3. (The query before the window
  // must not count.)
  const DenseLayer layer = plain_layer({{9, 9, 9, 9}, {1, 2, 0, 1}, {1, 0, 1, -1}}, {{1, 0, 3, 1}, {0, 1, 3, 1}, {2, 1, -3, 1}});
  const std::vector<TokenIndex> all{0, 1, 2};
  const auto policy = policy_of("think(score=knorm,ratio=0.5,window=2)");
  const Transformed entries = policy->transform(DenseFeatures(layer, 0, policy->needs(), policy->window()), 0, all);
  EXPECT_EQ(dropped(entries.keys), (std::vector<std::size_t>{1, 3}));
  EXPECT_EQ(entries.keys(2, 2), -3.0f);
  EXPECT_DOUBLE_EQ(entries.resident_share, 0.75);
}

TEST(Think, DropsTheChannelsThatKvpressDoes) {
  // Float64 transcription of ThinKPress, window 3: energies 0.185911 0.454828 0.727815 1.149696 and 1.145156 0.760810
  // 0.958303 0.957677.
  const DenseLayer layer = golden_layer();
  const auto policy = policy_of("think(score=knorm,ratio=0.5,window=3)");
  std::vector<TokenIndex> all(12);
  for (TokenIndex t = 0; t < 12; ++t) all[t] = t;
  EXPECT_EQ(dropped(policy->transform(DenseFeatures(layer, 0), 0, all).keys), (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(dropped(policy->transform(DenseFeatures(layer, 1), 0, all).keys), (std::vector<std::size_t>{1, 3}));
}

TEST(Think, SparesTheNewestTokensInTheAuthorsForm) {
  const DenseLayer layer = golden_layer();
  const auto policy = policy_of("think(score=knorm,ratio=0.5,window=3,form=authors,recent=4)");
  const std::vector<TokenIndex> kept{1, 5, 8, 11};
  const Transformed entries = policy->transform(DenseFeatures(layer, 0), 0, kept);
  for (std::size_t c = 0; c < 4; ++c) EXPECT_EQ(entries.keys(2, c), static_cast<float>(layer.k[0][8][c]));
  EXPECT_EQ(dropped(entries.keys).size(), 0u);
  EXPECT_DOUBLE_EQ(entries.resident_share, 1 - 2.0 * 2 / (4 * 8));
}

TEST(Think, ChangesNothingAtRatioZero) {
  const DenseLayer layer = golden_layer();
  const std::vector<TokenIndex> kept{1, 5, 8};
  const Transformed entries = policy_of("think(score=knorm,ratio=0,window=3)")->transform(DenseFeatures(layer, 1), 0, kept);
  for (std::size_t i = 0; i < 3; ++i)
    for (std::size_t c = 0; c < 4; ++c) EXPECT_EQ(entries.keys(i, c), static_cast<float>(layer.k[1][kept[i]][c]));
  EXPECT_EQ(entries.resident_share, 1.0);
}

/// A key before the rotary embedding, turned to a position.
std::vector<double> at_position(std::vector<double> key, const Rope& rope, double position) {
  turn(key, rope, position);
  return key;
}

TEST(MovedTogether, PutsKeysWhereTheGapWas) {
  const std::vector<float> frequency{1.0f, 0.25f};
  for (const auto layout : {Rope::Layout::half, Rope::Layout::interleaved}) {
    const Rope rope{layout, frequency, 1.3};
    const std::vector<std::vector<double>> plain{{1, 2, 3, 4, 9}, {-1, .5, 2, 0, 8}, {.3, .2, -.1, 1, 7}};
    const std::vector<TokenIndex> kept{2, 5, 9};
    Matrix<float> keys(3, 5);
    for (std::size_t i = 0; i < 3; ++i)
      for (std::size_t c = 0; c < 5; ++c) keys(i, c) = static_cast<float>(1.3 * at_position(plain[i], rope, kept[i])[c]);
    const Matrix<float> moved = moved_together(keys.view(), kept, rope, 7);
    for (std::size_t i = 0; i < 3; ++i)
      for (std::size_t c = 0; c < 5; ++c) EXPECT_NEAR(moved(i, c), 1.3 * at_position(plain[i], rope, 7.0 + static_cast<double>(i))[c], 2e-5);
  }
}

TEST(MovedTogether, TurnsAsTheDefinitionSays) {
  // k cos + rot(k) sin with rot(k) = (-k2, k1), halves: a quarter turn of the first pair.
  std::vector<double> key{1, 2, 3, 4};
  const std::vector<float> frequency{1.5707964f, 0.0f};
  turn(key, {Rope::Layout::half, frequency, 1.0}, 1);
  EXPECT_NEAR(key[0], -3, 1e-6);
  EXPECT_NEAR(key[2], 1, 1e-6);
  EXPECT_EQ(key[1], 2);
  EXPECT_EQ(key[3], 4);
}

TEST(KeyRotation, KeepsDistancesToLaterQueries) {
  DenseLayer layer = golden_layer();
  layer.layout = Rope::Layout::half;
  layer.inverse_frequency = {1.0f, 0.1f};
  const std::vector<TokenIndex> kept{0, 3, 4, 11};
  const auto policy = policy_of("key_rotation(score=knorm)");
  const DenseFeatures head(layer, 1, policy->needs());
  const Transformed entries = policy->transform(head, 0, kept);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    // Compressed: key at i, query at 4 + t. Recorded: query at 12 + t, so the key belongs at 8 + i.
    std::vector<double> expected = layer.k[1][kept[i]];
    turn(expected, head.rope(), 8.0 + static_cast<double>(i) - kept[i]);
    for (std::size_t c = 0; c < 4; ++c) {
      EXPECT_NEAR(entries.keys(i, c), expected[c], 1e-6);
      EXPECT_EQ(entries.values(i, c), static_cast<float>(layer.v[1][kept[i]][c]));
    }
  }
  for (std::size_t c = 0; c < 4; ++c) EXPECT_EQ(entries.keys(3, c), static_cast<float>(layer.k[1][11][c]));  // the last one stays
}

/// MergingPress by definition, in double.
std::vector<std::vector<double>> merged(const DenseLayer& layer, std::size_t head, const std::vector<TokenIndex>& kept, double threshold, double fraction) {
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
    return sum;
  };
  const auto norm = [&](const std::vector<double>& a) { return std::sqrt(dot(a, a)); };
  const auto& k = layer.k[head];
  const auto& v = layer.v[head];
  std::vector<std::vector<double>> sum;
  std::vector<double> total(kept.size(), 1.0);
  for (const TokenIndex t : kept) sum.push_back(v[t]);
  struct Pair {
    TokenIndex token;
    std::size_t to;
    double cosine;
  };
  std::vector<Pair> pairs;
  for (TokenIndex e = 0; e < layer.geometry.prompt; ++e) {
    if (std::find(kept.begin(), kept.end(), e) != kept.end()) continue;
    Pair pair{e, 0, -2};
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const double cosine = dot(k[e], k[kept[i]]) / (norm(k[e]) * norm(k[kept[i]]));
      if (cosine > pair.cosine) pair = {e, i, cosine};
    }
    pairs.push_back(pair);
  }
  std::vector<double> sorted;
  for (const Pair& pair : pairs) sorted.push_back(pair.cosine);
  std::sort(sorted.begin(), sorted.end());
  const double place = (1 - fraction) * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const double least = fraction < 1 ? sorted[low] + (sorted[std::min(low + 1, sorted.size() - 1)] - sorted[low]) * (place - static_cast<double>(low)) : -2;
  for (const Pair& pair : pairs) {
    if (pair.cosine < threshold || pair.cosine < least) continue;
    const double own = norm(v[pair.token]);
    const double w = std::max(0.0, pair.cosine) * own / (own + norm(v[kept[pair.to]]) + 1e-6);
    total[pair.to] += w;
    for (std::size_t c = 0; c < 4; ++c) sum[pair.to][c] += w * v[pair.token][c];
  }
  for (std::size_t i = 0; i < kept.size(); ++i)
    for (double& x : sum[i]) x /= total[i];
  return sum;
}

TEST(Merging, MovesValuesToTheMostSimilarKey) {
  const DenseLayer layer = golden_layer();
  const std::vector<TokenIndex> kept{1, 4, 6, 10};
  const struct {
    const char* spec;
    double threshold, fraction;
  } cases[]{{"merging(score=knorm)", 0, 1}, {"merging(score=knorm,threshold=0.6)", 0.6, 1}, {"merging(score=knorm,threshold=-1,fraction=0.3)", -1, 0.3}};
  for (const auto& [spec, threshold, fraction] : cases) {
    const auto policy = policy_of(spec);
    for (std::uint32_t h = 0; h < 2; ++h) {
      const Transformed entries = policy->transform(DenseFeatures(layer, h, policy->needs()), 0, kept);
      const auto expected = merged(layer, h, kept, threshold, fraction);
      double moved = 0;
      for (std::size_t i = 0; i < kept.size(); ++i)
        for (std::size_t c = 0; c < 4; ++c) {
          EXPECT_NEAR(entries.values(i, c), expected[i][c], 1e-6) << spec;
          EXPECT_EQ(entries.keys(i, c), static_cast<float>(layer.k[h][kept[i]][c]));
          moved += std::abs(expected[i][c] - layer.v[h][kept[i]][c]);
        }
      EXPECT_GT(moved, 0.01) << spec;
    }
  }
}

TEST(Merging, LeavesEverythingWhereNothingIsEvictedOrNothingMayMerge) {
  const DenseLayer layer = golden_layer();
  std::vector<TokenIndex> all(12);
  for (TokenIndex t = 0; t < 12; ++t) all[t] = t;
  const Transformed whole = policy_of("merging(score=knorm)")->transform(DenseFeatures(layer, 0), 0, all);
  EXPECT_EQ(whole.values(3, 2), static_cast<float>(layer.v[0][3][2]));
  EXPECT_EQ(policy_of("merging(score=knorm)")->transform(DenseFeatures(layer, 0), 0, {}).values.rows(), 0u);
  const std::vector<TokenIndex> kept{1, 4};
  const Transformed strict = policy_of("merging(score=knorm,threshold=1)")->transform(DenseFeatures(layer, 0), 0, kept);
  EXPECT_EQ(strict.values(0, 1), static_cast<float>(layer.v[0][1][1]));
}

}  // namespace
}  // namespace kvsim::test
