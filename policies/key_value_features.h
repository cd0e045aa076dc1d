// Some tokens as if they were a whole prompt, of which keys and values alone are known: a chunk, a block and
// what is held, the tokens of a cache.
#pragma once

#include <span>

#include "policies/policy.h"

namespace kvsim {

/// Whether a score of such tokens makes sense: by keys, values or positions alone, a set per KV head, no
/// budget moved.
bool scores_keys_and_values(const Policy& policy);

/// HeadFeatures over them: token i is row i. What needs queries is an InternalError.
class KeyValueFeatures : public HeadFeatures {
 public:
  /// `count` tokens of a head from `first` on; keys and values that `needs` does not name are empty. Views
  /// into `head`.
  KeyValueFeatures(const HeadFeatures& head, std::size_t first, std::size_t count, Need needs);
  /// The tokens of a head that are named, in that order, copied.
  KeyValueFeatures(const HeadFeatures& head, std::span<const TokenIndex> tokens, Need needs);
  /// `layer` but for its prompt, which becomes `count` tokens; keys [count, d] and values [count, dv], or
  /// empty.
  KeyValueFeatures(const LayerGeometry& layer, std::uint32_t kv_head, const Rope& rope, std::size_t count,
                   Matrix<float> keys, Matrix<float> values);

  const LayerGeometry& geometry() const override { return geometry_; }
  std::uint32_t kv_head() const override { return kv_head_; }
  MatrixView<const float> keys() const override { return keys_; }
  MatrixView<const float> values() const override { return values_; }
  Rope rope() const override { return rope_; }
  std::span<const float> window_mean(std::uint32_t window, std::size_t query_head) const override;
  std::span<const float> attention_sum(std::size_t query_head) const override;
  std::span<const float> attention_mean_over_visible(std::size_t query_head) const override;
  QueryStats query_stats(std::size_t query_head) const override;
  std::span<const float> decode_mean(std::size_t query_head) const override;

 private:
  LayerGeometry geometry_;
  std::uint32_t kv_head_;
  Rope rope_;
  Matrix<float> own_keys_, own_values_;
  MatrixView<const float> keys_, values_;
};

}  // namespace kvsim
