// Exact attention of the recorded decode queries over entries that a policy changed.
#pragma once

#include <span>

#include "sim/evaluate.h"

namespace kvsim {

/// Rows whose logits are held at once.
inline constexpr std::size_t kTransformedTile = 64;

/// Rows [first, end) of a head at one budget, when `entries` stand in the place of the prompt tokens `kept` (ascending):
/// softmax over those that the row sees by the tokens' recorded positions, and over the decoded tokens, which nothing
/// changed. In double, a row's own maximum.
///   error        [end - first]: |o' - o| / |o|, o = the exact output over everything
///   logit_error  [end - first]: |l' - l| / |l| over the kept tokens that the row sees, l = logits of the recorded keys
///   delta        null, or o' - o of row r and channel c at delta[c * stride + r], r absolute
void measure_transformed(const HeadView& head, const Transformed& entries, std::span<const TokenIndex> kept, std::size_t first,
                         std::size_t end, std::span<float> error, std::span<float> logit_error, float* delta, std::size_t stride);

}  // namespace kvsim
