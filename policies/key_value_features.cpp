// Some tokens as if they were a whole prompt, of which keys and values alone are known.
#include "policies/key_value_features.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {
namespace {

[[noreturn]] void absent() { throw InternalError("a score of keys and values asked for queries"); }

Matrix<float> gathered(MatrixView<const float> rows, std::span<const TokenIndex> tokens) {
  Matrix<float> out(tokens.size(), rows.cols);
  for (std::size_t i = 0; i < tokens.size(); ++i) std::copy_n(rows.row(tokens[i]), rows.cols, out.row(i));
  return out;
}

}  // namespace

bool scores_keys_and_values(const Policy& policy) {
  constexpr Need kAvailable = Need::keys | Need::values;
  return (policy.needs() | kAvailable) == kAvailable && policy.unit() == Unit::kv &&
         policy.scope() == Scope::head;
}

KeyValueFeatures::KeyValueFeatures(const HeadFeatures& head, std::size_t first, std::size_t count, Need needs)
    : KeyValueFeatures(head.geometry(), head.kv_head(), head.rope(), count, {}, {}) {
  if (has(needs, Need::keys)) keys_ = head.keys().rows_from(first, count);
  if (has(needs, Need::values)) values_ = head.values().rows_from(first, count);
}

KeyValueFeatures::KeyValueFeatures(const HeadFeatures& head, std::span<const TokenIndex> tokens, Need needs)
    : KeyValueFeatures(head.geometry(), head.kv_head(), head.rope(), tokens.size(),
                       has(needs, Need::keys) ? gathered(head.keys(), tokens) : Matrix<float>(),
                       has(needs, Need::values) ? gathered(head.values(), tokens) : Matrix<float>()) {}

KeyValueFeatures::KeyValueFeatures(const LayerGeometry& layer, std::uint32_t kv_head, const Rope& rope,
                                   std::size_t count, Matrix<float> keys, Matrix<float> values)
    : geometry_(layer),
      kv_head_(kv_head),
      rope_(rope),
      own_keys_(std::move(keys)),
      own_values_(std::move(values)),
      keys_(own_keys_.view()),
      values_(own_values_.view()) {
  geometry_.prompt = count;
}

std::span<const float> KeyValueFeatures::window_mean(std::uint32_t, std::size_t) const { absent(); }
std::span<const float> KeyValueFeatures::attention_sum(std::size_t) const { absent(); }
std::span<const float> KeyValueFeatures::attention_mean_over_visible(std::size_t) const { absent(); }
QueryStats KeyValueFeatures::query_stats(std::size_t) const { absent(); }
std::span<const float> KeyValueFeatures::decode_mean(std::size_t) const { absent(); }

}  // namespace kvsim
