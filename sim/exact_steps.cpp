// Exact attention of one KV head's decode queries.
#include "sim/exact_steps.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {
namespace {

/// Largest prompt whose ranks fit into 16 bits with one value left for "not visible".
constexpr std::size_t kNarrowRanks = 65534;

/// Calls task(row_begin, row_end) for tiles of rows on all threads.
template <typename Task>
void for_tiles(std::size_t rows, std::size_t tile, const Task& task) {
  const auto tiles = static_cast<std::int64_t>((rows + tile - 1) / tile);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::size_t begin = static_cast<std::size_t>(i) * tile;
    task(begin, std::min(rows, begin + tile));
  }
}

}  // namespace

ExactSteps::ExactSteps(const HeadBlock& block, const LayerContext& layer, StepRange steps, bool with_ranks,
                       Device* device)
    : steps_(steps), prompt_(layer.geometry.prompt), rows_(layer.geometry.group * steps.count) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t recorded = block.query.rows() / g.group;
  KVSIM_CHECK(recorded >= g.decode && steps.first + steps.count <= g.decode, "{} queries for {} steps",
              recorded, g.decode);

  queries_ = Matrix<float>(rows_, g.key_dim);
  position_.resize(rows_);
  first_visible_.resize(rows_);
  for (std::size_t h = 0; h < g.group; ++h) {
    for (std::size_t t = 0; t < steps.count; ++t) {
      const std::size_t row = h * steps.count + t;
      const float* from = block.query.row(h * recorded + recorded - g.decode + steps.first + t);
      std::copy_n(from, g.key_dim, queries_.row(row));
      position_[row] = static_cast<TokenIndex>(g.prompt + steps.first + t);
      const std::uint32_t window = layer.rule.window;
      first_visible_[row] = window == 0 || position_[row] + 1 <= window ? 0 : position_[row] + 1 - window;
    }
  }
  if (device == nullptr) {
    compute(block, layer, with_ranks);
  } else {
    device_ = device;
    device_head_ = device->load({block.key.view(), block.value.view(), queries_.view(), position_, prompt_,
                                 layer.rule, layer.stored, with_ranks});
  }
}

void ExactSteps::compute(const HeadBlock& block, const LayerContext& layer, bool with_ranks) {
  const LayerGeometry& g = layer.geometry;
  const std::size_t tokens = g.prompt + g.decode;
  if (with_ranks) {
    weights_ = Matrix<float>(Unset(), tokens, rows_, kRowPad);
  } else {
    // Only scored, not measured: what scoring holds beside the weights may need the memory of earlier ones.
    give_back_unset();
    weights_ = Matrix<float>(tokens, rows_, kRowPad);
  }
  exact_ = Matrix<float>(g.value_dim, rows_, kRowPad);
  tail_output_ = Matrix<float>(g.value_dim, rows_, kRowPad);
  tail_weight_.assign(exact_.stride(), 0.0f);
  Matrix<float> prompt_output(g.value_dim, rows_, kRowPad);
  for_tiles(rows_, kRowTile, [&](std::size_t begin, std::size_t end) {
    attention_weights(block.key.view(), queries_.view(), position_, layer.rule, begin, end, weights_.view());
    attention_outputs(weights_.view(), block.value.view(), 0, g.prompt, begin, end, prompt_output.view(), {});
    attention_outputs(weights_.view(), block.value.view(), g.prompt, tokens, begin, end, tail_output_.view(),
                      tail_weight_);
    for (std::size_t c = 0; c < g.value_dim; ++c)
      for (std::size_t row = begin; row < end; ++row)
        exact_(c, row) = prompt_output(c, row) + tail_output_(c, row);
  });
  if (!with_ranks) return;
  if (g.prompt <= kNarrowRanks) {
    rank_all(layer, ranks16_);
  } else {
    rank_all(layer, ranks32_);
  }
}

template <typename Rank>
void ExactSteps::rank_all(const LayerContext& layer, Matrix<Rank>& ranks) {
  ranks = Matrix<Rank>(Unset(), prompt_, rows_, 2 * kRowPad);
  for (std::size_t t = 0; t < prompt_; ++t) std::fill(ranks.row(t) + rows_, ranks.row(t) + ranks.stride(), Rank{0});
  RankOutput<Rank> out{ranks.view(), {}, {}};
  for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
    needed_total_[c].assign(weights_.stride(), 0);
    needed_prompt_[c].assign(weights_.stride(), 0);
    out.needed_total[c] = needed_total_[c];
    out.needed_prompt[c] = needed_prompt_[c];
  }
  for_tiles(rows_, kRowPad, [&](std::size_t begin, std::size_t end) {
    rank_rows(weights_.view(), prompt_, position_, layer.rule.window, begin, end, out);
  });
}

void ExactSteps::fetch() const {
  if (!device_head_) return;
  std::call_once(fetched_, [this] {
    const std::unique_lock lock = lock_device();
    const HeadExact& head = device_head_->exact();
    exact_ = Matrix<float>(head.output.cols(), rows_, kRowPad);
    for (std::size_t row = 0; row < rows_; ++row)
      for (std::size_t c = 0; c < head.output.cols(); ++c) exact_(c, row) = head.output(row, c);
    for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
      needed_total_[c] = head.needed_total[c];
      needed_prompt_[c] = head.needed_prompt[c];
    }
  });
}

MatrixView<const float> ExactSteps::weights() const {
  if (device_head_) {
    std::call_once(weights_fetched_, [this] {
      const std::unique_lock lock = lock_device();
      weights_ = device_head_->weights();
    });
  }
  return weights_.view();
}

MatrixView<const float> ExactSteps::outputs() const {
  fetch();
  return exact_.view();
}

std::span<const std::uint32_t> ExactSteps::needed_total(std::size_t fraction) const {
  fetch();
  return needed_total_[fraction];
}

std::span<const std::uint32_t> ExactSteps::needed_prompt(std::size_t fraction) const {
  fetch();
  return needed_prompt_[fraction];
}

CurveInput ExactSteps::curve_input(const HeadBlock& block) const {
  KVSIM_CHECK(!device_head_, "the rows are on a device");
  CurveInput in;
  in.weights = weights_.view().rows_from(0, prompt_);
  in.values = block.value.view().rows_from(0, prompt_);
  in.tail_output = tail_output_.view();
  in.tail_weight = tail_weight_;
  in.exact = exact_.view();
  return in;
}

void ExactSteps::add_prompt_sums(std::size_t head, std::span<double> sum) const {
  if (device_head_) return device_head_->add_prompt_sums(head * steps_.count, (head + 1) * steps_.count, sum);
  constexpr std::size_t kTokens = 256;  // of one task
  for_tiles(prompt_, kTokens, [&](std::size_t first, std::size_t last) {
    // Block by block, so that the sum over all steps is the same however they were cut into ranges.
    std::array<double, kTokens> part;
    for (std::size_t t = 0; t < steps_.count; t += kStepBlock) {
      const std::size_t begin = head * steps_.count + t;
      const std::size_t end = head * steps_.count + std::min(steps_.count, t + kStepBlock);
      column_sums(weights_.view().rows_from(first, last - first), begin, end, part);
      for (std::size_t i = first; i < last; ++i) sum[i] += part[i - first];
    }
  });
}

std::size_t ExactSteps::bytes_needed(const LayerGeometry& g, std::size_t steps, bool with_ranks) {
  const std::size_t stride = round_up(g.group * steps, kRowPad);
  const std::size_t rank_bytes = !with_ranks ? 0 : g.prompt <= kNarrowRanks ? 2 : 4;
  return stride * ((g.prompt + g.decode) * sizeof(float) + g.prompt * rank_bytes +
                   3 * g.value_dim * sizeof(float) + g.key_dim * sizeof(float));
}

}  // namespace kvsim
