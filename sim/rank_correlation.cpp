// Spearman's rank correlation.
#include "sim/rank_correlation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/error.h"
#include "kernels/order.h"

namespace kvsim {
namespace {

void order_descending(std::span<const float> values, std::span<TokenIndex> order) { sort_descending(values, order); }

void order_descending(std::span<const double> values, std::span<TokenIndex> order) {
  std::iota(order.begin(), order.end(), TokenIndex{0});
  std::sort(order.begin(), order.end(), [&](TokenIndex a, TokenIndex b) { return values[a] > values[b]; });
}

/// Ranks 1 .. n from the largest value on, equal values sharing their mean rank.
template <typename T>
std::vector<double> mean_ranks(std::span<const T> values) {
  std::vector<TokenIndex> order(values.size());
  order_descending(values, order);
  std::vector<double> ranks(values.size());
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = 0.5 * static_cast<double>(begin + 1 + end);
    begin = end;
  }
  return ranks;
}

template <typename T>
double correlation(std::span<const T> a, std::span<const T> b) {
  KVSIM_CHECK(a.size() == b.size(), "rank correlation of {} and {} values", a.size(), b.size());
  const std::vector<double> rank_a = mean_ranks(a), rank_b = mean_ranks(b);
  const double mean = 0.5 * static_cast<double>(a.size() + 1);
  double both = 0, square_a = 0, square_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    both += (rank_a[i] - mean) * (rank_b[i] - mean);
    square_a += (rank_a[i] - mean) * (rank_a[i] - mean);
    square_b += (rank_b[i] - mean) * (rank_b[i] - mean);
  }
  if (!(square_a > 0) || !(square_b > 0)) return std::numeric_limits<double>::quiet_NaN();
  return both / std::sqrt(square_a * square_b);
}

}  // namespace

double rank_correlation(std::span<const float> a, std::span<const float> b) { return correlation(a, b); }
double rank_correlation(std::span<const double> a, std::span<const double> b) { return correlation(a, b); }

}  // namespace kvsim
