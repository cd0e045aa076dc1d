// The two scores of Compactor (arXiv:2507.08143) and their standardisation: leverage of keys, attention
// inside chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Consecutive prompt tokens [first, first + count).
struct TokenRange {
  std::size_t first = 0, count = 0;
};

/// Leverage of the centred keys before the rotary embedding: x' (X'X + j I)^-1 x with the smallest j of 1e-2,
/// 1e-1, ... that has Cholesky factors. `sketch` > 0 multiplies the keys by a [d, sketch] matrix of normal
/// numbers of variance 1 / sketch first (keyed by seed, trace, layer and KV head). Needs keys. Shared by all
/// who ask.
std::span<const float> key_leverage(const HeadFeatures& head, TokenRange range, std::uint32_t sketch,
                                    std::uint32_t seed);

/// Attention inside chunks of `chunk` tokens that ignores their order: sums over a chunk's queries of
/// softmax(q.k), no logit scale, mean over the group; times |v|, averaged over three neighbours (zeros beyond
/// the ends). A shorter last chunk follows kvpress's padding to the last detail: padded keys take part with
/// logit 0, padded queries add 1 / chunk. Needs keys, values and all queries. Shared by all who ask.
std::span<const float> chunk_attention(const HeadFeatures& head, TokenRange range, std::uint32_t chunk);

/// (x - mean) / max(deviation, 1e-6) over all numbers of all rows, divisor n - 1, in place.
void standardise(const std::vector<std::span<float>>& rows);

}  // namespace kvsim
