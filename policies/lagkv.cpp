// LagKV: compares every block of tokens with the block that follows it.
//
// Liang et al., arXiv:2504.04704, as in kvpress (LagKVPress). After the sinks the prompt is cut into blocks
// of `lag` tokens; keys and values of a block are scaled by the channel-wise range of the next block, a
// token's score is the softmax over its block of the deviation (n - 1) over its channels, averaged over keys
// and values. Scores are then replaced by their rank in the block divided by `lag`, or kept (cross=true).
// Sinks, the last whole block and what follows it score 1. A prompt below sinks + 2 * lag keeps the newest.
// Deviation: a channel that is constant in the next block counts as 0, where kvpress divides by zero.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "lagkv",
    .summary = "spread of keys and values relative to the following block",
    .reference = "arXiv:2504.04704; kvpress LagKVPress",
    .accounting =
        "sinks, the last whole block and the rest behind it are kept first and count towards the budget"};

/// Softmax over the block of each token's deviation over its channels, scaled by the range of the next block.
std::vector<double> block_spread(MatrixView<const float> rows, std::size_t begin, std::size_t lag) {
  const MatrixView<const float> block = rows.rows_from(begin, lag), next = rows.rows_from(begin + lag, lag);
  std::vector<double> low(rows.cols), range(rows.cols), spread(lag);
  for (std::size_t c = 0; c < rows.cols; ++c) {
    float least = next(0, c), most = next(0, c);
    for (std::size_t t = 1; t < lag; ++t) {
      least = std::min(least, next(t, c));
      most = std::max(most, next(t, c));
    }
    low[c] = static_cast<double>(least);
    range[c] = static_cast<double>(most) - low[c];
  }
  // Channel-major: tokens lie in the lanes, each sum still runs along the channels.
  const auto channels = static_cast<double>(rows.cols);
  std::vector<double> scaled(rows.cols * lag), mean(lag, 0.0), squares(lag, 0.0);
  constexpr std::size_t kTurned = 8;  // channels turned together: their lines stay in the cache
  for (std::size_t first = 0; first < rows.cols; first += kTurned)
    for (std::size_t t = 0; t < lag; ++t)
      for (std::size_t c = first; c < std::min(first + kTurned, rows.cols); ++c)
        scaled[c * lag + t] = static_cast<double>(block(t, c));
  for (std::size_t c = 0; c < rows.cols; ++c) {
    double* const of_channel = scaled.data() + c * lag;
    if (range[c] == 0) {
      std::fill(of_channel, of_channel + lag, 0.0);
      continue;  // adds nothing to the means
    }
    for (std::size_t t = 0; t < lag; ++t) of_channel[t] = (of_channel[t] - low[c]) / range[c];
    for (std::size_t t = 0; t < lag; ++t) mean[t] += of_channel[t];
  }
  for (double& x : mean) x /= channels;
  for (std::size_t c = 0; c < rows.cols; ++c) {
    const double* const of_channel = scaled.data() + c * lag;
    for (std::size_t t = 0; t < lag; ++t) squares[t] += (of_channel[t] - mean[t]) * (of_channel[t] - mean[t]);
  }
  for (std::size_t t = 0; t < lag; ++t)
    spread[t] = channels > 1 ? std::sqrt(squares[t] / (channels - 1)) : 0.0;
  const double largest = *std::max_element(spread.begin(), spread.end());
  double total = 0;
  for (double& x : spread) total += x = std::exp(x - largest);
  for (double& x : spread) x /= total;
  return spread;
}

/// Rank inside the block divided by its length, 0 = smallest; of equal scores the earlier one ranks higher.
void replace_by_rank(std::vector<double>& scores) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return scores[a] != scores[b] ? scores[a] < scores[b] : a > b;
  });
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    scores[order[rank]] = static_cast<double>(rank) / static_cast<double>(order.size());
  }
}

struct LagKv final : Policy {
  std::uint32_t sinks_ = 4;
  std::uint32_t lag_ = 128;
  bool cross_ = false;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(),
             "first tokens that are always kept");
    f.number("lag", lag_, 1, std::numeric_limits<std::uint32_t>::max() / 4, "tokens of a block");
    f.flag("cross", cross_, "compare scores across blocks instead of ranks inside each");
  }
  Need needs() const override { return Need::keys | Need::values; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    const std::size_t sinks = std::min<std::size_t>(sinks_, tokens), lag = lag_;
    std::vector<float>& score = out[0].score;
    score.assign(tokens, 1.0f);
    if (tokens < sinks + 2 * lag) {
      for (std::size_t t = sinks; t < tokens; ++t) {
        score[t] = static_cast<float>(static_cast<double>(t - sinks) / static_cast<double>(tokens - sinks));
      }
      out[0].protected_tokens = protected_order(tokens, sinks_, 0);
      return;
    }
    const std::size_t last =
        sinks + ((tokens - sinks) / lag - 1) * lag;  // first token of the last whole block
    for (std::size_t begin = sinks; begin < last; begin += lag) {
      std::vector<double> spread = block_spread(head.keys(), begin, lag);
      const std::vector<double> values = block_spread(head.values(), begin, lag);
      for (std::size_t t = 0; t < lag; ++t) spread[t] = (spread[t] + values[t]) / 2;
      if (!cross_) replace_by_rank(spread);
      for (std::size_t t = 0; t < lag; ++t) score[begin + t] = static_cast<float>(spread[t]);
    }
    out[0].protected_tokens = protected_order(tokens, sinks_, static_cast<std::uint32_t>(tokens - last));
  }
};

const RegisterPolicy<LagKv> registered{kTraits};

}  // namespace
}  // namespace kvsim
