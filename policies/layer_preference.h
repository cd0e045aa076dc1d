// CAKE's layer budgets: more for layers whose window attention is dispersed and shifts (arXiv:2503.12491).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Dispersion and shift of window attention, summed over heads: H = -sum A log(A + 1e-10) and V = sum over tokens of the
/// unbiased variance over the window's queries, A = softmax over all keys, restricted to the candidates, not renormalised.
struct AttentionSpread {
  double entropy = 0;
  double variance = 0;

  /// Four floats that hold both without loss: the layout of UnitScores::extra and of Policy::summarise.
  std::vector<float> to_floats() const;
  static AttentionSpread from_floats(std::span<const float> four);
};

/// Of all query heads of the group over the first `candidates` prompt tokens. At least two rows, all of them from
/// prompt positions or pseudo queries.
AttentionSpread attention_spread(const HeadFeatures& head, const std::vector<QueryRows>& rows, std::size_t candidates);

/// Adds up what stands in the last four floats of every unit's `extra`: the summary of a layer. Units of one KV head must
/// carry their own share (an empty extra counts nothing).
std::vector<float> summarise_spread(const LayerScores& scores);

/// Layer budgets by preference P = H^(1/tau1) V^(1/tau2).
struct LayerPreference {
  double tau1 = 1.0;
  double tau2 = 1.0;
  bool cascade = false;  // re-cut after every layer of the prompt: what a stage took away nothing brings back

  double preference(const AttentionSpread& spread) const;
  /// Tokens that each unit of a layer keeps at a mean of `budget` over the layers of `summaries`, `guarded` protected ones
  /// of every layer included; `place` counts those layers. Every layer has the protected tokens, the rest is shared in
  /// proportion to P; a layer holds `prompt` at most and the excess goes to the others in equal parts. The total over the
  /// layers is exact; with `cascade` it may be less.
  std::uint32_t tokens(std::span<const std::vector<float>> summaries, std::size_t place, std::uint32_t budget,
                       std::uint32_t guarded, std::uint32_t prompt) const;
};

/// The authors' adjustment: floor(total * P_l / sum P), at most `cap` each; excess and remainder in equal parts to the
/// layers below the cap, what is left over to the lowest of them. Repeated until all fit, where the authors' code stops
/// after one round and may leave a layer above the cap.
std::vector<std::uint32_t> share_by_preference(std::span<const double> preference, std::uint64_t total, std::uint32_t cap);

/// Place of the layer among the recorded ones.
std::size_t layer_place(const LayerGeometry& layer);

}  // namespace kvsim
