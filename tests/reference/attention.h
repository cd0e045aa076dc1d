// Plain double-precision definitions of the replay kernels: naive loops that everything faster is compared
// with.
//
// Rows are queries; matrices here are vectors of rows. Nothing in this file shares code with kernels/.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/replay.h"
#include "kernels/view.h"

namespace kvsim::reference {

using Row = std::vector<double>;

inline bool sees(TokenIndex position, std::uint32_t window, std::size_t token) {
  return token <= position && (window == 0 || token + window > position);
}

inline double logit(MatrixView<const float> keys, const float* query, const LogitRule& rule,
                    std::size_t token) {
  double dot = 0.0;
  for (std::size_t c = 0; c < keys.cols; ++c) {
    dot += static_cast<double>(query[c]) * static_cast<double>(keys(token, c));
  }
  const double scaled = rule.scale * dot;
  return rule.softcap > 0.0 ? rule.softcap * std::tanh(scaled / rule.softcap) : scaled;
}

/// Softmax of one query over the tokens that `take(token)` names and that it sees; 0 elsewhere; all 0 when
/// there is none.
template <typename Take>
Row softmax(MatrixView<const float> keys, const float* query, TokenIndex position, const LogitRule& rule,
            Take take) {
  Row weights(keys.rows, 0.0);
  double largest = -INFINITY;
  std::vector<std::size_t> held;
  for (std::size_t j = 0; j < keys.rows; ++j) {
    if (!sees(position, rule.window, j) || !take(j)) continue;
    held.push_back(j);
    weights[j] = logit(keys, query, rule, j);
    largest = std::max(largest, weights[j]);
  }
  double total = 0.0;
  for (const std::size_t j : held) total += weights[j] = std::exp(weights[j] - largest);
  for (const std::size_t j : held) weights[j] /= total;
  return weights;
}

/// Exact attention of one query.
inline Row attention(MatrixView<const float> keys, const float* query, TokenIndex position,
                     const LogitRule& rule) {
  return softmax(keys, query, position, rule, [](std::size_t) { return true; });
}

/// Attention over a kept set alone.
inline Row kept_attention(MatrixView<const float> keys, const float* query, TokenIndex position,
                          const LogitRule& rule, const std::vector<TokenIndex>& kept) {
  std::vector<bool> in(keys.rows, false);
  for (const TokenIndex j : kept) in[j] = true;
  return softmax(keys, query, position, rule, [&](std::size_t j) { return in[j]; });
}

inline Row output(const Row& weights, MatrixView<const float> values) {
  Row out(values.cols, 0.0);
  for (std::size_t j = 0; j < weights.size(); ++j) {
    for (std::size_t c = 0; c < values.cols; ++c) out[c] += weights[j] * static_cast<double>(values(j, c));
  }
  return out;
}

inline double norm(const Row& x) {
  double squares = 0.0;
  for (const double value : x) squares += value * value;
  return std::sqrt(squares);
}

/// |a - b| / |b|, or |a| where b is 0.
inline double relative_error(const Row& a, const Row& b) {
  Row difference(b.size());
  for (std::size_t c = 0; c < b.size(); ++c) difference[c] = a[c] - b[c];
  const double length = norm(b);
  return length > 0.0 ? norm(difference) / length : norm(difference);
}

/// Tokens first .. last-1 by falling weight, ties to the earlier position.
template <typename Weights>
std::vector<TokenIndex> by_weight(const Weights& weights, std::size_t first, std::size_t last) {
  std::vector<TokenIndex> order(last - first);
  std::iota(order.begin(), order.end(), static_cast<TokenIndex>(first));
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenIndex a, TokenIndex b) { return weights[a] > weights[b]; });
  return order;
}

/// Place of every prompt token among those that the query sees; `hidden` where it does not see it.
template <typename Weights>
std::vector<std::uint32_t> prompt_ranks(const Weights& weights, std::size_t prompt, TokenIndex position,
                                        std::uint32_t window, std::uint32_t hidden) {
  std::vector<std::uint32_t> ranks(prompt, hidden);
  std::uint32_t next = 0;
  for (const TokenIndex j : by_weight(weights, 0, prompt)) {
    if (sees(position, window, j)) ranks[j] = next++;
  }
  return ranks;
}

/// N(c): the fewest visible tokens, largest first, that hold the fraction c of the attention.
template <typename Weights>
std::vector<TokenIndex> needed_set(const Weights& weights, TokenIndex position, std::uint32_t window,
                                   double c) {
  std::vector<TokenIndex> visible;
  double total = 0.0;
  for (const TokenIndex j : by_weight(weights, 0, weights.size())) {
    if (sees(position, window, j)) visible.push_back(j);
  }
  std::vector<TokenIndex> in_place = visible;
  std::sort(in_place.begin(), in_place.end());
  for (const TokenIndex j : in_place) total += static_cast<double>(weights[j]);
  std::vector<TokenIndex> needed;
  double mass = 0.0;
  for (const TokenIndex j : visible) {
    mass += static_cast<double>(weights[j]);
    needed.push_back(j);
    if (mass >= c * total) break;
  }
  return needed;
}

/// |order[0 .. count) with rank < limit|.
inline std::uint32_t overlap(const std::vector<std::uint32_t>& ranks, const std::vector<TokenIndex>& order,
                             std::size_t count, std::uint32_t limit) {
  std::uint32_t both = 0;
  for (std::size_t i = 0; i < count; ++i) both += ranks[order[i]] < limit ? 1 : 0;
  return both;
}

}  // namespace kvsim::reference
