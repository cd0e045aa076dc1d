// Which policies score by means alone, and the claim against what they ask for.
#include <gtest/gtest.h>

#include "policies/reads_means.h"
#include "tests/policies/policy_cases.h"

namespace kvsim::test {
namespace {

/// A head that has no attention of single queries to offer.
class Means final : public HeadFeatures {
 public:
  explicit Means(const DenseFeatures& head) : head_(head) {}
  const LayerGeometry& geometry() const override { return head_.geometry(); }
  std::uint32_t kv_head() const override { return head_.kv_head(); }
  MatrixView<const float> keys() const override { return head_.keys(); }
  MatrixView<const float> values() const override { return head_.values(); }
  Rope rope() const override { return head_.rope(); }
  std::span<const float> window_mean(std::uint32_t n, std::size_t h) const override {
    return head_.window_mean(n, h);
  }
  std::span<const float> attention_sum(std::size_t h) const override { return head_.attention_sum(h); }
  std::span<const float> attention_mean_over_visible(std::size_t h) const override {
    return head_.attention_mean_over_visible(h);
  }
  QueryStats query_stats(std::size_t h) const override { return head_.query_stats(h); }
  std::span<const float> decode_mean(std::size_t h) const override { return head_.decode_mean(h); }

 private:
  const DenseFeatures& head_;
};

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
    EXPECT_NO_THROW(policy->score(Means(head), scores)) << spec;
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
