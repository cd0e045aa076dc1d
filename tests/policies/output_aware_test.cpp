// Policies that look at values and outputs: golden values, brute force, and the equivalences between them.
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <numeric>
#include <set>

#include "kernels/error.h"
#include "policies/registry.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

/// The scores before those of the protected recent tokens.
void expect_start(std::span<const float> score, const Row& expected, Tolerance tolerance,
                  const std::string& what) {
  ASSERT_GE(score.size(), expected.size()) << what;
  expect_row(score.first(expected.size()), expected, tolerance, what);
}

/// Attention and output of one query over keys 0 .. sees-1 without the tokens in `without`, in double.
struct Attended {
  Row weights, output;
};
Attended attend(const DenseLayer& layer, std::size_t query_head, std::size_t position, std::size_t without) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t kv = query_head / g.group;
  Attended out{Row(g.prompt + g.decode, 0.0), Row(g.value_dim, 0.0)};
  double sum = 0;
  for (std::size_t t = 0; t <= position; ++t) {
    if (t == without) continue;
    double dot = 0;
    for (std::size_t c = 0; c < g.key_dim; ++c) dot += layer.q[query_head][position][c] * layer.k[kv][t][c];
    sum += out.weights[t] = std::exp(dot * g.softmax_scale);
  }
  for (std::size_t t = 0; t <= position; ++t) {
    out.weights[t] /= sum;
    for (std::size_t c = 0; c < g.value_dim; ++c) out.output[c] += out.weights[t] * layer.v[kv][t][c];
  }
  return out;
}

double distance(const Row& a, const Row& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += (a[c] - b[c]) * (a[c] - b[c]);
  return std::sqrt(sum);
}

constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

TEST(OracleOutput, IsTheChangeOfTheStackedOutputsByBruteForce) {
  const DenseLayer layer = random_layer(30, 2, 3, 11);
  const LayerGeometry& g = layer.geometry;
  const LayerScores joint = score_layer(*policy_of("oracle_output"), layer, true);
  const LayerScores each = score_layer(*policy_of("oracle_output(unit=query)"), layer, true);
  Row all(g.prompt, 0.0);
  for (std::size_t h = 3; h < 6; ++h) {
    Row one(g.prompt, 0.0);
    for (std::size_t s = 0; s < g.decode; ++s) {
      const Row whole = attend(layer, h, g.prompt + s, kNone).output;
      for (std::size_t t = 0; t < g.prompt; ++t) {
        const double change = distance(attend(layer, h, g.prompt + s, t).output, whole);
        one[t] += change * change;
        all[t] += change * change;
      }
    }
    for (double& x : one) x = std::sqrt(x);
    expect_row(each.units[h].score, one, 1e-5, "query head " + std::to_string(h));
  }
  for (double& x : all) x = std::sqrt(x);
  expect_row(joint.units[1].score, all, 1e-5, "KV head 1");
}

/// The example that OBCache, CAOTE and VATP share in the policy survey (G4): one head, q = [1, 1], scale
/// 1/sqrt(2).
DenseLayer example_layer() {
  const double keys[3][2] = {{2, 0}, {0, 1}, {-1, 0}}, values[3][2] = {{1, 0}, {0, 2}, {3, 3}};
  DenseLayer layer;
  layer.geometry.prompt = 3;
  layer.geometry.key_dim = layer.geometry.value_dim = 2;
  layer.geometry.softmax_scale = std::sqrt(0.5);
  layer.fill([](std::size_t, std::size_t, std::size_t) { return 1.0; },
             [&](std::size_t, std::size_t t, std::size_t c) { return keys[t][c]; },
             [&](std::size_t, std::size_t t, std::size_t c) { return values[t][c]; });
  return layer;
}

constexpr double kGolden = 3e-6;  // the survey's numbers have six decimals

TEST(WorkedExample, ValuesOfObCacheVatpAndCaote) {
  // G4 of the survey, made with numpy.
  const std::vector<std::pair<std::string, Row>> expected{
      {"obcache(form=value,base=tova)", {.384382, .373798, .099421}},
      {"obcache(form=key,base=tova)", {.554129, .096687, .025802}},
      {"obcache(base=tova)", {1.109261, .778585, .023926}},
      {"obcache(form=no_cross,base=tova)", {.384382 + .554129, .373798 + .096687, .099421 + .025802}},
      {"vatp(base=scissorhands,window=1,sinks=0,recent_share=0)", {.619985, .611391, .445918}},
      {"caote(score=compose(query=window(1),reduce=[mean],unit=query))", {1.385127, .633359, .245405}},
      {"fast_caote(score=compose(query=window(1),reduce=[mean],unit=query))", {2.772976, .605120, .171361}}};
  for (const auto& [spec, row] : expected)
    expect_row(score_layer(*policy_of(spec), example_layer(), true).units[0].score, row, kGolden, spec);
}

/// Sum over rows first .. prompt-1 of |a v + a s (v - o)|^2 and of its parts, in double: [value, key, joint].
std::vector<Row> damage(const DenseLayer& layer, std::size_t query_head, std::size_t first) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t kv = query_head / g.group;
  std::vector<Row> out(3, Row(g.prompt, 0.0));
  for (std::size_t p = first; p < g.prompt; ++p) {
    const Attended row = attend(layer, query_head, p, kNone);
    for (std::size_t t = 0; t <= p; ++t) {
      double logit = 0;
      for (std::size_t c = 0; c < g.key_dim; ++c)
        logit += layer.q[query_head][p][c] * layer.k[kv][t][c] * g.softmax_scale;
      for (std::size_t c = 0; c < g.value_dim; ++c) {
        const double a = row.weights[t], v = layer.v[kv][t][c], rest = a * logit * (v - row.output[c]);
        out[0][t] += a * v * a * v;
        out[1][t] += rest * rest;
        out[2][t] += (a * v + rest) * (a * v + rest);
      }
    }
  }
  return out;
}

TEST(ObCache, SumsTheDamageOverAWindowOrAllQueries) {
  const DenseLayer layer = random_layer(40, 2, 2, 3);
  for (const bool all : {false, true}) {
    const std::string rest = all ? ",recent=5,rows=all)" : ",recent=5)";
    for (std::size_t h = 0; h < 4; ++h) {
      std::vector<Row> expected = damage(layer, h, all ? 0 : 35);
      for (Row& row : expected) row.resize(35);  // the recent tokens are kept anyway
      const std::array<std::string, 3> forms{"value", "key", "joint"};
      for (std::size_t f = 0; f < 3; ++f) {
        const std::string spec = "obcache(form=" + forms[f] + rest;
        expect_start(score_layer(*policy_of(spec), layer, true).units[h].score, expected[f], 2e-5, spec);
      }
    }
  }
}

/// Orders of every unit are the same.
void expect_same_order(const std::string& a, const std::string& b, const DenseLayer& layer) {
  const auto first = policy_of(a), second = policy_of(b);
  const LayerRanking x = rank_layer(*first, layer.geometry, score_layer(*first, layer, true));
  const LayerRanking y = rank_layer(*second, layer.geometry, score_layer(*second, layer, true));
  EXPECT_EQ(x.order, y.order) << a << " and " << b;
}

TEST(ObCache, WithTheFirstPowerIsVatpWithoutSinks) {
  const DenseLayer layer = random_layer(60, 2, 2, 8);
  expect_same_order("obcache(form=value,p=1,rows=all,recent=6)", "vatp(sinks=0,recent=6,recent_share=0)",
                    layer);
  expect_same_order("obcache(form=value,p=1,recent=6)",
                    "vatp(base=scissorhands,window=6,sinks=0,recent=6,recent_share=0)", layer);
}

TEST(ObCache, WithTheFirstPowerAndNoValuesIsItsBase) {
  const DenseLayer layer = random_layer(60, 2, 2, 9);
  expect_same_order("obcache(form=value,p=1,vnorm=false,rows=all,recent=6)", "h2o(recent=6,unit=query)",
                    layer);
  expect_same_order("obcache(form=value,p=1,vnorm=false,base=snapkv,recent=6)",
                    "snapkv(window=6,kernel=7,pool=max,unit=query)", layer);
  expect_same_order("obcache(form=value,p=1,vnorm=false,base=tova)",
                    "compose(query=window(1),reduce=[mean],unit=query)", layer);
}

TEST(ObCache, RefusesCombinationsThatMeanNothing) {
  NoFiles files;
  EXPECT_THROW(policy_of("obcache(p=1)")->prepare(files), UserError);
  EXPECT_THROW(policy_of("obcache(form=key,vnorm=false)")->prepare(files), UserError);
  EXPECT_THROW(policy_of("obcache(base=tova,rows=all)")->prepare(files), UserError);
  EXPECT_THROW(policy_of("obcache(kernel=4)")->prepare(files), UserError);
  EXPECT_NO_THROW(policy_of("obcache(form=value,p=1,vnorm=false)")->prepare(files));
}

TEST(Vatp, SplitsEveryBudgetBetweenTheNewestAndTheBest) {
  DenseLayer layer = random_layer(40, 1, 1, 4);
  layer.budgets = {4, 10, 21, 40};
  const auto policy = policy_of("vatp(sinks=2)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  for (std::size_t b = 0; b < layer.budgets.size(); ++b) {
    const std::uint32_t budget = layer.budgets[b], recent = budget / 2;
    const std::vector<std::uint32_t> kept{budget};
    std::vector<TokenIndex> order = order_at(*policy, layer.geometry, ranking, {b, budget}, kept)[0];
    order.resize(budget);
    std::vector<TokenIndex> expected = {0, 1};
    for (TokenIndex t = 40; t-- > 40 - recent && expected.size() < budget;)
      if (t > 1) expected.push_back(t);
    for (const TokenIndex t : ranking.order[0])  // sinks first, then by score
      if (expected.size() < budget && std::find(expected.begin(), expected.end(), t) == expected.end())
        expected.push_back(t);
    std::sort(order.begin(), order.end());
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(order, expected) << budget;
  }
}

TEST(DropKv, PoolsTheSquaredChangesOfTheWindowsOutputs) {
  const DenseLayer layer = random_layer(30, 2, 2, 12, 0);
  const LayerScores scores = score_layer(*policy_of("dropkv(window=5,kernel=3)"), layer, true);
  for (std::size_t kv = 0; kv < 2; ++kv) {
    Row change(30, 0.0), expected;
    for (std::size_t h = 2 * kv; h < 2 * kv + 2; ++h) {
      for (std::size_t p = 25; p < 30; ++p) {
        const Row whole = attend(layer, h, p, kNone).output;
        for (std::size_t t = 0; t <= p; ++t) {
          const double moved = distance(attend(layer, h, p, t).output, whole);
          change[t] += moved * moved / 2;
        }
      }
    }
    for (std::size_t t = 0; t < 25; ++t)
      expected.push_back(((t > 0 ? change[t - 1] : 0) + change[t] + change[t + 1]) / 3);
    expect_start(scores.units[kv].score, expected, 1e-4, "KV head " + std::to_string(kv));
  }
}

TEST(Caote, IsTheExactChangeOfTheRowThatItScoresBy) {
  const DenseLayer layer = random_layer(25, 2, 2, 6, 0);
  const LayerScores scores = score_layer(
      *policy_of("caote(score=compose(query=window(1),reduce=[mean],unit=query),join=none)"), layer, true);
  for (std::size_t h = 0; h < 4; ++h) {
    const Row whole = attend(layer, h, 24, kNone).output;
    Row expected;
    for (std::size_t t = 0; t < 25; ++t) expected.push_back(distance(attend(layer, h, 24, t).output, whole));
    expect_row(scores.units[h].score, expected, 1e-5, "query head " + std::to_string(h));
  }
}

TEST(Caote, AveragesTheCostsOfQueryHeads) {
  const DenseLayer layer = random_layer(25, 2, 3, 7);
  const LayerScores each = score_layer(*policy_of("caote(join=none)"), layer, true);
  const LayerScores joined = score_layer(*policy_of("caote"), layer, true);
  ASSERT_EQ(each.units.size(), 6u);
  ASSERT_EQ(joined.units.size(), 2u);
  for (std::size_t t = 0; t < 25; ++t) {
    const float mean = (each.units[3].score[t] + each.units[4].score[t] + each.units[5].score[t]) / 3;
    EXPECT_NEAR(joined.units[1].score[t], mean, 1e-5f * mean);
  }
}

TEST(Caote, LeavesOutWhatTheScoreProtects) {
  // Equal to the cost over the unprotected tokens alone, as if the protected ones were not there.
  const DenseLayer layer = random_layer(25, 1, 1, 7);
  const LayerScores inner = score_layer(*policy_of("snapkv(window=4,kernel=3)"), layer);
  const LayerScores scores = score_layer(*policy_of("caote(score=snapkv(window=4,kernel=3))"), layer, true);
  double sum = 0;
  for (std::size_t t = 0; t < 21; ++t) sum += static_cast<double>(inner.units[0].score[t]);
  Row centre(layer.geometry.value_dim, 0.0), expected;
  for (std::size_t t = 0; t < 21; ++t)
    for (std::size_t c = 0; c < centre.size(); ++c)
      centre[c] += static_cast<double>(inner.units[0].score[t]) / sum * layer.v[0][t][c];
  for (std::size_t t = 0; t < 21; ++t) {
    const double alpha = static_cast<double>(inner.units[0].score[t]) / sum;
    expected.push_back(alpha / (1 - alpha) * distance(layer.v[0][t], centre));
  }
  expect_start(scores.units[0].score, expected, 1e-5, "snapkv");
  EXPECT_EQ(scores.units[0].protected_tokens, inner.units[0].protected_tokens);
}

TEST(Caote, RefusesScoresThatAreNoAttention) {
  const DenseLayer layer = random_layer(10, 1, 1, 7);
  EXPECT_THROW(score_layer(*policy_of("caote(score=knorm)"), layer), UserError);
  NoFiles files;
  EXPECT_THROW(policy_of("caote(score=critical)")->prepare(files), UserError);
}

/// The golden inputs with W_O[a][c][m] = cos(0.2a + 0.5c - 0.3m), m < 5.
DenseLayer projected_golden_layer() {
  DenseLayer layer = golden_layer();
  const auto real = [](std::size_t i) { return static_cast<double>(i); };
  for (std::size_t a = 0; a < 4; ++a) {
    std::vector<std::vector<double>> rows(4, Row(5));
    for (std::size_t c = 0; c < 4; ++c)
      for (std::size_t m = 0; m < 5; ++m)
        rows[c][m] = std::cos(0.2 * real(a) + 0.5 * real(c) - 0.3 * real(m));
    layer.output_projection.push_back(rows);
  }
  return layer;
}

TEST(Golden, CriticalKv) {
  // Norms and second-stage scores of the formulas' section on golden values (independent float64
  // transcription).
  const Row norms{4.972566, 9.402194, 11.531460, 10.837422, 7.490005, 3.773860,
                  3.851334, 8.342550, 11.204828, 11.323772, 8.670263, 4.563951};
  const std::vector<Row> second{
      {0.324110, 0.875256, 0.982995, 0.866988, 0.599726, 0.317828, 0.348750, 0.820880, 0.766826},
      {0.453399, 0.653079, 0.502767, 0.375669, 0.361828, 0.788565, 1.212004, 1.207949, 0.617116}};
  DenseLayer layer = projected_golden_layer();
  layer.budgets = {6};
  const auto policy = policy_of("critical(score=snapkv(window=3,kernel=3))");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  expect_row(ranking.scores.units[0].extra, norms, kGolden, "norms of KV head 0");
  const std::vector<std::uint32_t> kept{6, 6};
  const auto order = order_at(*policy, layer.geometry, ranking, {0, 6}, kept);
  for (std::size_t h = 0; h < 2; ++h) {
    EXPECT_EQ(std::set<TokenIndex>(order[h].begin(), order[h].begin() + 3),
              (std::set<TokenIndex>{9, 10, 11}));
    std::vector<TokenIndex> expected(9);
    std::iota(expected.begin(), expected.end(), 0);
    std::sort(expected.begin(), expected.end(),
              [&](TokenIndex a, TokenIndex b) { return second[h][a] > second[h][b]; });
    EXPECT_EQ(std::vector<TokenIndex>(order[h].begin() + 3, order[h].end()), expected) << "KV head " << h;
    Row weighed;
    for (std::size_t t = 0; t < 9; ++t) {
      const UnitScores& unit = ranking.scores.units[h];
      weighed.push_back((static_cast<double>(unit.score[t]) + 1e-4) * static_cast<double>(unit.extra[t]));
    }
    for (std::size_t t = 0; t < 9; ++t) EXPECT_NEAR(weighed[t], second[h][t], kGolden) << h << ", " << t;
  }
}

TEST(WorkedExample, CriticalKvPrefersLargeProjectedValues) {
  // G12: a = [.40 .30 .15 .10 .05], norms [1 .2 1 3 8], budget 3: {0, 3, 4}, by attention {0, 1, 2}.
  const double attention[5] = {.40, .30, .15, .10, .05}, norms[5] = {1, .2, 1, 3, 8};
  DenseLayer layer;
  layer.geometry.prompt = layer.geometry.key_dim = 5;
  layer.geometry.value_dim = 1;
  layer.fill([&](std::size_t, std::size_t, std::size_t c) { return std::log(attention[c]); },
             [](std::size_t, std::size_t t, std::size_t c) { return t == c ? 1.0 : 0.0; },
             [&](std::size_t, std::size_t t, std::size_t) { return norms[t]; });
  layer.output_projection = {{{-1.0}}};
  layer.budgets = {3};
  const auto policy = policy_of("critical(score=compose(query=window(1),reduce=[mean,group(mean)]))");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const std::vector<std::uint32_t> kept{3};
  std::vector<TokenIndex> order = order_at(*policy, layer.geometry, ranking, {0, 3}, kept)[0];
  EXPECT_EQ(order[0], 0u);
  EXPECT_EQ(std::set<TokenIndex>(order.begin(), order.begin() + 3), (std::set<TokenIndex>{0, 3, 4}));
  EXPECT_EQ(ranking.order[0], (std::vector<TokenIndex>{0, 1, 2, 3, 4}));
}

DenseLayer projected_layer(std::uint64_t seed) {
  DenseLayer layer = random_layer(40, 2, 2, seed);
  for (std::size_t a = 0; a < 4; ++a) {
    std::vector<std::vector<double>> rows(8, Row(7));
    for (std::size_t c = 0; c < 8; ++c)
      for (std::size_t m = 0; m < 7; ++m)
        rows[c][m] = Philox(seed, stream_of(9, a, c, m)).next_double() - 0.5;
    layer.output_projection.push_back(rows);
  }
  return layer;
}

TEST(Critical, WithAFirstStageOfEverythingIsItsScore) {
  DenseLayer layer = projected_layer(21);
  layer.budgets = {1, 7, 30};
  const auto policy = policy_of("critical(score=snapkv(window=5),first=1)");
  const auto base = policy_of("snapkv(window=5)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const LayerRanking plain = rank_layer(*base, layer.geometry, score_layer(*base, layer, true));
  for (std::size_t b = 0; b < 3; ++b) {
    const std::vector<std::uint32_t> kept(2, layer.budgets[b]);
    const auto order = order_at(*policy, layer.geometry, ranking, {b, layer.budgets[b]}, kept);
    for (std::size_t u = 0; u < 2; ++u)
      for (std::size_t i = 0; i < kept[u]; ++i) EXPECT_EQ(order[u][i], plain.order[u][i]);
  }
}

TEST(Critical, AroundAdaIsThePressOfBoth) {
  // A transcription of kvpress's CriticalAdaKVPress in double: safe tokens, head budgets, stage 1, stage 2.
  DenseLayer layer = projected_layer(22);
  layer.budgets = {6, 12, 25};
  const auto policy = policy_of("critical(score=ada(score=snapkv(window=4),alpha=0.3),safe=0.3)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer, true));
  const LayerScores inner = score_layer(*policy_of("snapkv(window=4)"), layer);
  for (std::size_t b = 0; b < 3; ++b) {
    const std::uint32_t budget = layer.budgets[b];
    const std::vector<std::uint32_t> kept = allocate(*policy, layer, ranking, budget);
    const auto order = order_at(*policy, layer.geometry, ranking, {b, budget}, kept);
    const auto safe = static_cast<std::size_t>(budget * 0.3);
    std::vector<Row> score;
    for (const UnitScores& unit : inner.units) score.emplace_back(unit.score.begin(), unit.score.end());
    const auto best = [](const Row& row, std::size_t n) {
      std::vector<std::size_t> list(row.size());
      std::iota(list.begin(), list.end(), 0);
      std::stable_sort(list.begin(), list.end(),
                       [&](std::size_t x, std::size_t y) { return row[x] > row[y]; });
      list.resize(n);
      return list;
    };
    constexpr double kMost = 1e30;
    for (Row& row : score)
      for (const std::size_t t : best(row, safe)) row[t] = kMost;
    Row flat;
    for (const Row& row : score) flat.insert(flat.end(), row.begin(), row.end());
    std::vector<std::size_t> heads(2, 0);
    for (const std::size_t i : best(flat, std::size_t{budget} * 2)) ++heads[i / 40];
    for (std::size_t h = 0; h < 2; ++h) {
      ASSERT_EQ(kept[h], heads[h]) << "budget " << budget;
      for (const std::size_t t : best(score[h], heads[h] / 2)) score[h][t] = kMost;
      for (std::size_t t = 0; t < 40; ++t) {
        double norm = 0;
        for (std::size_t a = 2 * h; a < 2 * h + 2; ++a) {
          for (std::size_t m = 0; m < 7; ++m) {
            double projected = 0;
            for (std::size_t c = 0; c < 8; ++c)
              projected += layer.v[h][t][c] * layer.output_projection[a][c][m];
            norm += std::abs(projected) / 2;
          }
        }
        score[h][t] = (score[h][t] + 1e-4) * norm;
      }
      const std::vector<std::size_t> expected = best(score[h], heads[h]);
      EXPECT_EQ(std::set<TokenIndex>(order[h].begin(), order[h].begin() + kept[h]),
                std::set<TokenIndex>(expected.begin(), expected.end()))
          << "budget " << budget << ", KV head " << h;
    }
  }
}

}  // namespace
}  // namespace kvsim::test
