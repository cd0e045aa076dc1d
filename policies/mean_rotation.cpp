// The average rotation of coming positions, which turns statistics of queries before the rotary embedding
// into an expectation of future queries.
#include "policies/mean_rotation.h"

#include <algorithm>
#include <cmath>

namespace kvsim {

MeanRotation::MeanRotation(const Rope& rope, std::size_t first, std::size_t count) {
  if (rope.layout == Rope::Layout::none) return;
  const std::size_t pairs = rope.inverse_frequency.size();
  const bool half = rope.layout == Rope::Layout::half;
  for (std::size_t i = 0; i < pairs; ++i) {
    a.push_back(half ? i : 2 * i);
    b.push_back(half ? i + pairs : 2 * i + 1);
    double cosines = 0, sines = 0;
    for (std::size_t p = first; p < first + count; ++p) {
      const double angle = static_cast<double>(p) * static_cast<double>(rope.inverse_frequency[i]);
      cosines += std::cos(angle);
      sines += std::sin(angle);
    }
    cosine.push_back(cosines / static_cast<double>(count) * rope.attention_scaling);
    sine.push_back(sines / static_cast<double>(count) * rope.attention_scaling);
  }
}

void MeanRotation::apply(double* x, std::size_t stride) const {
  for (std::size_t i = 0; i < a.size(); ++i) {
    double& left = x[a[i] * stride];
    double& right = x[b[i] * stride];
    const double turned = cosine[i] * left - sine[i] * right;
    right = sine[i] * left + cosine[i] * right;
    left = turned;
  }
}

Matrix<float> keys_before_rotation(const HeadFeatures& head, std::size_t first, std::size_t count) {
  const MatrixView<const float> keys = head.keys().rows_from(first, count);
  const Rope rope = head.rope();
  Matrix<float> out(count, keys.cols);
  for (std::size_t t = 0; t < count; ++t) std::copy_n(keys.row(t), keys.cols, out.row(t));
  if (rope.layout == Rope::Layout::none) return out;
  const std::size_t pairs = rope.inverse_frequency.size();
  const bool half = rope.layout == Rope::Layout::half;
  for (std::size_t t = 0; t < count; ++t) {
    for (std::size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(first + t) * static_cast<double>(rope.inverse_frequency[i]);
      const double cosine = std::cos(angle) / rope.attention_scaling,
                   sine = std::sin(angle) / rope.attention_scaling;
      float& left = out(t, half ? i : 2 * i);
      float& right = out(t, half ? i + pairs : 2 * i + 1);
      const auto x = static_cast<double>(left), y = static_cast<double>(right);
      left = static_cast<float>(x * cosine + y * sine);
      right = static_cast<float>(y * cosine - x * sine);
    }
  }
  return out;
}

}  // namespace kvsim
