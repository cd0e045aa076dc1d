// A KV head whose window attention a test writes down, for worked examples that begin with attention rows.
#pragma once

#include <stdexcept>
#include <vector>

#include "policies/policy.h"

namespace kvsim::test {

/// rows[query head][query][token]; a window asks for its last queries. Everything else is refused.
class GivenAttention final : public HeadFeatures {
 public:
  explicit GivenAttention(const std::vector<std::vector<std::vector<double>>>& rows) {
    layer_.group = rows.size();
    layer_.prompt = rows[0][0].size();
    layer_.recorded_layers = {0};
    for (const auto& head : rows) {
      Matrix<float>& weights = weights_.emplace_back(layer_.prompt, head.size());
      for (std::size_t q = 0; q < head.size(); ++q)
        for (std::size_t t = 0; t < layer_.prompt; ++t) weights(t, q) = static_cast<float>(head[q][t]);
    }
  }
  const LayerGeometry& geometry() const override { return layer_; }
  std::uint32_t kv_head() const override { return 0; }
  MatrixView<const float> attention(const QueryRows& rows, std::size_t head) const override {
    const MatrixView<const float> all = weights_.at(head).view();
    if (rows.source != QueryRows::Source::window || rows.count > all.cols) throw std::logic_error("no such rows");
    return {all.data + all.cols - rows.count, all.rows, rows.count, all.stride};
  }
  MatrixView<const float> keys() const override { return refuse<MatrixView<const float>>(); }
  MatrixView<const float> values() const override { return refuse<MatrixView<const float>>(); }
  Rope rope() const override { return {}; }
  std::span<const float> window_mean(std::uint32_t, std::size_t) const override { return refuse<std::span<const float>>(); }
  std::span<const float> attention_sum(std::size_t) const override { return refuse<std::span<const float>>(); }
  std::span<const float> attention_mean_over_visible(std::size_t) const override { return refuse<std::span<const float>>(); }
  QueryStats query_stats(std::size_t) const override { return refuse<QueryStats>(); }
  std::span<const float> decode_mean(std::size_t) const override { return refuse<std::span<const float>>(); }

 private:
  template <typename T>
  static T refuse() {
    throw std::logic_error("this head has window attention only");
  }
  LayerGeometry layer_;
  std::vector<Matrix<float>> weights_;
};

}  // namespace kvsim::test
