// What every registered policy must keep, checked over the whole registry: a new policy is tested by being there.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <stdexcept>

#include "kernels/error.h"
#include "kernels/order.h"
#include "sim/features.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

std::unique_ptr<Policy> bound(const std::string& spec) {
  static MadeUpFiles files;
  std::unique_ptr<Policy> policy = bind_policy(parse_specs(spec).front());
  policy->prepare(files);
  return policy;
}

bool accepts(const std::string& spec) {
  try {
    bound(spec);
    return true;
  } catch (const UserError&) {
    return false;
  }
}

/// Policies that cannot be made without a file: tests/cli/external_test.cpp, tests/policies/press_scores_test.cpp.
const std::set<std::string> kReadFiles{"expected_attention_stats", "external", "fastkvzip", "kvzap"};

/// A layer that holds everything that any policy may ask for.
Shape complete(Shape shape = {}) {
  shape.hidden = 7;
  shape.samples = 2;
  shape.lookahead = 8;
  return shape;
}

/// Policies whose defaults are not enough to run.
const std::map<std::string, std::string> kNeedMore{
    {"lu", "lu(score=snapkv(window=16),file=made-up)"},
    {"per_layer", "per_layer(score=snapkv(window=16),shares=[2])"},
};

/// Specs that stand for the registry: every policy with its defaults (windows cut to the small prompts of this test),
/// and wrappers around an interesting score.
std::vector<std::string> contract_specs() {
  std::vector<std::string> specs;
  for (const PolicyTraits* traits : all_policies()) {
    const std::string name(traits->name);
    if (kReadFiles.contains(name)) continue;
    const std::vector<FieldDescription> fields = describe_fields(name);
    const auto has_field = [&](const std::string& key) {
      return std::any_of(fields.begin(), fields.end(), [&](const FieldDescription& f) { return f.key == key; });
    };
    // Wrappers that refuse a score with a window get one without.
    if (kNeedMore.count(name) != 0) {
      specs.push_back(kNeedMore.at(name));
    } else if (has_field("score")) {
      const std::string windowed = name + "(score=snapkv(window=16))";
      specs.push_back(accepts(windowed) ? windowed : name + "(score=knorm)");
    } else {
      specs.push_back(name + (has_field("window") ? "(window=16)" : "()"));
    }
  }
  specs.push_back("snapkv(window=16,unit=query)");
  specs.push_back("ada(score=snapkv(window=16),form=interp)");
  specs.push_back("ada(score=snapkv(window=16,unit=query))");
  for (const char* spec :
       {"cake(window=16,cascade=true,tau1=1.6,tau2=0.6)", "pool(score=snapkv(window=16),over=model,floor=0.2)",
        "pool(score=snapkv(window=16,unit=query),over=model)", "dbudgetkv(score=snapkv(window=16,unit=query))",
        "simlayer(threshold=0.01,recent=30)", "duo(sinks=4,recent=8)", "duo(file=made-up,dataset=/pattern,sinks=4,recent=8)",
        "kvzip(layerwise=true,plus=true)", "kvcompose(structured=false,vnorm=true)", "kvcompose(least=7,heads=max,queries=mean)",
        "think(score=merging(score=key_rotation(score=snapkv(window=16))),window=16)",
        "think(score=snapkv(window=16,unit=query),window=16,form=authors,recent=8)"})
    specs.push_back(spec);
  return specs;
}

/// Everything that a policy did not declare is NaN.
class DeclaredOnly final : public HeadFeatures {
 public:
  DeclaredOnly(const HeadFeatures& head, const Policy& policy)
      : head_(head), needs_(policy.needs()), window_(policy.window()), nan_(head.geometry().prompt, NAN),
        nan_matrix_(head.geometry().prompt, std::max(head.geometry().key_dim, head.geometry().value_dim)),
        nan_covariance_(head.geometry().key_dim, head.geometry().key_dim) {
    std::fill_n(nan_matrix_.data(), nan_matrix_.rows() * nan_matrix_.stride(), NAN);
    std::fill_n(nan_covariance_.data(), nan_covariance_.rows() * nan_covariance_.stride(), NAN);
  }
  const LayerGeometry& geometry() const override { return head_.geometry(); }
  std::uint32_t kv_head() const override { return head_.kv_head(); }
  Rope rope() const override { return head_.rope(); }
  MatrixView<const float> keys() const override { return has(needs_, Need::keys) ? head_.keys() : nan_matrix(geometry().key_dim); }
  MatrixView<const float> values() const override { return has(needs_, Need::values) ? head_.values() : nan_matrix(geometry().value_dim); }
  std::span<const float> window_mean(std::uint32_t window, std::size_t h) const override {
    return has(needs_, Need::window_queries) && window <= window_ ? head_.window_mean(window, h) : nan_;
  }
  std::span<const float> attention_sum(std::size_t h) const override { return has(needs_, Need::prompt_attention) ? head_.attention_sum(h) : nan_; }
  std::span<const float> attention_mean_over_visible(std::size_t h) const override {
    return has(needs_, Need::prompt_attention) ? head_.attention_mean_over_visible(h) : nan_;
  }
  QueryStats query_stats(std::size_t h) const override {
    return has(needs_, Need::query_stats) ? head_.query_stats(h) : QueryStats{std::span(nan_).first(geometry().key_dim), nan_covariance_.view(), 4};
  }
  std::span<const float> decode_mean(std::size_t h) const override { return has(needs_, Need::decode_queries) ? head_.decode_mean(h) : nan_; }
  MatrixView<const float> queries(const QueryRows& rows, std::size_t h) const override { return demand(rows).queries(rows, h); }
  MatrixView<const float> attention(const QueryRows& rows, std::size_t h) const override { return demand(rows).attention(rows, h); }
  MatrixView<const float> outputs(const QueryRows& rows, std::size_t h) const override {
    demand(Need::values);
    return demand(rows).outputs(rows, h);
  }
  MatrixView<const float> prompt_queries(std::size_t h) const override { return demand(Need::all_queries).prompt_queries(h); }
  void each_prompt_tile(std::size_t h, const std::function<void(const PromptTile&)>& visit) const override {
    demand(Need::all_queries).each_prompt_tile(h, visit);
  }
  MatrixView<const float> output_projection(std::size_t h) const override { return demand(Need::output_projection).output_projection(h); }
  std::span<const float> second_pass(const std::string& statistic, std::size_t h) const override {
    return demand(Need::second_pass).second_pass(statistic, h);
  }
  std::span<const std::uint32_t> budgets() const override { return head_.budgets(); }

 private:
  const HeadFeatures& demand(Need need) const {
    if (!has(needs_, need)) throw std::logic_error("a policy reads what it did not declare");
    return head_;
  }
  const HeadFeatures& demand(const QueryRows& rows) const {
    using Source = QueryRows::Source;
    if (rows.source == Source::window && rows.count > window_) throw std::logic_error("a larger window than declared");
    return demand(rows.source == Source::window      ? Need::window_queries
                  : rows.source == Source::prompt    ? Need::all_queries
                  : rows.source == Source::lookahead ? Need::lookahead
                                                     : Need::decode_queries);
  }
  MatrixView<const float> nan_matrix(std::size_t cols) const { return {nan_matrix_.data(), nan_matrix_.rows(), cols, nan_matrix_.stride()}; }
  const HeadFeatures& head_;
  Need needs_;
  std::uint32_t window_;
  std::vector<float> nan_;
  Matrix<float> nan_matrix_, nan_covariance_;
};

/// A layer with its features, as the engine makes them.
struct Layer {
  Shape shape;
  LayerContext context;
  std::vector<HeadBlock> blocks;
  std::vector<std::unique_ptr<BlockFeatures>> features;

  explicit Layer(const Shape& of, std::uint32_t most_window = 64) : shape(of), context(make_layer(of)), blocks(make_blocks(of)) {
    for (const HeadBlock& block : blocks) {
      std::vector<std::vector<float>> mean;
      const ExactSteps exact(block, context, {0, shape.decode}, false);
      for (std::size_t h = 0; h < shape.group; ++h) {
        std::vector<double> sum(shape.prompt, 0.0);
        exact.add_prompt_sums(h, sum);
        mean.emplace_back();
        for (const double s : sum) mean.back().push_back(static_cast<float>(s / static_cast<double>(shape.decode)));
      }
      features.push_back(std::make_unique<BlockFeatures>(block, context, std::move(mean), std::min<std::uint32_t>(most_window, static_cast<std::uint32_t>(shape.prompt))));
    }
  }
  LayerScores scores(const Policy& policy, bool declared_only) const {
    const std::size_t units = policy.unit() == Unit::query ? shape.group : 1;
    LayerScores scores;
    scores.unit = policy.unit();
    scores.units.resize(shape.kv_heads * units);
    for (std::size_t kv = 0; kv < shape.kv_heads; ++kv) {
      const std::span<UnitScores> out = std::span(scores.units).subspan(kv * units, units);
      if (declared_only) {
        policy.score(DeclaredOnly(*features[kv], policy), out);
      } else {
        policy.score(*features[kv], out);
      }
    }
    policy.join(context.geometry, scores);
    return scores;
  }
};

class EveryPolicy : public testing::TestWithParam<std::string> {};

TEST_P(EveryPolicy, PrintsAndParsesBackToItself) {
  const std::string spec = canonical_spec(*bound(GetParam()));
  EXPECT_EQ(canonical_spec(*bound(spec)), spec);
  EXPECT_EQ(parse_specs(spec).size(), 1u);
}

TEST_P(EveryPolicy, DescribesItself) {
  const std::unique_ptr<Policy> policy = bound(GetParam());
  const PolicyTraits& traits = policy->traits();
  EXPECT_FALSE(traits.summary.empty());
  EXPECT_FALSE(traits.reference.empty());
  EXPECT_FALSE(traits.accounting.empty());
  for (const FieldDescription& field : describe_fields(traits.name)) EXPECT_FALSE(field.help.empty()) << field.key;
}

TEST_P(EveryPolicy, OrdersAreProtectedFirstPermutations) {
  const std::unique_ptr<Policy> policy = bound(GetParam());
  const Layer layer(complete());
  const LayerRanking ranking = rank_layer(*policy, layer.context.geometry, layer.scores(*policy, false));
  ASSERT_FALSE(ranking.order.empty());
  for (std::size_t u = 0; u < ranking.order.size(); ++u) {
    const std::set<TokenIndex> distinct(ranking.order[u].begin(), ranking.order[u].end());
    EXPECT_EQ(distinct.size(), layer.shape.prompt);
    EXPECT_EQ(*distinct.rbegin(), layer.shape.prompt - 1);
    const auto& first = ranking.scores.units[u].protected_tokens;
    EXPECT_TRUE(std::equal(first.begin(), first.end(), ranking.order[u].begin()));
  }
}

TEST_P(EveryPolicy, UndeclaredInputsDoNotMatter) {
  const std::unique_ptr<Policy> policy = bound(GetParam());
  const Layer layer(complete());
  const LayerScores all = layer.scores(*policy, false), declared = layer.scores(*policy, true);
  for (std::size_t u = 0; u < all.units.size(); ++u) EXPECT_EQ(all.units[u].score, declared.units[u].score);
}

TEST_P(EveryPolicy, KeepsTheTotalExactlyAndNestsWhereItClaims) {
  const std::unique_ptr<Policy> policy = bound(GetParam());
  const Layer layer(complete());
  LayerRanking ranking = rank_layer(*policy, layer.context.geometry, layer.scores(*policy, false));
  std::vector<std::vector<float>> summaries;
  if (policy->traits().model_wide) summaries.push_back(policy->summarise(layer.context.geometry, ranking));
  ranking.summaries = summaries;
  std::vector<std::uint32_t> before(ranking.order.size(), 0), kept(ranking.order.size());
  // full keeps everything, chunkkv whole chunks: their help says so.
  const std::string name(policy->traits().name);
  const bool exact = name != "full" && name != "chunkkv" && name != "chunk";
  for (std::uint32_t budget = 1; budget <= layer.shape.prompt + 5; ++budget) {
    policy->allocate(layer.context.geometry, ranking, budget, kept);
    std::size_t total = 0;
    for (std::size_t u = 0; u < kept.size(); ++u) {
      EXPECT_LE(kept[u], layer.shape.prompt);
      if (policy->traits().nested) {
        EXPECT_GE(kept[u], before[u]) << "budget " << budget;
      }
      total += kept[u];
    }
    const std::size_t whole = std::min<std::size_t>(budget, layer.shape.prompt) * kept.size();
    if (policy->traits().own_size) {
      EXPECT_LE(total, whole) << "budget " << budget;
    } else if (exact) {
      EXPECT_EQ(total, whole) << "budget " << budget;
    }
    before = kept;
  }
  if (policy->traits().own_size) return;
  for (const std::uint32_t count : kept) EXPECT_EQ(count, layer.shape.prompt);
}

TEST_P(EveryPolicy, FullBudgetGivesNoErrorAndFullConsistency) {
  Sweep sweep({GetParam()}, {120, 1000});
  const UnitResult result = sweep.run(complete());
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  for (const ResultRow& row : result.rows) {
    if (sweep.variants[0].policy->traits().own_size && row.evicted > 0) continue;  // chose to keep less
    EXPECT_EQ(row.evicted, 0.0);
    // A transformation may change all that is kept; what it does is tested in tests/policies and tests/sim.
    if (!sweep.variants[0].policy->traits().transforms) {
      EXPECT_LT(row.values[sweep.metric("output_error")], 1e-6);
    }
    EXPECT_EQ(row.values[sweep.metric("query_consistency")], 1.0);
    EXPECT_EQ(row.values[sweep.metric("miss_rate_99")], 0.0);
    if (!sweep.variants[0].policy->traits().step_order) {
      EXPECT_EQ(row.values[sweep.metric("set_consistency")], 1.0);
    }
  }
  // No error, so nothing of it goes downstream.
  const PolicyTraits& traits = sweep.variants[0].policy->traits();
  ASSERT_EQ(result.effects.size(), 2u);
  for (const LayerEffect& effect : result.effects) {
    ASSERT_EQ(effect.response.size(), effect.samples * complete().decode);
    ASSERT_EQ(effect.relative.size(), complete().decode);
    if (traits.transforms || traits.own_size) continue;
    for (const float value : effect.response) EXPECT_LT(std::abs(value), 1e-5f);
    for (const float value : effect.relative) EXPECT_LT(value, 1e-5f);
  }
}

TEST_P(EveryPolicy, NeverKeepsMoreMassThanTheStepOracle) {
  Sweep sweep({"oracle_topk", GetParam() == "oracle_topk()" ? "random" : GetParam()}, {3, 17, 50, 100});
  const UnitResult result = sweep.run(complete());
  const std::size_t recall = sweep.metric("attention_recall");
  for (const CellDistributions& cell : result.cells) {
    if (cell.variant != 1) continue;
    for (const CellDistributions& best : result.cells) {
      // Policies that shift budget may hold more in one head, not in the layer's mean; full keeps more than it is given.
      if (best.variant != 0 || best.budget != cell.budget || GetParam() == "full()") continue;
      EXPECT_LE(cell.metrics[recall].sum, best.metrics[recall].sum * (sweep.variants[1].policy->scope() != Scope::head ? 1.3 : 1.0) + 1e-3);
    }
  }
}

TEST_P(EveryPolicy, GivesTheSameBitsForAnyThreadsAndRepeats) {
  const auto values = [&](int threads) {
    omp_set_num_threads(threads);
    Sweep sweep({GetParam(), "knorm", "random(seed=3)"}, {9, 64});
    std::vector<std::pair<double, double>> list;
    const UnitResult result = sweep.run(complete());
    for (const ResultRow& row : result.rows)
      for (const double value : row.values) list.emplace_back(std::isnan(value) ? -1.0 : value, row.resident_tokens);
    for (const LayerEffect& effect : result.effects) {
      for (const float value : effect.response) list.emplace_back(value, effect.budget);
      for (const float value : effect.relative) list.emplace_back(value, effect.budget);
    }
    return list;
  };
  const auto expected = values(1);
  EXPECT_EQ(values(2), expected);
  EXPECT_EQ(values(8), expected);
  EXPECT_EQ(values(1), expected);
}

TEST_P(EveryPolicy, WorksForSmallPromptsOrSaysWhyNot) {
  for (const std::size_t prompt : {1u, 2u, 3u, 5u, 17u, 18u}) {
    for (const std::size_t group : {1u, 7u}) {
      Shape shape = complete();
      shape.prompt = prompt;
      shape.group = group;
      shape.decode = 3;
      Sweep sweep({GetParam()}, {1, 2, 17});
      if (sweep.variants[0].policy->window() > prompt) continue;  // refused before it runs: missing_need
      const UnitResult result = sweep.run(shape);
      if (result.failures.empty()) {
        EXPECT_EQ(result.rows.size(), 3 * shape.kv_heads);
      } else {
        EXPECT_GT(result.failures.front().message.size(), 20u);
      }
    }
  }
}

TEST_P(EveryPolicy, IsUnmovedByAConstantAddedToAllLogits) {
  // An extra key channel that is the same for all keys adds a constant to every logit of a query.
  const std::unique_ptr<Policy> policy = bound(GetParam());
  const Need needs = policy->needs();
  if (has(needs, Need::keys) || has(needs, Need::query_stats)) GTEST_SKIP() << "scores keys, not attention";
  const Shape shape = complete();
  const Layer plain(shape);
  Layer moved(shape);
  moved.features.clear();
  moved.shape.key_dim = moved.context.geometry.key_dim = shape.key_dim + 1;
  for (HeadBlock& block : moved.blocks) {
    const auto widen = [&](const Matrix<float>& from, float last) {
      Matrix<float> wide(from.rows(), from.cols() + 1);
      for (std::size_t r = 0; r < from.rows(); ++r) {
        std::copy_n(from.row(r), from.cols(), wide.row(r));
        wide(r, from.cols()) = last;
      }
      return wide;
    };
    block.key = widen(block.key, 2.0f);
    block.query = widen(block.query, 3.0f);
    for (auto& [pass, queries] : block.lookahead_query) queries = widen(queries, 3.0f);
    std::vector<std::vector<float>> mean;
    const ExactSteps exact(block, moved.context, {0, shape.decode}, false);
    for (std::size_t h = 0; h < shape.group; ++h) {
      std::vector<double> sum(shape.prompt, 0.0);
      exact.add_prompt_sums(h, sum);
      mean.emplace_back();
      for (const double s : sum) mean.back().push_back(static_cast<float>(s / static_cast<double>(shape.decode)));
    }
    moved.features.push_back(std::make_unique<BlockFeatures>(block, moved.context, std::move(mean), 64));
  }
  const LayerScores before = plain.scores(*policy, false), after = moved.scores(*policy, false);
  for (std::size_t u = 0; u < before.units.size(); ++u)
    for (std::size_t i = 0; i < shape.prompt; ++i)
      EXPECT_NEAR(before.units[u].score[i], after.units[u].score[i], 1e-5 * std::max(1.0f, std::abs(before.units[u].score[i])));
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(name.begin(), name.end(), [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Registry, EveryPolicy, testing::ValuesIn(contract_specs()), test_name);

}  // namespace
}  // namespace kvsim::test
