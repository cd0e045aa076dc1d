// What must hold for every policy or for whole families of them, on random layers.
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "kernels/error.h"
#include "kernels/order.h"
#include "policies/allotment.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

/// Hands out one array under any name.
class OneArray final : public Resources {
 public:
  explicit OneArray(ExternalArray array) : array_(std::move(array)) {}
  const ExternalArray& array(const std::string&, const std::string&) override { return array_; }

 private:
  ExternalArray array_;
};

/// Policies with windows that fit short prompts; every registered name occurs.
const std::vector<std::string>& specs() {
  static const std::vector<std::string> all{
      "ada(score=snapkv(window=4,kernel=3))",
      "pool(score=snapkv(window=4,kernel=3),floor=0.3)",
      "key_rotation(score=snapkv(window=4))",
      "merging(score=knorm)",
      "think(score=snapkv(window=4),window=4)",
      "ada(score=snapkv(window=4,kernel=3),alpha=0.5,form=interp)",
      "ada(score=snapkv(window=4,kernel=3),form=interp,total=repo)",
      "ada(score=snapkv(window=4,unit=query))",
      "ada(score=tova)",
      "ada(score=lagkv(sinks=2,lag=5))",
      "ada(score=pyramidkv(window=2,beta=3))",
      "block(score=keydiff,length=5)",
      "caote",
      "caote(score=snapkv(window=4),join=none)",
      "capkv",
      "chunk(score=keydiff,length=7)",
      "chunk(score=lagkv(sinks=1,lag=2),length=9)",
      "chunkkv(score=snapkv(window=4,kernel=3),length=6)",
      "chunkkv(score=expected_attention)",
      "compose(query=window(4),reduce=[mean,max(3),group(max)],value=l2,sinks=2,recent=3)",
      "compose(query=all,reduce=[visible,group(mean)],heads=ada(0.3),layers=pyramid(4),recent=2)",
      "compose(query=window(4),reduce=[sum,group(mean)],unit=layer)",
      "compose(base=keydiff,reduce=[avg(3)],recent=4)",
      "compose(score=snapkv(window=4),value=l1,heads=ada,sinks=3)",
      "compactor(sinks=2,recent=1,chunk=8)",
      "compactor(blending=0.3,chunk=50)",
      "critical(score=snapkv(window=4))",
      "critical(score=ada(score=snapkv(window=4,unit=query)))",
      "cur",
      "cur(leverage=value,local=0)",
      "dropkv(window=4,kernel=3)",
      "expected_attention",
      "fast_caote(score=tova)",
      "finch(window=4)",
      "finch(window=4,length=6,normalize=false)",
      "full",
      "h2o",
      "h2o(unit=query,recent=5)",
      "keydiff",
      "knorm",
      "lagkv(sinks=2,lag=5)",
      "lagkv",
      "laq(length=3)",
      "laq_pp(window=4,mask=repo,unit=query)",
      "leverage",
      "leverage(sketch=6,seed=3)",
      "nacl(suffix=4)",
      "nacl(suffix=2,prefix=3,random=0.5,unit=kv)",
      "noncausal(chunk=7)",
      "obcache(recent=4)",
      "obcache(form=value,base=snapkv,recent=4,unit=kv,sinks=2)",
      "obcache(form=no_cross,rows=all,recent=3)",
      "obcache(form=key,base=tova)",
      "observed_attention",
      "oracle_output",
      "oracle_output(unit=query)",
      "oracle_static",
      "oracle_topk",
      "pyramidkv(window=2,kernel=3,beta=3)",
      "pyramidkv(window=2,kernel=3,beta=3,form=authors)",
      "qfilter",
      "random",
      "scissorhands(window=6,recent=2)",
      "scissorhands(form=count,window=6,unit=kv)",
      "skip(score=keydiff,layers=[0,3])",
      "snapkv(window=4)",
      "snapkv(window=4,unit=query,pool=max)",
      "streaming_llm",
      "tova",
      "vatp",
      "vatp(base=scissorhands,window=6,sinks=2,recent=3,recent_share=0,unit=kv,group=max)"};
  return all;
}

/// Policies that cannot be made without a file; their own tests give them one. Those that share budget over the layers or
/// choose their own size cannot be allocated one layer at a time: tests/policies/allocators_test.cpp and the contract do.
const std::set<std::string_view> kElsewhere{"expected_attention_stats", "external", "fastkvzip", "kvzap", "lu",
                                            "cake", "dbudgetkv", "duo", "kvcompose", "kvzip", "per_layer", "simlayer"};

/// The layer with a projection to five channels, two first passes with pseudo queries, and all budgets.
DenseLayer completed(DenseLayer layer) {
  const std::size_t heads = layer.geometry.kv_heads * layer.geometry.group, dv = layer.geometry.value_dim;
  for (std::size_t a = 0; a < heads; ++a) {
    layer.output_projection.emplace_back(dv, std::vector<double>(5));
    for (std::size_t c = 0; c < dv; ++c)
      for (std::size_t m = 0; m < 5; ++m) layer.output_projection[a][c][m] = std::cos(static_cast<double>(7 * a + 3 * c + m));
  }
  for (const std::uint32_t capacity : {8u, 16u}) {
    const std::string name = "snapkv-" + std::to_string(capacity);
    layer.geometry.lookaheads.push_back({name, capacity, 8});
    auto& queries = layer.lookahead[name];
    for (std::size_t a = 0; a < heads; ++a) {
      queries.emplace_back(8, std::vector<double>(layer.geometry.key_dim));
      for (std::size_t i = 0; i < 8; ++i)
        for (std::size_t c = 0; c < layer.geometry.key_dim; ++c)
          queries[a][i][c] = 4 * std::sin(static_cast<double>(capacity + 5 * a + 3 * i + 2 * c));
    }
  }
  for (std::uint32_t budget = 1; budget <= layer.geometry.prompt; ++budget) layer.budgets.push_back(budget);
  return layer;
}

std::vector<DenseLayer> layers() {
  std::vector<DenseLayer> out;
  out.push_back(completed(random_layer(41, 2, 1, 1)));
  out.push_back(completed(random_layer(30, 2, 3, 2)));
  out.push_back(completed(random_layer(23, 1, 7, 3)));
  return out;
}

class EverySpec : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Policy> policy() const {
    auto out = policy_of(GetParam());
    OneArray none({});
    out->prepare(none);
    return out;
  }
};

TEST_P(EverySpec, RanksAllTokensWithTheProtectedOnesFirst) {
  for (const DenseLayer& layer : layers()) {
    const auto p = policy();
    const LayerRanking ranking = rank_layer(*p, layer.geometry, score_layer(*p, layer));
    for (std::size_t u = 0; u < ranking.order.size(); ++u) {
      std::vector<TokenIndex> sorted = ranking.order[u];
      std::sort(sorted.begin(), sorted.end());
      std::vector<TokenIndex> all(layer.geometry.prompt);
      std::iota(all.begin(), all.end(), TokenIndex{0});
      EXPECT_EQ(sorted, all);
      const auto& guarded = ranking.scores.units[u].protected_tokens;
      EXPECT_TRUE(std::equal(guarded.begin(), guarded.end(), ranking.order[u].begin()));
    }
  }
}

TEST_P(EverySpec, ReadsOnlyWhatItDeclares) {
  for (const DenseLayer& layer : layers()) {
    const auto p = policy();
    const LayerScores open = score_layer(*p, layer), strict = score_layer(*p, layer, true);
    for (std::size_t u = 0; u < open.units.size(); ++u) EXPECT_EQ(open.units[u].score, strict.units[u].score);
  }
}

TEST_P(EverySpec, KeepsEverythingAtAFullBudgetAndNeverMoreThanThereIs) {
  for (const DenseLayer& layer : layers()) {
    const auto p = policy();
    const LayerRanking ranking = rank_layer(*p, layer.geometry, score_layer(*p, layer));
    const auto tokens = static_cast<std::uint32_t>(layer.geometry.prompt);
    for (const std::uint32_t budget : {tokens, tokens + 1, 10 * tokens}) {
      for (const std::uint32_t kept : allocate(*p, layer, ranking, budget)) EXPECT_EQ(kept, tokens) << budget;
    }
    for (std::uint32_t budget = 1; budget < tokens; ++budget) {
      for (const std::uint32_t kept : allocate(*p, layer, ranking, budget)) EXPECT_LE(kept, tokens) << budget;
    }
  }
}

TEST_P(EverySpec, KeepsNoFewerTokensAtALargerBudgetWhereItClaimsToBeNested) {
  for (const DenseLayer& layer : layers()) {
    const auto p = policy();
    if (!p->traits().nested) GTEST_SKIP() << "claims nothing";
    const LayerRanking ranking = rank_layer(*p, layer.geometry, score_layer(*p, layer));
    std::vector<std::uint32_t> before(ranking.order.size(), 0);
    for (std::uint32_t budget = 1; budget <= layer.geometry.prompt; ++budget) {
      const auto kept = allocate(*p, layer, ranking, budget);
      for (std::size_t u = 0; u < kept.size(); ++u) EXPECT_GE(kept[u], before[u]) << "budget " << budget;
      before = kept;
    }
  }
}

TEST_P(EverySpec, SumsExactlyToTheBudget) {
  const std::string& spec = GetParam();
  if (spec.find("repo") != std::string::npos || spec.starts_with("chunk") || spec == "full" ||
      spec.starts_with("finch(window=4,length") || spec.starts_with("skip")) {
    GTEST_SKIP() << "says that it does not";
  }
  for (DenseLayer layer : layers()) {
    const auto p = policy();
    for (std::uint32_t budget = 1; budget <= layer.geometry.prompt; ++budget) {
      std::uint64_t sum = 0, units = 0;
      const auto layer_count =
          p->scope() == Scope::model ? layer.geometry.recorded_layers : std::vector<std::uint32_t>{1};
      for (const std::uint32_t l : layer_count) {
        layer.geometry.layer = l;
        const LayerRanking ranking = rank_layer(*p, layer.geometry, score_layer(*p, layer));
        const auto kept = allocate(*p, layer, ranking, budget);
        sum = std::accumulate(kept.begin(), kept.end(), sum);
        units += kept.size();
      }
      EXPECT_EQ(sum, units * budget) << "budget " << budget;
    }
  }
}

TEST_P(EverySpec, GivesTheSameBitsAgain) {
  const DenseLayer layer = completed(random_layer(37, 2, 2, 9));
  const auto a = policy(), b = policy();
  const LayerScores first = score_layer(*a, layer), second = score_layer(*b, layer);
  for (std::size_t u = 0; u < first.units.size(); ++u) EXPECT_EQ(first.units[u].score, second.units[u].score);
}

INSTANTIATE_TEST_SUITE_P(Policies, EverySpec, testing::ValuesIn(specs()), [](const auto& spec) {
  std::string name = std::to_string(spec.index) + "_";
  for (const char c : spec.param.substr(0, 40))
    name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
});

TEST(EverySpecList, CoversTheWholeRegistry) {
  std::set<std::string> named;
  for (const std::string& spec : specs()) named.insert(spec.substr(0, spec.find('(')));
  for (const PolicyTraits* traits : all_policies()) {
    EXPECT_NE(kElsewhere.contains(traits->name), named.contains(std::string(traits->name))) << traits->name;
  }
}

/// Ranking and counts of two policies agree to the last bit at every budget.
void expect_equal(std::string_view a, std::string_view b) {
  for (const DenseLayer& layer : layers()) {
    const auto first = policy_of(a), second = policy_of(b);
    const LayerRanking left = rank_layer(*first, layer.geometry, score_layer(*first, layer));
    const LayerRanking right = rank_layer(*second, layer.geometry, score_layer(*second, layer));
    ASSERT_EQ(left.order, right.order) << a << " and " << b;
    for (std::size_t u = 0; u < left.order.size(); ++u) {
      EXPECT_EQ(left.scores.units[u].score, right.scores.units[u].score) << a << " and " << b;
    }
    for (std::uint32_t budget = 1; budget <= layer.geometry.prompt; ++budget) {
      EXPECT_EQ(allocate(*first, layer, left, budget), allocate(*second, layer, right, budget))
          << a << " and " << b;
    }
  }
}

TEST(Compose, PresetsAreTheNamedPoliciesToTheLastBit) {
  expect_equal("snapkv(window=8)",
               "compose(query=window(8),base=attention,reduce=[mean,avg(5),group(mean)],recent=8)");
  expect_equal("snapkv(window=8,kernel=7,pool=max,group=max)",
               "compose(query=window(8),reduce=[mean,max(7),group(max)],recent=8)");
  expect_equal("snapkv(window=8,unit=query)",
               "compose(query=window(8),reduce=[mean,avg(5)],recent=8,unit=query)");
  expect_equal("h2o", "compose(query=all,reduce=[sum,group(mean)])");
  expect_equal("observed_attention", "compose(query=all,reduce=[visible,group(mean)])");
  expect_equal("tova", "compose(query=window(1),reduce=[mean,group(mean)],recent=1,unit=layer)");
  expect_equal("knorm", "compose(base=knorm)");
  expect_equal("keydiff", "compose(base=keydiff)");
  expect_equal("streaming_llm(3)", "compose(base=position,sinks=3)");
  expect_equal("ada(score=snapkv(window=4),alpha=0.3)",
               "compose(query=window(4),reduce=[mean,avg(5),group(mean)],recent=4,heads=ada(0.3))");
  expect_equal("ada(score=snapkv(window=4))", "compose(score=snapkv(window=4),heads=ada)");
  expect_equal("pyramidkv(window=2,beta=3)",
               "compose(query=window(2),reduce=[mean,avg(5),group(mean)],recent=2,layers=pyramid(3))");
}

TEST(Equivalences, OfTheLiteratureHold) {
  expect_equal("snapkv(window=4)", "ada(score=snapkv(window=4),alpha=1)");
  expect_equal("snapkv(window=4)", "ada(score=snapkv(window=4),alpha=1,form=interp)");
  expect_equal("snapkv(window=4)", "pyramidkv(window=4,beta=1)");
}

TEST(Chunk, OfTheWholePromptKeepsWhatItsScorerKeeps) {
  for (const DenseLayer& layer : layers()) {
    const auto whole = policy_of("chunk(score=keydiff,length=1000)"), plain = policy_of("keydiff");
    const LayerRanking left = rank_layer(*whole, layer.geometry, score_layer(*whole, layer));
    const LayerRanking right = rank_layer(*plain, layer.geometry, score_layer(*plain, layer));
    EXPECT_EQ(left.order, right.order);
    for (std::uint32_t budget = 1; budget <= layer.geometry.prompt; ++budget) {
      EXPECT_EQ(allocate(*whole, layer, left, budget), allocate(*plain, layer, right, budget));
    }
  }
}

TEST(Chunk, KeepsTheShareOfEveryChunkThatItsScorerRanksBest) {
  // kvpress: max(1, trunc(length * ratio)) of each chunk of 7 by the scores of that chunk alone.
  const DenseLayer layer = random_layer(30, 1, 1, 2);
  const auto policy = policy_of("chunk(score=knorm,length=7)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  const LayerScores norms = score_layer(*policy_of("knorm"), layer);
  for (std::uint32_t budget = 1; budget <= 30; ++budget) {
    std::vector<TokenIndex> expected;
    for (std::size_t begin = 0; begin < 30; begin += 7) {
      const std::size_t length = std::min<std::size_t>(7, 30 - begin);
      std::vector<TokenIndex> order(length);
      sort_descending(std::span(norms.units[0].score).subspan(begin, length), order);
      order.resize(std::max<std::size_t>(1, length * budget / 30));
      for (const TokenIndex t : order) expected.push_back(t + static_cast<TokenIndex>(begin));
    }
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(kept_tokens(ranking, 0, allocate(*policy, layer, ranking, budget)[0]), expected) << budget;
  }
}

TEST(Compose, RefusesPartsThatDoNotFit) {
  OneArray none({});
  for (const char* spec :
       {"compose(base=knorm,query=window(3))", "compose(base=knorm,reduce=[mean])",
        "compose(base=keydiff,value=l1)", "compose(query=none)", "compose(reduce=[avg(3),mean,group(mean)])",
        "compose(reduce=[mean,sum,group(mean)])", "compose(reduce=[visible,group(mean)])",
        "compose(reduce=[mean])", "compose(unit=layer,heads=ada)", "compose(score=pyramidkv,layers=pyramid)",
        "snapkv(kernel=4)", "ada(score=none)", "chunk(score=h2o)", "chunkkv(score=h2o(unit=query))",
        "chunk(score=ada(keydiff))", "external", "external(file=a)"}) {
    EXPECT_THROW(policy_of(spec)->prepare(none), UserError) << spec;
  }
}

TEST(Compose, MultipliesByTheNormsOfValues) {
  const DenseLayer layer = random_layer(20, 1, 1, 4);
  const auto plain = score_layer(*policy_of("h2o"), layer);
  const auto l1 = score_layer(*policy_of("compose(score=h2o,value=l1)"), layer);
  const auto l2 = score_layer(*policy_of("compose(query=all,reduce=[sum,group(mean)],value=l2)"), layer);
  for (std::size_t t = 0; t < 20; ++t) {
    double sum = 0, squares = 0;
    for (const double x : layer.v[0][t]) {
      sum += std::abs(x);
      squares += x * x;
    }
    const auto score = static_cast<double>(plain.units[0].score[t]);
    EXPECT_NEAR(static_cast<double>(l1.units[0].score[t]), score * sum, 1e-5 * score * sum);
    EXPECT_NEAR(static_cast<double>(l2.units[0].score[t]), score * std::sqrt(squares), 1e-5 * score);
  }
}

TEST(Compose, AddsItsOwnProtectionToTheInnerPolicys) {
  const DenseLayer layer = random_layer(20, 1, 1, 4);
  const auto policy = policy_of("compose(score=snapkv(window=3),sinks=2,recent=5)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  EXPECT_EQ(ranking.scores.units[0].protected_tokens, (std::vector<TokenIndex>{0, 1, 19, 18, 17, 16, 15}));
}

TEST(ProtectedOrder, IsSinksInOrderThenNewestToOldest) {
  EXPECT_EQ(protected_order(10, 2, 3), (std::vector<TokenIndex>{0, 1, 9, 8, 7}));
  EXPECT_EQ(protected_order(4, 3, 3), (std::vector<TokenIndex>{0, 1, 2, 3}));
  EXPECT_EQ(protected_order(3, 9, 9), (std::vector<TokenIndex>{0, 1, 2}));
  EXPECT_EQ(protected_order(3, 0, 0), std::vector<TokenIndex>{});
}

TEST(Protection, SurvivesEveryBudgetThatCanHoldItAndSmallOnesKeepSinksThenTheNewest) {
  const DenseLayer layer = random_layer(30, 2, 2, 8);
  const auto policy = policy_of("lagkv(sinks=2,lag=5)");  // protects 0, 1 and the last block with its rest
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  EXPECT_EQ(kept_tokens(ranking, 0, 1), std::vector<TokenIndex>{0});
  EXPECT_EQ(kept_tokens(ranking, 0, 4), (std::vector<TokenIndex>{0, 1, 28, 29}));
  const auto guarded = ranking.scores.units[0].protected_tokens.size();
  EXPECT_EQ(guarded, 2u + 5 + 3);  // (30 - 2) / 5 blocks leave three tokens over
}

TEST(JointCounts, AgreesWithSortingTheWholeLayer) {
  Philox numbers(3, 3);
  for (int round = 0; round < 300; ++round) {
    const std::size_t units = 1 + numbers.next_below(4), tokens = 1 + numbers.next_below(12);
    LayerRanking ranking;
    for (std::size_t u = 0; u < units; ++u) {
      UnitScores unit;
      for (std::size_t t = 0; t < tokens; ++t)
        unit.score.push_back(static_cast<float>(numbers.next_below(6)));
      std::vector<TokenIndex> order(tokens);
      sort_descending(unit.score, order);
      ranking.scores.units.push_back(unit);
      ranking.order.push_back(order);
    }
    const std::vector<std::uint32_t> floors(units,
                                            numbers.next_below(static_cast<std::uint32_t>(tokens) + 1));
    for (std::uint64_t total = units * floors[0]; total <= units * tokens; ++total) {
      // Plain reference: floors are taken, then token by token the best (score, earlier position, lower
      // unit).
      std::vector<std::uint32_t> expected = floors;
      for (std::uint64_t left = total - units * floors[0]; left > 0; --left) {
        std::size_t best = units;
        for (std::size_t u = 0; u < units; ++u) {
          if (expected[u] == tokens) continue;
          const auto key = [&](std::size_t v) {
            const TokenIndex t = ranking.order[v][expected[v]];
            return std::tuple(-ranking.scores.units[v].score[t], t, v);
          };
          if (best == units || key(u) < key(best)) best = u;
        }
        ++expected[best];
      }
      ASSERT_EQ(joint_counts(ranking, total, floors), expected) << "round " << round << ", total " << total;
    }
  }
}

TEST(Ada, GuaranteesTheShareOfTheBudgetRoundedDown) {
  // By hand: four tokens per head, alpha 0.3 makes trunc(1.2) = 1 certain, and the first head wins all the
  // rest.
  LayerScores scores{Unit::kv, {{{9, 9, 9, 9, 9, 9, 9, 9}, {}, {}, {}}, {{1, 1, 1, 1, 1, 1, 1, 1}, {}, {}, {}}}};
  LayerGeometry geometry;
  geometry.prompt = 8;
  const auto policy = policy_of("ada(alpha=0.3)");
  std::vector<std::uint32_t> kept(2);
  policy->allocate(geometry, rank_layer(*policy, geometry, scores), 4, kept);
  EXPECT_EQ(kept, (std::vector<std::uint32_t>{7, 1}));
}

TEST(RoundToTotal, KeepsTheTotalAndTheCeiling) {
  EXPECT_EQ(round_to_total({1.5, 1.5, 1.0}, 4, 10), (std::vector<std::uint32_t>{2, 1, 1}));
  EXPECT_EQ(round_to_total({8.0, 1.0, 1.0}, 10, 6),
            (std::vector<std::uint32_t>{6, 2, 2}));  // by hand: 2 spread evenly
  EXPECT_EQ(round_to_total({0.0, 0.0}, 3, 2), (std::vector<std::uint32_t>{2, 1}));
  Philox numbers(5, 5);
  for (int round = 0; round < 500; ++round) {
    std::vector<double> shares;
    for (std::uint32_t n = 1 + numbers.next_below(9); n-- > 0;) shares.push_back(numbers.next_double() * 20);
    const std::uint32_t most = 1 + numbers.next_below(30);
    const std::uint64_t total = numbers.next_below(static_cast<std::uint32_t>(most * shares.size()) + 1);
    const auto counts = round_to_total(shares, total, most);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::uint64_t{0}), total);
    for (const std::uint32_t n : counts) EXPECT_LE(n, most);
  }
}

TEST(PyramidKv, KeepsTheTotalOverASubsetOfTheLayers) {
  const auto policy = policy_of("pyramidkv(window=8,beta=20)");
  DenseLayer layer;
  layer.geometry.prompt = 2000;
  layer.geometry.model_layers = 30;
  layer.geometry.recorded_layers = {0, 1, 5, 28};
  LayerRanking ranking;
  ranking.order.resize(1);
  for (std::uint32_t budget = 1; budget <= 2000; budget += 13) {
    std::uint64_t sum = 0;
    for (const std::uint32_t l : layer.geometry.recorded_layers) {
      layer.geometry.layer = l;
      sum += allocate(*policy, layer, ranking, budget)[0];
    }
    EXPECT_EQ(sum, 4u * budget);
  }
}

TEST(Random, IsKeyedBySeedTraceLayerAndHeadAlone) {
  DenseLayer layer = random_layer(16, 2, 1, 1);
  const auto scores = [&](std::string_view spec) { return score_layer(*policy_of(spec), layer).units; };
  const auto first = scores("random");
  EXPECT_NE(first[0].score, first[1].score);
  EXPECT_NE(first[0].score, scores("random(1)")[0].score);
  EXPECT_EQ(first[0].score, scores("random(seed=0)")[0].score);
  layer.geometry.layer = 2;
  EXPECT_NE(first[0].score, scores("random")[0].score);
  layer.geometry.layer = 1;
  layer.geometry.trace_digest = 77;
  EXPECT_NE(first[0].score, scores("random")[0].score);
}

TEST(LagKv, RanksTheEarlierOfEqualTokensHigher) {
  DenseLayer layer = random_layer(12, 1, 1, 4);
  for (auto* tensor : {&layer.k, &layer.v}) (*tensor)[0][1] = (*tensor)[0][0];
  const LayerScores scores = score_layer(*policy_of("lagkv(sinks=0,lag=4)"), layer);
  EXPECT_GT(scores.units[0].score[0], scores.units[0].score[1]);
}

TEST(LagKv, KeepsTheNewestOfAShortPromptAndSurvivesConstantChannels) {
  DenseLayer layer = random_layer(20, 1, 1, 4);
  const auto policy = policy_of("lagkv(sinks=2,lag=10)");
  const LayerRanking ranking = rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  EXPECT_EQ(kept_tokens(ranking, 0, 5), (std::vector<TokenIndex>{0, 1, 17, 18, 19}));
  for (auto& row : layer.k[0]) row[3] = 0.5;
  const auto fine = policy_of("lagkv(sinks=2,lag=4)");
  EXPECT_NO_THROW(rank_layer(*fine, layer.geometry, score_layer(*fine, layer)));
}

std::string refusal_on(std::string_view spec, const DenseLayer& layer) {
  return error_of([&] {
    const auto policy = policy_of(spec);
    rank_layer(*policy, layer.geometry, score_layer(*policy, layer));
  });
}

TEST(Refusals, SayWhy) {
  DenseLayer layer = random_layer(12, 2, 2, 6);
  EXPECT_EQ(refusal_on("snapkv", layer),
            "snapkv(window=64) needs a prompt of more than 64 tokens, this one has 12");
  EXPECT_EQ(refusal_on("snapkv(window=12)", layer),
            "snapkv(window=12) needs a prompt of more than 12 tokens, this one has 12");
  EXPECT_EQ(refusal_on("expected_attention(sinks=12)", layer),
            "expected_attention(sinks=12) needs a prompt of more than 12 tokens, this one has 12");
  EXPECT_EQ(refusal_on("expected_attention(sinks=2)", layer),
            "expected_attention(sinks=2): the trace's query statistics leave out the first 4 tokens, write "
            "sinks=4");
  layer.k[1][5][0] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(refusal_on("knorm", layer), "knorm: the score of token 5 is not a number (layer 1, KV head 1)");
  const std::string expected = refusal_on("expected_attention", layer);
  EXPECT_NE(expected.find("is not a number (layer 1, KV head 1)"), std::string::npos) << expected;
}

TEST(Tova, RanksAPromptOfOneToken) {
  const DenseLayer layer = random_layer(2, 1, 1, 5);
  const auto policy = policy_of("tova");
  EXPECT_EQ(rank_layer(*policy, layer.geometry, score_layer(*policy, layer)).order[0],
            (std::vector<TokenIndex>{1, 0}));
}

TEST(External, RanksByTheArrayOfItsLayerAndHead) {
  DenseLayer layer = random_layer(3, 2, 1, 5);
  ExternalArray array{{4, 2, 3}, {}};
  for (int i = 0; i < 24; ++i) array.data.push_back(static_cast<float>(i % 5));
  OneArray resources(array);
  const auto policy = policy_of("external(file=f,dataset=d)");
  policy->prepare(resources);
  const LayerScores scores = score_layer(*policy, layer);  // layer 1: entries 6 .. 11
  EXPECT_EQ(scores.units[0].score, (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(scores.units[1].score, (std::vector<float>{4, 0, 1}));
  layer.geometry.prompt = 4;
  EXPECT_EQ(error_of([&] {
              UnitScores out;
              policy->score(DenseFeatures(random_layer(4, 2, 1, 5), 0), std::span(&out, 1));
            }),
            "d in f has shape [4, 2, 3], expected [4, 2, 4] (layers, KV heads, prompt tokens)");
}

}  // namespace
}  // namespace kvsim::test
