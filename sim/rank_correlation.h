// Spearman's rank correlation.
#pragma once

#include <span>

namespace kvsim {

/// Spearman's rank correlation of two lists of equal length, ties averaged, in [-1, 1]. NaN where it is
/// undefined: fewer than two values, or no two different ones in one of the lists. Values must not be NaN.
double rank_correlation(std::span<const float> a, std::span<const float> b);
double rank_correlation(std::span<const double> a, std::span<const double> b);

}  // namespace kvsim
