// Attention of chosen query rows over the prompt: windows, pseudo queries, true decode queries, all prompt
// queries.
#include <algorithm>

#include "kernels/error.h"
#include "sim/device_plan.h"
#include "sim/features.h"

namespace kvsim {
namespace {

using Source = QueryRows::Source;

const QueryRows kAllSteps{.source = Source::oracle};

/// Where row `i` of `n` stands as far as visibility goes.
TokenIndex position_of(const QueryRows& rows, std::size_t i, std::size_t n, std::size_t prompt) {
  std::size_t at = 0;
  switch (rows.source) {
    case Source::window:
      KVSIM_CHECK(n + rows.behind <= prompt, "a window of {} moved back by {} in {} tokens", n, rows.behind,
                  prompt);
      at = prompt - n - rows.behind + i;
      break;
    case Source::prompt:
      at = rows.first + i;
      break;
    case Source::lookahead:
      KVSIM_CHECK(!rows.staircase || n <= prompt, "{} pseudo queries on {} tokens", n, prompt);
      at = rows.staircase ? prompt - n + i : prompt + i;
      break;
    case Source::oracle:
      at = prompt + i;
      break;
  }
  return static_cast<TokenIndex>(at);
}

}  // namespace

MatrixView<const float> BlockFeatures::queries(const QueryRows& rows, std::size_t query_head) const {
  const LayerGeometry& g = layer_.geometry;
  const std::size_t n = count(rows);
  if (rows.source == Source::lookahead) {
    const Matrix<float>& all = block_.lookahead_query.at(rows.pass);
    return all.view().rows_from(query_head * (all.rows() / g.group), n);
  }
  const std::size_t recorded = recorded_prompt_queries();
  std::size_t first = query_head * (recorded + g.decode);
  if (rows.source == Source::window) {
    KVSIM_CHECK(n <= recorded, "window {} of {} recorded prompt queries", n, recorded);
    first += recorded - n;
  } else if (rows.source == Source::prompt) {
    KVSIM_CHECK(recorded == g.prompt, "{} of {} prompt queries recorded", recorded, g.prompt);
    first += rows.first;
  } else {
    first += recorded;
  }
  return block_.query.view().rows_from(first, n);
}

MatrixView<const float> BlockFeatures::prompt_queries(std::size_t query_head) const {
  const auto all = static_cast<std::uint32_t>(layer_.geometry.prompt);
  return queries({.source = Source::prompt, .count = all}, query_head);
}

BlockFeatures::RowsEntry& BlockFeatures::entry(const QueryRows& rows) const {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<RowsEntry>& place = entries_[rows];
  if (!place) place = std::make_unique<RowsEntry>();
  return *place;
}

void BlockFeatures::compute_rows(const QueryRows& rows, Matrix<float>& weights) const {
  const LayerGeometry& g = layer_.geometry;
  const std::size_t n = count(rows);
  Matrix<float> stacked(g.group * n, g.key_dim);
  std::vector<TokenIndex> position(g.group * n);
  for (std::size_t h = 0; h < g.group; ++h) {
    const MatrixView<const float> from = queries(rows, h);
    for (std::size_t i = 0; i < n; ++i) {
      std::copy_n(from.row(i), g.key_dim, stacked.row(h * n + i));
      position[h * n + i] = position_of(rows, i, n, g.prompt);
    }
  }
  if (device_ != nullptr && rows.source != Source::oracle) {
    const std::unique_lock lock = device_->lock_device();
    weights = Matrix<float>(g.prompt, stacked.rows(), kRowPad);
    for (std::size_t begin = 0; begin < stacked.rows(); begin += kPromptQueryRows) {
      const std::size_t in_tile = std::min(stacked.rows() - begin, kPromptQueryRows);
      const Matrix<float> tile = device_->on_device()->attention(stacked.view().rows_from(begin, in_tile),
                                                                 std::span(position).subspan(begin, in_tile));
      for (std::size_t t = 0; t < g.prompt; ++t) std::copy_n(tile.row(t), in_tile, weights.row(t) + begin);
    }
    return;
  }
  // True decode queries see the tokens decoded before them.
  const MatrixView<const float> seen = rows.source == Source::oracle ? block_.key.view() : keys();
  weights = Matrix<float>(seen.rows, stacked.rows(), kRowPad);
  for (std::size_t begin = 0; begin < stacked.rows(); begin += kRowTile) {
    attention_weights(seen, stacked.view(), position, layer_.rule, begin,
                      std::min(stacked.rows(), begin + kRowTile), weights.view());
  }
}

void BlockFeatures::compute_row_outputs(const QueryRows& rows, RowsEntry& entry) const {
  const LayerGeometry& g = layer_.geometry;
  const std::size_t n = count(rows);
  if (!in_exact(rows)) std::call_once(entry.weights_once, [&] { compute_rows(rows, entry.weights); });
  const MatrixView<const float> weights = in_exact(rows) ? exact_->weights() : entry.weights.view();
  const std::size_t seen = weights.rows;
  Matrix<float> channel_major(g.value_dim, g.group * n, kRowPad);
  for (std::size_t begin = 0; begin < g.group * n; begin += kRowTile) {
    attention_outputs(weights, block_.value.view(), 0, seen, begin, std::min(g.group * n, begin + kRowTile),
                      channel_major.view(), {});
  }
  entry.outputs = Matrix<float>(g.group * n, g.value_dim);
  for (std::size_t row = 0; row < g.group * n; ++row)
    for (std::size_t c = 0; c < g.value_dim; ++c) entry.outputs(row, c) = channel_major(c, row);
}

MatrixView<const float> BlockFeatures::attention(const QueryRows& rows, std::size_t query_head) const {
  const std::size_t prompt = layer_.geometry.prompt;
  const std::size_t n = count(rows);
  if (rows.source == Source::window && rows.behind == 0) {  // a part of the widest window's weights
    const std::lock_guard lock(mutex_);
    KVSIM_CHECK(n <= most_window_, "window {} was not announced ({})", n, most_window_);
    if (window_weights_.empty()) compute_window_weights();
    const MatrixView<const float> all = window_weights_.view();
    return {all.data + (query_head + 1) * most_window_ - n, prompt, n, all.stride};
  }
  if (in_exact(rows)) {
    const MatrixView<const float> all = exact_->weights();
    return {all.data + query_head * layer_.geometry.decode, prompt, n, all.stride};
  }
  RowsEntry& entry = this->entry(rows);
  std::call_once(entry.weights_once, [&] { compute_rows(rows, entry.weights); });
  const MatrixView<const float> all = entry.weights.view();
  return {all.data + query_head * n, prompt, n, all.stride};
}

MatrixView<const float> BlockFeatures::outputs(const QueryRows& rows, std::size_t query_head) const {
  // Out of the exact weights come the outputs of all steps, whatever part of them is asked for.
  const QueryRows& whole = in_exact(rows) ? kAllSteps : rows;
  RowsEntry& entry = this->entry(whole);
  std::call_once(entry.outputs_once, [&] { compute_row_outputs(whole, entry); });
  return entry.outputs.view().rows_from(query_head * count(whole), count(rows));
}

void BlockFeatures::each_prompt_tile(std::size_t query_head,
                                     const std::function<void(const PromptTile&)>& visit) const {
  const std::size_t prompt = layer_.geometry.prompt;
  const MatrixView<const float> all = prompt_queries(query_head);
  std::vector<TokenIndex> position(prompt);
  for (std::size_t i = 0; i < prompt; ++i) position[i] = static_cast<TokenIndex>(i);
  for (std::size_t begin = 0; begin < prompt; begin += kRowTile) {
    const std::size_t count = std::min(prompt - begin, kRowTile);
    const std::size_t seen = begin + count;  // keys behind the tile's last query have weight 0
    Matrix<float> weights(seen, count, kRowPad);
    const MatrixView<const float> tile = all.rows_from(begin, count);
    attention_weights(keys().rows_from(0, seen), tile, std::span(position).subspan(begin, count), layer_.rule,
                      0, count, weights.view());
    visit({begin, count, tile, {weights.data(), seen, count, weights.stride()}});
  }
}

MatrixView<const float> BlockFeatures::output_projection(std::size_t query_head) const {
  KVSIM_CHECK(!block_.output_proj.empty(), "no output projection was read");
  const std::size_t dv = layer_.geometry.value_dim;
  return block_.output_proj.view().rows_from(query_head * dv, dv);
}

std::span<const float> BlockFeatures::second_pass(const std::string& statistic,
                                                  std::size_t query_head) const {
  const auto found = block_.second_pass.find(statistic);
  KVSIM_CHECK(found != block_.second_pass.end(), "no second-pass statistic '{}' was read", statistic);
  return found->second.view().row_span(query_head);
}

}  // namespace kvsim
