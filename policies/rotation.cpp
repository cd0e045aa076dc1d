// Turning keys to other positions of the rotary embedding.
#include "policies/rotation.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/error.h"

namespace kvsim {

void turn(std::span<double> vector, const Rope& rope, double delta) {
  if (rope.layout == Rope::Layout::none) return;
  const std::size_t half = rope.inverse_frequency.size();
  KVSIM_CHECK(2 * half <= vector.size(), "{} rotary channels of {}", 2 * half, vector.size());
  for (std::size_t i = 0; i < half; ++i) {
    const std::size_t a = rope.layout == Rope::Layout::half ? i : 2 * i;
    const std::size_t b = rope.layout == Rope::Layout::half ? i + half : 2 * i + 1;
    const double angle = static_cast<double>(static_cast<float>(delta) * rope.inverse_frequency[i]);
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double first = vector[a] * cosine - vector[b] * sine;
    vector[b] = vector[b] * cosine + vector[a] * sine;
    vector[a] = first;
  }
}

Matrix<float> moved_together(MatrixView<const float> keys, std::span<const TokenIndex> kept, const Rope& rope, std::size_t first) {
  KVSIM_CHECK(keys.rows == kept.size(), "{} keys of {} kept tokens", keys.rows, kept.size());
  Matrix<float> out(kept.size(), keys.cols);
  std::vector<double> key(keys.cols);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    std::copy_n(keys.row(i), keys.cols, key.begin());
    if (kept[i] != first + i) turn(key, rope, static_cast<double>(first + i) - static_cast<double>(kept[i]));
    std::transform(key.begin(), key.end(), out.row(i), [](double x) { return static_cast<float>(x); });
  }
  return out;
}

Matrix<float> gathered(MatrixView<const float> rows, std::span<const TokenIndex> kept) {
  Matrix<float> out(kept.size(), rows.cols);
  for (std::size_t i = 0; i < kept.size(); ++i) std::copy_n(rows.row(kept[i]), rows.cols, out.row(i));
  return out;
}

}  // namespace kvsim
