// What a prompt-time score sees when it looks at a cache during the decode.
#include "policies/stepwise/held_features.h"

#include <algorithm>

#include "kernels/error.h"
#include "kernels/replay.h"
#include "policies/stepwise/held_entries.h"

namespace kvsim {

StepNeed held_needs(Need needs) {
  StepNeed out = StepNeed::none;
  const bool window = has(needs, Need::window_queries);
  if (window || has(needs, Need::keys)) out = out | StepNeed::keys;
  if (has(needs, Need::values)) out = out | StepNeed::values;
  return window ? out | StepNeed::queries : out;
}

HeldFeatures::HeldFeatures(const CacheView& cache, const LayerGeometry& layer, const Rope& rope, double logit_softcap,
                           const RecentQueries& recent, StepNeed needs)
    : KeyValueFeatures(layer, cache.kv_head(), rope, cache.slots(),
                       has(needs, StepNeed::keys) ? held_keys(cache, layer.key_dim) : Matrix<float>(),
                       has(needs, StepNeed::values) ? held_values(cache, layer.value_dim) : Matrix<float>()),
      softcap_(logit_softcap), recent_(recent), positions_(cache.positions().begin(), cache.positions().end()) {}

std::span<const float> HeldFeatures::window_mean(std::uint32_t window, std::size_t query_head) const {
  std::vector<float>& mean = means_[{window, query_head}];
  if (!mean.empty()) return mean;
  const std::size_t known = recent_.positions.size(), rows = std::min<std::size_t>(window, known);
  if (rows == 0) throw UserError("scores by a window of {} queries before any was seen: choose a longer interval", window);
  Matrix<float> queries(rows, geometry().key_dim);
  std::vector<TokenIndex> place(rows);
  for (std::size_t r = 0; r < rows; ++r) {
    const std::size_t from = known - rows + r;
    std::copy_n(recent_.of_query_head[query_head].data() + from * geometry().key_dim, geometry().key_dim, queries.row(r));
    const auto after = std::upper_bound(positions_.begin(), positions_.end(), recent_.positions[from]) - positions_.begin();
    place[r] = static_cast<TokenIndex>(std::max<std::ptrdiff_t>(after, 1) - 1);
  }
  Matrix<float> weights(positions_.size(), rows, kRowPad);
  const LogitRule rule{geometry().softmax_scale, softcap_, 0};
  for (std::size_t begin = 0; begin < rows; begin += kRowTile)
    attention_weights(keys(), queries.view(), place, rule, begin, std::min(rows, begin + kRowTile), weights.view());
  std::vector<double> sum(positions_.size());
  column_sums(weights.view(), 0, rows, sum);
  mean.resize(positions_.size());
  for (std::size_t s = 0; s < mean.size(); ++s) mean[s] = static_cast<float>(sum[s] / static_cast<double>(rows));
  return mean;
}

}  // namespace kvsim
