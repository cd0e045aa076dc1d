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

void order_descending(std::span<const double> values, std::span<TokenIndex> order) {
  std::iota(order.begin(), order.end(), TokenIndex{0});
  std::sort(order.begin(), order.end(), [&](TokenIndex a, TokenIndex b) { return values[a] > values[b]; });
}

/// Ranks 1 .. n along an order, largest value first, equal values sharing their mean rank; 0 for what is not
/// in it.
template <typename T>
std::vector<double> mean_ranks(std::span<const T> values, std::span<const TokenIndex> order) {
  std::vector<double> ranks(values.size(), 0.0);
  for (std::size_t begin = 0; begin < order.size();) {
    std::size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (std::size_t i = begin; i < end; ++i) ranks[order[i]] = 0.5 * static_cast<double>(begin + 1 + end);
    begin = end;
  }
  return ranks;
}

/// Of `count` ranks each; the others are 0.
double correlation(const std::vector<double>& rank_a, const std::vector<double>& rank_b, std::size_t count) {
  const double mean = 0.5 * static_cast<double>(count + 1);
  double both = 0, square_a = 0, square_b = 0;
  for (std::size_t i = 0; i < rank_a.size(); ++i) {
    if (rank_a[i] == 0) continue;
    both += (rank_a[i] - mean) * (rank_b[i] - mean);
    square_a += (rank_a[i] - mean) * (rank_a[i] - mean);
    square_b += (rank_b[i] - mean) * (rank_b[i] - mean);
  }
  if (!(square_a > 0) || !(square_b > 0)) return std::numeric_limits<double>::quiet_NaN();
  return both / std::sqrt(square_a * square_b);
}

template <typename T>
double sorted_correlation(std::span<const T> a, std::span<const T> b) {
  KVSIM_CHECK(a.size() == b.size(), "rank correlation of {} and {} values", a.size(), b.size());
  std::vector<TokenIndex> order_a(a.size()), order_b(b.size());
  order_descending(a, order_a);
  order_descending(b, order_b);
  return correlation(mean_ranks(a, order_a), mean_ranks(b, order_b), a.size());
}

}  // namespace

double rank_correlation(std::span<const double> a, std::span<const double> b) {
  return sorted_correlation(a, b);
}

double rank_correlation(const RankedValues& a, const RankedValues& b) {
  KVSIM_CHECK(a.value.size() == b.value.size() && a.order.size() == b.order.size(),
              "rank correlation of {} of {} and {} of {} values", a.order.size(), a.value.size(),
              b.order.size(), b.value.size());
  return correlation(mean_ranks(a.value, a.order), mean_ranks(b.value, b.order), a.order.size());
}

}  // namespace kvsim
