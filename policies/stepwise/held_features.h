// What a prompt-time score sees when it looks at a cache during the decode: the held tokens as if they were the prompt.
#pragma once

#include <map>
#include <vector>

#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// The last queries of one KV head that a cache remembers, oldest first.
struct RecentQueries {
  std::vector<TokenIndex> positions;              // [n]
  std::vector<std::vector<float>> of_query_head;  // [query heads] of [n * d]
};

/// HeadFeatures over the slots of a cache: token i is slot i. Windows are the last remembered queries; they see slots up to
/// their own token's. What needs other prompt queries is an InternalError.
class HeldFeatures final : public HeadFeatures {
 public:
  HeldFeatures(const CacheView& cache, const LayerGeometry& layer, const Rope& rope, double logit_softcap, const RecentQueries& recent,
               bool with_keys, bool with_values);

  const LayerGeometry& geometry() const override { return geometry_; }
  std::uint32_t kv_head() const override { return kv_head_; }
  MatrixView<const float> keys() const override { return keys_.view(); }
  MatrixView<const float> values() const override { return values_.view(); }
  Rope rope() const override { return rope_; }
  std::span<const float> window_mean(std::uint32_t window, std::size_t query_head) const override;
  std::span<const float> attention_sum(std::size_t) const override;
  std::span<const float> attention_mean_over_visible(std::size_t) const override;
  QueryStats query_stats(std::size_t) const override;
  std::span<const float> decode_mean(std::size_t) const override;

 private:
  LayerGeometry geometry_;  // prompt = slots
  std::uint32_t kv_head_;
  Rope rope_;
  double softcap_;
  const RecentQueries& recent_;
  std::vector<TokenIndex> positions_;
  Matrix<float> keys_, values_;
  mutable std::map<std::pair<std::uint32_t, std::size_t>, std::vector<float>> means_;
};

}  // namespace kvsim
