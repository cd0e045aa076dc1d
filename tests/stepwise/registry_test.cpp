// What every registered decode-time policy must keep: a new one is tested by being there.
#include <gtest/gtest.h>
#include <omp.h>

#include "kernels/error.h"
#include "tests/stepwise/step_sweep.h"

namespace kvsim::test {
namespace {

/// Every policy with its defaults, and settings under which defaults that wait for long prompts act too.
std::vector<std::string> step_specs() {
  std::vector<std::string> specs;
  for (const StepTraits* traits : all_stepwise_policies()) specs.push_back(fmt::format("decode:{}", traits->name));
  for (const char* more : {"decode:streaming_llm(shift=true)", "decode:streaming_llm(block=16)", "decode:h2o(unit=query)", "decode:h2o(block=16)",
                           "decode:h2o(removal=mask,recent=0.3)", "decode:tova(newest=true,block=32)", "decode:scissorhands(history=16,recent=2,unit=query)",
                           "decode:keyformer(unit=query,freeze=true)", "decode:keyformer(block=16)", "decode:vatp(sinks=2,block=16)",
                           "decode:corm(window=8,recent=4)", "decode:corm(window=8,recent=4,cap=true,block=16)",
                           "decode:decoding(score=snapkv(window=4,kernel=3),every=6,prompt_end=true)", "decode:decoding(score=tova,every=4)"})
    specs.push_back(more);
  return specs;
}

class EveryStepwisePolicy : public testing::TestWithParam<std::string> {};

TEST_P(EveryStepwisePolicy, PrintsAndParsesBackToItself) {
  const std::string spec = canonical_spec(*bind_stepwise_policy(parse_specs(GetParam()).front()));
  EXPECT_TRUE(spec.starts_with("decode:"));
  EXPECT_EQ(canonical_spec(*bind_stepwise_policy(parse_specs(spec).front())), spec);
}

TEST_P(EveryStepwisePolicy, DescribesItself) {
  const std::unique_ptr<StepwisePolicy> policy = bind_stepwise_policy(parse_specs(GetParam()).front());
  EXPECT_FALSE(policy->traits().summary.empty());
  EXPECT_FALSE(policy->traits().reference.empty());
  EXPECT_FALSE(policy->traits().accounting.empty());
  for (const FieldDescription& field : describe_fields([&](FieldVisitor& v) { policy->fields(v); })) EXPECT_FALSE(field.help.empty()) << field.key;
  EXPECT_NE(stepwise_policy_page(policy->traits().name).find("Parameters"), std::string::npos);
}

TEST_P(EveryStepwisePolicy, HasNoErrorAndNoMissWhereEverythingFits) {
  StepSweep sweep({GetParam()}, {140, 5000});
  const std::unique_ptr<StepwisePolicy>& policy = sweep.variants[0].stepwise;
  if (!policy->bounded()) GTEST_SKIP() << "chooses its own size";
  if (policy->removal() == Removal::mask) GTEST_SKIP() << "the authors' masks hide a token whatever fits";
  Shape shape;
  shape.hidden = 20;
  shape.samples = 2;
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  ASSERT_EQ(result.effects.size(), 2u);
  for (const LayerEffect& effect : result.effects) {
    ASSERT_EQ(effect.response.size(), 2 * shape.decode);
    for (const float value : effect.response) EXPECT_LT(std::abs(value), 1e-5f);
    for (const float value : effect.relative) EXPECT_LT(value, 1e-5f);
  }
  for (const ResultRow& row : result.rows) {
    EXPECT_EQ(row.evicted, 0.0);
    EXPECT_EQ(row.values[sweep.metric("miss_rate_99")], 0.0);
    EXPECT_EQ(row.values[sweep.metric("query_consistency")], 1.0);
    EXPECT_LT(row.values[sweep.metric("output_error")], 1e-6);  // with everything held, slots are positions
    EXPECT_EQ(row.resident_tokens, 130.5);                       // the mean of 121 .. 140
  }
}

TEST_P(EveryStepwisePolicy, HoldsItsCapacityAfterEveryEviction) {
  Shape shape;
  StepSweep sweep({GetParam()}, {4, 25, 60});
  const StepwisePolicy& policy = *sweep.variants[0].stepwise;
  const UnitResult result = sweep.run(shape);  // the engine itself refuses to go on with too many
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  if (!policy.bounded() || !policy.schedule().prompt_end || policy.schedule().every > 1 || policy.schedule().buffer > 0) return;
  for (const KeptSet& kept : result.kept) {
    const std::size_t tokens = shape.prompt + shape.decode;
    for (std::size_t u = 0; u * tokens < kept.evicted_at.size(); ++u)
      for (std::size_t step = 0; step < shape.decode; ++step)
        EXPECT_LE(held_at(std::span(kept.evicted_at).subspan(u * tokens, tokens), shape.prompt, step).size(), sweep.settings.budgets[kept.budget].tokens + 1);
  }
}

TEST_P(EveryStepwisePolicy, SaysWhenEveryTokenLeft) {
  Shape shape;
  StepSweep sweep({GetParam()}, {25});
  const UnitResult result = sweep.run(shape);
  if (sweep.variants[0].stepwise->removal() == Removal::mask) {
    EXPECT_TRUE(result.kept.empty());
    return;
  }
  ASSERT_EQ(result.kept.size(), 1u);
  const KeptSet& kept = result.kept.front();
  const std::size_t units = kept.offsets.size() - 1, tokens = shape.prompt + shape.decode;
  ASSERT_EQ(kept.evicted_at.size(), units * tokens);
  for (std::size_t u = 0; u < units; ++u)
    for (std::size_t p = 0; p < tokens; ++p) {
      const std::uint32_t gone = kept.evicted_at[u * tokens + p];
      if (gone == kNeverEvicted) continue;
      if (gone == kEvictedInPrompt) {
        EXPECT_LT(p, shape.prompt);
      } else {
        EXPECT_LT(gone, shape.decode);
        EXPECT_LE(p, shape.prompt + gone);  // nothing leaves before it came
      }
    }
}

TEST_P(EveryStepwisePolicy, GivesTheSameBitsForAnyThreadsAndChunks) {
  const auto values = [&](int threads, std::size_t chunk) {
    omp_set_num_threads(threads);
    StepSweep sweep({GetParam(), "decode:streaming_llm"}, {9, 33});
    if (GetParam() == "decode:streaming_llm") sweep = StepSweep({GetParam()}, {9, 33});
    sweep.settings.memory.step_chunk = chunk;
    std::vector<double> list;
    Shape shape;
    shape.hidden = 20;
    shape.samples = 2;
    const UnitResult result = sweep.run(shape);
    for (const ResultRow& row : result.rows)
      for (const double value : row.values) list.push_back(std::isnan(value) ? -1.0 : value);
    for (const LayerEffect& effect : result.effects)
      for (const auto* numbers : {&effect.response, &effect.relative}) list.insert(list.end(), numbers->begin(), numbers->end());
    return list;
  };
  const std::vector<double> expected = values(1, 0);
  EXPECT_EQ(values(2, 0), expected);
  EXPECT_EQ(values(3, 16), expected);
}

TEST_P(EveryStepwisePolicy, WorksForSmallShapesOrSaysWhyNot) {
  for (const std::size_t prompt : {1u, 2u, 17u}) {
    for (const std::size_t group : {1u, 7u}) {
      Shape shape;
      shape.prompt = prompt;
      shape.group = group;
      shape.decode = 3;
      StepSweep sweep({GetParam()}, {1, 2, 17});
      const UnitResult result = sweep.run(shape);
      if (result.failures.empty()) {
        EXPECT_EQ(result.rows.size(), 3 * shape.kv_heads);
      } else {
        EXPECT_GT(result.failures.front().message.size(), 20u);
      }
    }
  }
}

TEST_P(EveryStepwisePolicy, FollowsASlidingWindow) {
  Shape shape;
  shape.window = 40;
  StepSweep sweep({GetParam()}, {12, 300});
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  for (const ResultRow& row : result.rows) {
    EXPECT_LE(row.resident_tokens, 40.0);
    if (row.budget == 1 && sweep.variants[0].stepwise->bounded() && sweep.variants[0].stepwise->removal() == Removal::drop) {
      EXPECT_EQ(row.values[sweep.metric("miss_rate_99")], 0.0);
    }
  }
}

std::string step_test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(name.begin(), name.end(), [](char c) { return std::isalnum(static_cast<unsigned char>(c)) == 0; }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Registry, EveryStepwisePolicy, testing::ValuesIn(step_specs()), step_test_name);

TEST(StepwiseRegistry, FindsPoliciesWithAndWithoutThePrefix) {
  EXPECT_TRUE(is_stepwise_name("decode:h2o"));
  EXPECT_FALSE(is_stepwise_name("h2o"));  // the prompt-time policy has the bare name
  EXPECT_TRUE(is_stepwise_name("corm"));
  EXPECT_EQ(canonical_spec(*make_stepwise_policy("corm")).rfind("decode:corm(", 0), 0u);
  EXPECT_THROW(make_stepwise_policy("decode:h20"), UserError);
}

}  // namespace
}  // namespace kvsim::test
