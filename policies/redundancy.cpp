// How much a token repeats others: the cosine redundancy of R-KV.
#include "policies/redundancy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "policies/value_weight.h"

namespace kvsim {
namespace {

/// Keys divided by their norms.
Matrix<double> directions(MatrixView<const float> keys) {
  constexpr double kSmallestNorm = 1e-8;
  const std::vector<double> norms = row_norms(keys, ValueNorm::l2);
  Matrix<double> out(keys.rows, keys.cols);
  for (std::size_t t = 0; t < keys.rows; ++t)
    for (std::size_t c = 0; c < keys.cols; ++c)
      out(t, c) = static_cast<double>(keys(t, c)) / std::max(norms[t], kSmallestNorm);
  return out;
}

double cosine(const Matrix<double>& unit, std::size_t a, std::size_t b) {
  double dot = 0;
  for (std::size_t c = 0; c < unit.cols(); ++c) dot += unit(a, c) * unit(b, c);
  return dot;
}

}  // namespace

std::vector<double> key_redundancy(MatrixView<const float> keys, double threshold) {
  const Matrix<double> unit = directions(keys);
  const std::size_t tokens = unit.rows();
  std::vector<double> sum(unit.cols(), 0.0), column(tokens);
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t c = 0; c < unit.cols(); ++c) sum[c] += unit(t, c);
  for (std::size_t t = 0; t < tokens; ++t) {  // all cosines of a column but that with itself
    for (std::size_t c = 0; c < unit.cols(); ++c) column[t] += unit(t, c) * sum[c];
    column[t] -= cosine(unit, t, t);
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    std::size_t spared = tokens - 1;
    while (spared > 0 && (spared == t || cosine(unit, t, spared) <= threshold)) --spared;
    if (spared != t) column[spared] -= cosine(unit, t, spared);
  }
  for (double& x : column) x /= static_cast<double>(tokens);
  const double largest = *std::max_element(column.begin(), column.end());
  double total = 0;
  for (double& x : column) total += x = std::exp(x - largest);
  for (double& x : column) x /= total;
  return column;
}

std::span<const float> key_redundancy(const HeadFeatures& head, double threshold) {
  return head.shared(fmt::format("redundancy:{}", threshold), [&] {
    const std::vector<double> exact = key_redundancy(head.keys(), threshold);
    return std::vector<float>(exact.begin(), exact.end());
  });
}

void mix_redundancy(const RedundancyPart& part, const HeadFeatures& head,
                    std::vector<std::vector<double>>& rows) {
  const std::span<const float> redundancy = key_redundancy(head, part.threshold);
  for (std::vector<double>& row : rows)
    for (std::size_t t = 0; t < row.size(); ++t)
      row[t] = part.lambda * row[t] - (1 - part.lambda) * static_cast<double>(redundancy[t]);
}

}  // namespace kvsim
