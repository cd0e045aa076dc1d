// What policies may know of a KV head, computed from a trace when first asked for and shared by all variants.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "policies/policy.h"
#include "sim/exact_steps.h"
#include "traces/trace.h"

namespace kvsim {

/// HeadFeatures over a HeadBlock. Thread-safe; every intermediate is computed at most once.
class BlockFeatures final : public HeadFeatures {
 public:
  /// `decode_mean` [group][T]: mean attention of the true decode queries; may be empty when nobody needs it.
  /// `most_window`: the largest observation window that will be asked for. `budgets`: of the run, ascending.
  /// `exact`: all steps of the head where they are held, else null; their weights are those of the true
  /// decode queries. `device`: some steps of the head on a device, which then computes the attention of
  /// prompt queries; may be null.
  BlockFeatures(const HeadBlock& block, const LayerContext& layer,
                std::vector<std::vector<float>> decode_mean, std::uint32_t most_window,
                std::vector<std::uint32_t> budgets = {}, const ExactSteps* exact = nullptr,
                const ExactSteps* device = nullptr);

  const LayerGeometry& geometry() const override { return layer_.geometry; }
  std::uint32_t kv_head() const override { return block_.kv_head; }
  MatrixView<const float> keys() const override {
    return block_.key.view().rows_from(0, layer_.geometry.prompt);
  }
  MatrixView<const float> values() const override {
    return block_.value.view().rows_from(0, layer_.geometry.prompt);
  }
  Rope rope() const override;
  std::span<const float> window_mean(std::uint32_t window, std::size_t query_head) const override;
  /// Computes the means of these windows now, in one go: what a device is asked for one by one takes its
  /// time.
  void prepare_windows(std::span<const std::uint32_t> windows);
  std::span<const float> attention_sum(std::size_t query_head) const override;
  std::span<const float> attention_mean_over_visible(std::size_t query_head) const override;
  QueryStats query_stats(std::size_t query_head) const override;
  std::span<const float> decode_mean(std::size_t query_head) const override;
  MatrixView<const float> queries(const QueryRows& rows, std::size_t query_head) const override;
  MatrixView<const float> attention(const QueryRows& rows, std::size_t query_head) const override;
  MatrixView<const float> outputs(const QueryRows& rows, std::size_t query_head) const override;
  MatrixView<const float> prompt_queries(std::size_t query_head) const override;
  void each_prompt_tile(std::size_t query_head,
                        const std::function<void(const PromptTile&)>& visit) const override;
  MatrixView<const float> output_projection(std::size_t query_head) const override;
  std::span<const float> second_pass(const std::string& statistic, std::size_t query_head) const override;
  std::span<const std::uint32_t> budgets() const override { return budgets_; }

 private:
  /// Attention of a set of query rows, all query heads of the group side by side.
  struct RowsEntry {
    std::once_flag weights_once, outputs_once;
    Matrix<float> weights;  // [T or, for the oracle, T + S; group * n]
    Matrix<float> outputs;  // [group * n, dv]
  };
  /// Whether the weights of the rows are a part of exact_.
  bool in_exact(const QueryRows& rows) const {
    return exact_ != nullptr && rows.source == QueryRows::Source::oracle;
  }
  RowsEntry& entry(const QueryRows& rows) const;
  void compute_rows(const QueryRows& rows, Matrix<float>& weights) const;
  void compute_row_outputs(const QueryRows& rows, RowsEntry& entry) const;
  using Rows = std::vector<std::vector<float>>;  // [group][T]
  std::size_t recorded_prompt_queries() const;
  /// The rows of the widest window, query head major, and where they stand.
  std::pair<Matrix<float>, std::vector<TokenIndex>> window_rows() const;
  void compute_window_weights() const;
  std::vector<double> summed_prompt_attention(std::size_t query_head) const;
  /// Means of the last n queries of every head, for each n of `windows`.
  std::vector<Rows> compute_window_means(std::span<const std::uint32_t> windows) const;
  void compute_attention_sum() const;
  void compute_query_stats() const;

  const HeadBlock& block_;
  const LayerContext& layer_;
  Rows decode_mean_;
  std::uint32_t most_window_;
  std::vector<std::uint32_t> budgets_;
  const ExactSteps* exact_;
  const ExactSteps* device_;
  mutable std::mutex mutex_;
  mutable std::map<QueryRows, std::unique_ptr<RowsEntry>> entries_;
  mutable Matrix<float> window_weights_;  // [T, group * most_window]
  mutable std::map<std::uint32_t, Rows> window_means_;
  mutable Rows attention_sum_, attention_mean_;
  mutable Matrix<float> query_mean_, query_covariance_;
  mutable std::uint32_t stats_sinks_ = 0;
};

/// The same head with the true decode queries in place of every observation window: what a windowed policy
/// would have scored with hindsight (metrics.md, window_consistency).
class HindsightFeatures final : public HeadFeatures {
 public:
  explicit HindsightFeatures(const HeadFeatures& head) : head_(head) {}
  const LayerGeometry& geometry() const override { return head_.geometry(); }
  std::uint32_t kv_head() const override { return head_.kv_head(); }
  MatrixView<const float> keys() const override { return head_.keys(); }
  MatrixView<const float> values() const override { return head_.values(); }
  Rope rope() const override { return head_.rope(); }
  std::span<const float> window_mean(std::uint32_t, std::size_t query_head) const override {
    return head_.decode_mean(query_head);
  }
  std::span<const float> attention_sum(std::size_t h) const override { return head_.attention_sum(h); }
  std::span<const float> attention_mean_over_visible(std::size_t h) const override {
    return head_.attention_mean_over_visible(h);
  }
  QueryStats query_stats(std::size_t h) const override { return head_.query_stats(h); }
  std::span<const float> decode_mean(std::size_t h) const override { return head_.decode_mean(h); }
  MatrixView<const float> queries(const QueryRows& rows, std::size_t h) const override {
    return head_.queries(seen(rows), h);
  }
  MatrixView<const float> attention(const QueryRows& rows, std::size_t h) const override {
    return head_.attention(seen(rows), h);
  }
  MatrixView<const float> outputs(const QueryRows& rows, std::size_t h) const override {
    return head_.outputs(seen(rows), h);
  }
  MatrixView<const float> prompt_queries(std::size_t h) const override { return head_.prompt_queries(h); }
  void each_prompt_tile(std::size_t h, const std::function<void(const PromptTile&)>& visit) const override {
    head_.each_prompt_tile(h, visit);
  }
  MatrixView<const float> output_projection(std::size_t h) const override {
    return head_.output_projection(h);
  }
  std::span<const float> second_pass(const std::string& statistic, std::size_t h) const override {
    return head_.second_pass(statistic, h);
  }
  std::span<const std::uint32_t> budgets() const override { return head_.budgets(); }

 private:
  /// Windows and pseudo queries are guesses of the true decode queries.
  static QueryRows seen(const QueryRows& rows) {
    const bool guess =
        rows.source == QueryRows::Source::window || rows.source == QueryRows::Source::lookahead;
    return guess ? QueryRows{.source = QueryRows::Source::oracle} : rows;
  }
  const HeadFeatures& head_;
};

/// Undoes the rotary embedding of a vector that stands at `position`, in place: out of place for the rotary
/// part only.
void unrotate(std::span<double> vector, std::span<const float> inverse_frequency, RopeLayout layout,
              double scaling, double position);

}  // namespace kvsim
