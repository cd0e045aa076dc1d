// Scores that read nothing but keys.
#include <algorithm>
#include <array>
#include <cmath>

#include "policies/recipe.h"

namespace kvsim {

std::vector<double> key_norm_scores(MatrixView<const float> keys) {
  std::vector<double> out = row_norms(keys, ValueNorm::l2);
  for (double& x : out) x = 0.0 - x;
  return out;
}

std::vector<double> key_difference_scores(MatrixView<const float> keys) {
  constexpr double kSmallestNorm = 1e-12;    // torch.nn.functional.normalize
  constexpr double kSmallestProduct = 1e-8;  // torch.nn.functional.cosine_similarity
  const std::vector<double> norms = row_norms(keys, ValueNorm::l2);
  std::vector<double> anchor(keys.cols, 0.0);
  for (std::size_t t = 0; t < keys.rows; ++t) {
    const double norm = std::max(norms[t], kSmallestNorm);
    for (std::size_t c = 0; c < keys.cols; ++c) anchor[c] += static_cast<double>(keys(t, c)) / norm;
  }
  double length = 0;
  for (double& x : anchor) {
    x /= static_cast<double>(keys.rows);
    length += x * x;
  }
  length = std::sqrt(length);
  std::vector<double> out(keys.rows);
  constexpr std::size_t kSideBySide = 8;  // rows: a sum along one waits for its last addition
  for (std::size_t begin = 0; begin < keys.rows; begin += kSideBySide) {
    const std::size_t count = std::min(kSideBySide, keys.rows - begin);
    std::array<double, kSideBySide> dot{};
    for (std::size_t c = 0; c < keys.cols; ++c)
      for (std::size_t i = 0; i < count; ++i) dot[i] += static_cast<double>(keys(begin + i, c)) * anchor[c];
    for (std::size_t i = 0; i < count; ++i)
      out[begin + i] = -dot[i] / std::max(norms[begin + i] * length, kSmallestProduct);
  }
  return out;
}

}  // namespace kvsim
