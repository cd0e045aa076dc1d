// Spearman's rank correlation.
#pragma once

#include <span>

#include "kernels/view.h"

namespace kvsim {

/// Spearman's rank correlation of two lists of equal length, ties averaged, in [-1, 1]. NaN where it is
/// undefined: fewer than two values, or no two different ones in one of the lists. Values must not be NaN.
double rank_correlation(std::span<const double> a, std::span<const double> b);

/// Values of some tokens with the order of these tokens, largest value first.
struct RankedValues {
  std::span<const float> value;       // [T]
  std::span<const TokenIndex> order;  // the tokens
};
/// The same for two orders of the same tokens, which spares the sorting: O(T).
double rank_correlation(const RankedValues& a, const RankedValues& b);

}  // namespace kvsim
