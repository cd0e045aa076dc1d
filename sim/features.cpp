// What policies may know of a KV head.
#include "sim/features.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"
#include "sim/device_plan.h"

namespace kvsim {
namespace {

/// First tokens that the statistics of queries leave out (kvpress' expected attention, n_sink = 4).
constexpr std::uint32_t kStatsSinks = 4;

void narrow(std::span<const double> from, double factor, std::vector<float>& to) {
  to.resize(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i] * factor);
}

}  // namespace

void unrotate(std::span<double> x, std::span<const float> inverse_frequency, RopeLayout layout,
              double scaling, double position) {
  if (layout == RopeLayout::none) return;
  const std::size_t half = inverse_frequency.size();
  for (std::size_t i = 0; i < half; ++i) {
    const std::size_t a = layout == RopeLayout::half ? i : 2 * i;
    const std::size_t b = layout == RopeLayout::half ? i + half : 2 * i + 1;
    const double angle = position * static_cast<double>(inverse_frequency[i]);
    const double cosine = std::cos(angle) / scaling;
    const double sine = std::sin(angle) / scaling;
    const double first = x[a] * cosine + x[b] * sine;
    x[b] = x[b] * cosine - x[a] * sine;
    x[a] = first;
  }
}

BlockFeatures::BlockFeatures(const HeadBlock& block, const LayerContext& layer, Rows decode_mean,
                             std::uint32_t most_window, std::vector<std::uint32_t> budgets,
                             const ExactSteps* exact, const ExactSteps* device)
    : block_(block),
      layer_(layer),
      decode_mean_(std::move(decode_mean)),
      most_window_(most_window),
      budgets_(std::move(budgets)),
      exact_(exact),
      device_(device) {
  KVSIM_CHECK(exact == nullptr || exact->steps().count == layer.geometry.decode, "{} of {} steps are held",
              exact == nullptr ? 0 : exact->steps().count, layer.geometry.decode);
}

std::size_t BlockFeatures::recorded_prompt_queries() const {
  return block_.query.rows() / layer_.geometry.group - layer_.geometry.decode;
}

Rope BlockFeatures::rope() const {
  Rope rope;
  rope.layout = static_cast<Rope::Layout>(layer_.rope_layout);
  rope.inverse_frequency = layer_.inverse_frequency;
  rope.attention_scaling = layer_.attention_scaling;
  return rope;
}

std::pair<Matrix<float>, std::vector<TokenIndex>> BlockFeatures::window_rows() const {
  const LayerGeometry& g = layer_.geometry;
  const std::size_t recorded = recorded_prompt_queries();
  const std::size_t window = most_window_;
  KVSIM_CHECK(window > 0 && window <= recorded, "window {} of {} recorded prompt queries", window, recorded);
  const std::size_t rows = g.group * window;
  Matrix<float> queries(rows, g.key_dim);
  std::vector<TokenIndex> position(rows);
  for (std::size_t h = 0; h < g.group; ++h) {
    for (std::size_t i = 0; i < window; ++i) {
      const std::size_t row = h * window + i;
      std::copy_n(block_.query.row(h * (recorded + g.decode) + recorded - window + i), g.key_dim,
                  queries.row(row));
      position[row] = static_cast<TokenIndex>(g.prompt - window + i);
    }
  }
  return {std::move(queries), std::move(position)};
}

void BlockFeatures::compute_window_weights() const {
  const LayerGeometry& g = layer_.geometry;
  const auto [queries, position] = window_rows();
  if (device_ != nullptr) {
    const std::unique_lock lock = device_->lock_device();
    window_weights_ = device_->on_device()->attention(queries.view(), position);
    return;
  }
  const std::size_t rows = queries.rows();
  window_weights_ = Matrix<float>(g.prompt, rows, kRowPad);
  for (std::size_t begin = 0; begin < rows; begin += kRowTile) {
    attention_weights(keys(), queries.view(), position, layer_.rule, begin, std::min(rows, begin + kRowTile),
                      window_weights_.view());
  }
}

std::vector<BlockFeatures::Rows> BlockFeatures::compute_window_means(
    std::span<const std::uint32_t> windows) const {
  const LayerGeometry& g = layer_.geometry;
  std::vector<RowRange> ranges;
  for (const std::uint32_t window : windows) {
    KVSIM_CHECK(window > 0 && window <= most_window_, "window {} was not announced ({})", window,
                most_window_);
    for (std::size_t h = 0; h < g.group; ++h)
      ranges.push_back({(h + 1) * most_window_ - window, (h + 1) * most_window_});
  }
  Matrix<double> sums(ranges.size(), g.prompt);
  if (device_ != nullptr) {
    const auto [queries, position] = window_rows();
    const std::unique_lock lock = device_->lock_device();
    device_->on_device()->attention_sums(queries.view(), position, ranges, sums.view());
  } else {
    if (window_weights_.empty()) compute_window_weights();
    for (std::size_t i = 0; i < ranges.size(); ++i)
      column_sums(window_weights_.view(), ranges[i].begin, ranges[i].end, sums.view().row_span(i));
  }
  std::vector<Rows> means;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    if (i % g.group == 0) means.emplace_back(g.group);
    narrow(sums.view().row_span(i), 1.0 / windows[i / g.group], means.back()[i % g.group]);
  }
  return means;
}

void BlockFeatures::prepare_windows(std::span<const std::uint32_t> windows) {
  if (windows.empty()) return;
  const std::lock_guard lock(mutex_);
  std::vector<Rows> means = compute_window_means(windows);
  for (std::size_t i = 0; i < windows.size(); ++i) window_means_.emplace(windows[i], std::move(means[i]));
}

std::span<const float> BlockFeatures::window_mean(std::uint32_t window, std::size_t query_head) const {
  const std::lock_guard lock(mutex_);
  auto found = window_means_.find(window);
  if (found == window_means_.end())
    found =
        window_means_.emplace(window, std::move(compute_window_means(std::span(&window, 1)).front())).first;
  return found->second[query_head];
}

std::vector<double> BlockFeatures::summed_prompt_attention(std::size_t h) const {
  const std::size_t prompt = layer_.geometry.prompt;
  std::vector<double> total(prompt), part(prompt);
  if (device_ == nullptr) {
    each_prompt_tile(h, [&](const PromptTile& tile) {
      const std::size_t seen = tile.weights.rows;
      column_sums(tile.weights, 0, tile.count, std::span(part).first(seen));
      for (std::size_t i = 0; i < seen; ++i) total[i] += part[i];
    });
    return total;
  }
  const MatrixView<const float> all = prompt_queries(h);
  std::vector<TokenIndex> position(prompt);
  std::iota(position.begin(), position.end(), TokenIndex{0});
  const std::unique_lock lock = device_->lock_device();
  for (std::size_t begin = 0; begin < prompt; begin += kPromptQueryRows) {
    const std::size_t count = std::min(prompt - begin, kPromptQueryRows);
    const RowRange all_rows{0, count};
    device_->on_device()->attention_sums(all.rows_from(begin, count),
                                         std::span(position).subspan(begin, count), std::span(&all_rows, 1),
                                         {part.data(), 1, prompt, prompt});
    for (std::size_t i = 0; i < prompt; ++i) total[i] += part[i];
  }
  return total;
}

void BlockFeatures::compute_attention_sum() const {
  const LayerGeometry& g = layer_.geometry;
  Rows sums(g.group);
  if (const auto recorded = block_.attention_stats.find("sum"); recorded != block_.attention_stats.end()) {
    for (std::size_t h = 0; h < g.group; ++h)
      sums[h].assign(recorded->second.row(h), recorded->second.row(h) + g.prompt);
  } else {
    for (std::size_t h = 0; h < g.group; ++h) narrow(summed_prompt_attention(h), 1.0, sums[h]);
  }
  attention_mean_.resize(g.group);
  for (std::size_t h = 0; h < g.group; ++h) {
    attention_mean_[h].resize(g.prompt);
    for (std::size_t i = 0; i < g.prompt; ++i) {
      const std::size_t behind = g.prompt - i;
      const std::size_t seen_by =
          layer_.rule.window == 0 ? behind : std::min<std::size_t>(behind, layer_.rule.window);
      attention_mean_[h][i] = sums[h][i] / static_cast<float>(seen_by);
    }
  }
  attention_sum_ = std::move(sums);
}

std::span<const float> BlockFeatures::attention_sum(std::size_t query_head) const {
  const std::lock_guard lock(mutex_);
  if (attention_sum_.empty()) compute_attention_sum();
  return attention_sum_[query_head];
}

std::span<const float> BlockFeatures::attention_mean_over_visible(std::size_t query_head) const {
  const std::lock_guard lock(mutex_);
  if (attention_sum_.empty()) compute_attention_sum();
  return attention_mean_[query_head];
}

void BlockFeatures::compute_query_stats() const {
  const LayerGeometry& g = layer_.geometry;
  const std::size_t d = g.key_dim;
  const std::size_t recorded = recorded_prompt_queries();
  KVSIM_CHECK(recorded == g.prompt, "{} of {} prompt queries recorded", recorded, g.prompt);
  stats_sinks_ = static_cast<std::uint32_t>(std::min<std::size_t>(kStatsSinks, g.prompt - 1));
  const std::size_t used = g.prompt - stats_sinks_;
  query_mean_ = Matrix<float>(g.group, d);
  query_covariance_ = Matrix<float>(g.group * d, d);
  Matrix<double> raw(used, d);
  for (std::size_t h = 0; h < g.group; ++h) {
    std::vector<double> mean(d, 0.0);
    for (std::size_t i = 0; i < used; ++i) {
      const float* from = block_.query.row(h * (g.prompt + g.decode) + stats_sinks_ + i);
      for (std::size_t c = 0; c < d; ++c) raw(i, c) = from[c];
      unrotate({raw.row(i), d}, layer_.inverse_frequency, layer_.rope_layout, layer_.attention_scaling,
               static_cast<double>(stats_sinks_ + i));
      for (std::size_t c = 0; c < d; ++c) mean[c] += raw(i, c);
    }
    for (std::size_t c = 0; c < d; ++c) {
      mean[c] /= static_cast<double>(used);
      query_mean_(h, c) = static_cast<float>(mean[c]);
    }
    Matrix<double> covariance(d, d);
    for (std::size_t i = 0; i < used; ++i) {
      for (std::size_t c = 0; c < d; ++c) raw(i, c) -= mean[c];
      for (std::size_t a = 0; a < d; ++a) {
        const double factor = raw(i, a);
        for (std::size_t b = 0; b < d; ++b) covariance(a, b) += factor * raw(i, b);
      }
    }
    for (std::size_t a = 0; a < d; ++a)
      for (std::size_t b = 0; b < d; ++b)
        query_covariance_(h * d + a, b) = static_cast<float>(covariance(a, b) / static_cast<double>(used));
  }
}

QueryStats BlockFeatures::query_stats(std::size_t query_head) const {
  const std::lock_guard lock(mutex_);
  const std::size_t d = layer_.geometry.key_dim;
  const bool recorded = !block_.query_mean.empty();
  if (!recorded && query_mean_.empty()) compute_query_stats();
  const Matrix<float>& mean = recorded ? block_.query_mean : query_mean_;
  const Matrix<float>& covariance = recorded ? block_.query_covariance : query_covariance_;
  return {{mean.row(query_head), d},
          covariance.view().rows_from(query_head * d, d),
          recorded ? block_.query_stats_sinks : stats_sinks_};
}

std::span<const float> BlockFeatures::decode_mean(std::size_t query_head) const {
  KVSIM_CHECK(query_head < decode_mean_.size(), "decode attention was not computed");
  return decode_mean_[query_head];
}

}  // namespace kvsim
