// How much a token repeats others: the cosine redundancy of R-KV (reference, section 7.1, C8 and C9).
#pragma once

#include <span>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Mixes a score with redundancy: lambda * score - (1 - lambda) * redundancy (R-KV, arXiv:2505.24133).
struct RedundancyPart {
  double lambda = 0.1;
  double threshold = 0.5;  // keys of a larger cosine repeat each other; the newest of them is spared
};

/// Redundancy of every key, [T]. Cosines of all keys among each other, 0 with itself; in every row the entry
/// of the newest key above `threshold` is zeroed (of key 0 where none is, as in the authors' code); softmax
/// over the tokens of the column means. O(T^2 d), memory O(T).
std::vector<double> key_redundancy(MatrixView<const float> keys, double threshold);
/// The same of a prompt's keys, computed once for all variants.
std::span<const float> key_redundancy(const HeadFeatures& head, double threshold);

/// The mix, in place; tokens behind the end of a row are left out.
void mix_redundancy(const RedundancyPart& part, const HeadFeatures& head,
                    std::vector<std::vector<double>>& rows);

}  // namespace kvsim
