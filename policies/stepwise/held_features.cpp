// What a prompt-time score sees when it looks at a cache during the decode.
#include "policies/stepwise/held_features.h"

#include <algorithm>

#include "kernels/error.h"
#include "kernels/replay.h"

namespace kvsim {
namespace {

[[noreturn]] void not_held() { throw InternalError("a score over a cache asked for the attention of other prompt queries"); }

}  // namespace

HeldFeatures::HeldFeatures(const CacheView& cache, const LayerGeometry& layer, const Rope& rope, double logit_softcap,
                           const RecentQueries& recent, bool with_keys, bool with_values)
    : geometry_(layer), kv_head_(cache.kv_head()), rope_(rope), softcap_(logit_softcap), recent_(recent),
      positions_(cache.positions().begin(), cache.positions().end()) {
  geometry_.prompt = cache.slots();
  if (with_keys) keys_ = Matrix<float>(cache.slots(), layer.key_dim);
  if (with_values) values_ = Matrix<float>(cache.slots(), layer.value_dim);
  for (std::size_t s = 0; s < cache.slots(); ++s) {
    if (with_keys) std::copy_n(cache.key(s).data(), layer.key_dim, keys_.row(s));
    if (with_values) std::copy_n(cache.value(s).data(), layer.value_dim, values_.row(s));
  }
}

std::span<const float> HeldFeatures::window_mean(std::uint32_t window, std::size_t query_head) const {
  std::vector<float>& mean = means_[{window, query_head}];
  if (!mean.empty()) return mean;
  const std::size_t known = recent_.positions.size(), rows = std::min<std::size_t>(window, known);
  if (rows == 0) throw UserError("scores by a window of {} queries before any was seen: choose a longer interval", window);
  Matrix<float> queries(rows, geometry_.key_dim);
  std::vector<TokenIndex> place(rows);
  for (std::size_t r = 0; r < rows; ++r) {
    const std::size_t from = known - rows + r;
    std::copy_n(recent_.of_query_head[query_head].data() + from * geometry_.key_dim, geometry_.key_dim, queries.row(r));
    const auto after = std::upper_bound(positions_.begin(), positions_.end(), recent_.positions[from]) - positions_.begin();
    place[r] = static_cast<TokenIndex>(std::max<std::ptrdiff_t>(after, 1) - 1);
  }
  Matrix<float> weights(positions_.size(), rows, kRowPad);
  const LogitRule rule{geometry_.softmax_scale, softcap_, 0};
  for (std::size_t begin = 0; begin < rows; begin += kRowTile)
    attention_weights(keys_.view(), queries.view(), place, rule, begin, std::min(rows, begin + kRowTile), weights.view());
  std::vector<double> sum(positions_.size());
  column_sums(weights.view(), 0, rows, sum);
  mean.resize(positions_.size());
  for (std::size_t s = 0; s < mean.size(); ++s) mean[s] = static_cast<float>(sum[s] / static_cast<double>(rows));
  return mean;
}

std::span<const float> HeldFeatures::attention_sum(std::size_t) const { not_held(); }
std::span<const float> HeldFeatures::attention_mean_over_visible(std::size_t) const { not_held(); }
QueryStats HeldFeatures::query_stats(std::size_t) const { not_held(); }
std::span<const float> HeldFeatures::decode_mean(std::size_t) const { not_held(); }

}  // namespace kvsim
