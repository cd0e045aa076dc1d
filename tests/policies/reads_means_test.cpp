// Which policies score by means alone, and the claim against what they ask for.
#include <gtest/gtest.h>

#include "policies/reads_means.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

TEST(ReadsRows, IsFalseWhereAScoreIsMadeOfMeans) {
  const DenseLayer layer = random_layer(40, 1, 2, 5);
  const DenseFeatures head(layer, 0);
  for (const char* spec :
       {"snapkv(window=4)", "snapkv(window=4,pool=max,unit=query)", "tova", "pyramidkv(window=4)",
        "ada(score=snapkv(window=4))", "caote(score=snapkv(window=4))",
        "vatp(base=scissorhands,window=8,recent_share=0)",
        "compose(query=window(4),reduce=[sum,group(mean)],value=l1)",
        "compose(query=current,reduce=[mean,group(mean)])", "h2o", "knorm", "oracle_static", "oracle_topk"}) {
    const std::unique_ptr<Policy> policy = policy_of(spec);
    EXPECT_FALSE(reads_rows(*policy)) << spec;
    std::vector<UnitScores> scores(policy->unit() == Unit::query ? 2 : 1);
    EXPECT_NO_THROW(policy->score(MeansOf(head), scores)) << spec;
    EXPECT_EQ(scores[0].score.size(), 40u) << spec;
  }
}

TEST(ReadsRows, IsTrueWhereSingleQueriesAreAskedFor) {
  for (const char* spec :
       {"dropkv(window=4)", "obcache(base=snapkv,recent=4)", "laq", "cake(window=4)",
        "ada(score=cake(window=4))", "oracle_output", "compose(query=oracle(3))",
        "compose(query=window(4),reduce=[max,group(mean)])", "compose(score=knorm,layers=cake(window=4))",
        "compose(query=[window(4),lookahead(length=2)],reduce=[sum,group(mean)])", "finch(window=4)"}) {
    EXPECT_TRUE(reads_rows(*policy_of(spec))) << spec;
  }
}

}  // namespace
}  // namespace kvsim::test
