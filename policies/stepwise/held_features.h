// What a prompt-time score sees when it looks at a cache during the decode: the held tokens as if they were the prompt.
#pragma once

#include <map>
#include <vector>

#include "policies/key_value_features.h"
#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// What a cache has to show for a prompt-time score that reads `needs`: keys, values or a window of queries.
StepNeed held_needs(Need needs);

/// The last queries of one KV head that a cache remembers, oldest first.
struct RecentQueries {
  std::vector<TokenIndex> positions;              // [n]
  std::vector<std::vector<float>> of_query_head;  // [query heads] of [n * d]
};

/// HeadFeatures over the slots of a cache: token i is slot i. Windows are the last remembered queries; they see slots up to
/// their own token's. What needs other prompt queries is an InternalError.
class HeldFeatures final : public KeyValueFeatures {
 public:
  /// `needs` as held_needs says.
  HeldFeatures(const CacheView& cache, const LayerGeometry& layer, const Rope& rope, double logit_softcap, const RecentQueries& recent,
               StepNeed needs);

  std::span<const float> window_mean(std::uint32_t window, std::size_t query_head) const override;

 private:
  double softcap_;
  const RecentQueries& recent_;
  std::vector<TokenIndex> positions_;
  mutable std::map<std::pair<std::uint32_t, std::size_t>, std::vector<float>> means_;
};

}  // namespace kvsim
