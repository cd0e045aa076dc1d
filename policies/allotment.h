// How a budget is shared: over the heads of a layer, over the layers of a model, and to whole tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Whole numbers next to `shares`, none above `most`, that sum to `total` (largest remainders first, ties to
/// the lower index). Shares above `most` give the excess to the others in proportion. `total` must not exceed
/// most * shares.
std::vector<std::uint32_t> round_to_total(std::vector<double> shares, std::uint64_t total,
                                          std::uint32_t most);

/// How many tokens each unit has among the `total` best of the layer, when unit u keeps floors[u] at least:
/// protected tokens first (place by place over all units), then by score; ties go to the earlier position,
/// then to the lower unit. O(units * 32 * log tokens) plus the ties at the cut.
std::vector<std::uint32_t> joint_counts(const LayerRanking& ranking, std::uint64_t total,
                                        std::span<const std::uint32_t> floors);

/// Head budgets of Ada-KV (arXiv:2407.11550).
struct HeadShare {
  enum class Form : std::uint8_t {
    guarantee,   // kvpress: every unit keeps trunc(alpha * n) of its own, the rest goes to the best of the
                 // layer
    interpolate  // authors: (1 - alpha) * adaptive + alpha * uniform, beyond the protected tokens
  };
  double alpha = 0.2;
  Form form = Form::guarantee;
  bool repo = false;  // interpolate: round as the authors do; the total drifts by a few tokens

  /// `kept` holds uniform counts on entry; their sum is what is shared out.
  void apply(const LayerRanking& ranking, std::span<std::uint32_t> kept) const;
};

/// Layer budgets of PyramidKV (arXiv:2406.02069): linear over the depth.
struct LayerSlope {
  enum class Form : std::uint8_t {
    kvpress,  // over all tokens of the budget; flat where that leaves no room for the window or the prompt
    authors   // over the tokens beyond the window, which every layer keeps on top
  };
  double beta = 20;
  bool repo = false;  // round as the code of that form does (halves to even, whole steps): the total drifts
  Form form = Form::kvpress;

  /// Tokens per unit in this layer for `budget` tokens on average over the layers of the trace.
  /// `window` = tokens that every unit protects.
  std::uint32_t tokens(const LayerGeometry& layer, std::uint32_t budget, std::size_t window) const;
};

/// The authors' profile (KVCache-Factory) of `beyond` tokens on average, at most `room`; `whole` = in whole
/// steps.
double authors_layer_share(double beyond, double beta, double room, std::uint32_t index, std::uint32_t layers,
                           bool whole);

}  // namespace kvsim
