// Errors after the output projection.
#include "sim/projection.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/error.h"
#include "kernels/philox.h"

namespace kvsim {

ProjectedError::ProjectedError(std::size_t budgets, std::size_t hidden, std::size_t steps)
    : hidden_(hidden), steps_(steps), sum_(budgets * hidden, steps, kRowPad) {}

void ProjectedError::add(const HeadDelta& delta, std::span<const std::size_t> budgets, MatrixView<const float> output_proj,
                         std::size_t group, std::size_t value_dim, StepRange steps) {
  Matrix<float> error(value_dim, steps.count, kRowPad);
  Matrix<float> product(hidden_, steps.count, kRowPad);
  for (std::size_t b = 0; b < budgets.size(); ++b) {
    for (std::size_t h = 0; h < group; ++h) {
      for (std::size_t c = 0; c < value_dim; ++c) {
        const float* from = delta.data.data() + b * delta.budget_stride + c * delta.stride + h * steps.count;
        std::copy_n(from, steps.count, error.row(c));
      }
      std::fill_n(product.data(), product.rows() * product.stride(), 0.0f);
      accumulate_product(error.view(), output_proj.rows_from(h * value_dim, value_dim), product.view());
      for (std::size_t m = 0; m < hidden_; ++m) {
        float* to = sum_.row(budgets[b] * hidden_ + m) + steps.first;
        for (std::size_t t = 0; t < steps.count; ++t) to[t] += product(m, t);
      }
    }
  }
}

std::vector<double> ProjectedError::squared_norms(std::size_t budget) const {
  std::vector<double> norms(steps_, 0.0);
  for (std::size_t m = 0; m < hidden_; ++m) {
    const float* row = sum_.row(budget * hidden_ + m);
    for (std::size_t t = 0; t < steps_; ++t) norms[t] += static_cast<double>(row[t]) * static_cast<double>(row[t]);
  }
  return norms;
}

void ProjectedError::add_to(Matrix<float>& to) const {
  for (std::size_t m = 0; m < hidden_; ++m)
    for (std::size_t t = 0; t < steps_; ++t) to(m, t) += sum_(m, t);
}

Matrix<float> sketch_of(MatrixView<const float> output_proj) {
  const std::size_t hidden = output_proj.cols, size = std::min(hidden, kSketch);
  Matrix<float> sketch(output_proj.rows, size);
  if (hidden <= kSketch) {
    for (std::size_t i = 0; i < sketch.rows(); ++i) std::copy_n(output_proj.row(i), hidden, sketch.row(i));
    return sketch;
  }
  constexpr std::uint64_t kSeed = 0x5e7c4;
  std::vector<double> signs(hidden * kSketch);
  Philox random(kSeed, 0);
  for (std::size_t i = 0; i < signs.size(); i += 32) {
    const std::uint32_t bits = random.next_u32();
    for (std::size_t b = 0; b < 32; ++b) signs[i + b] = (bits >> b & 1u) != 0 ? 1.0 : -1.0;
  }
  const double scale = 1 / std::sqrt(static_cast<double>(kSketch));
  std::array<double, kSketch> sums{};
  for (std::size_t i = 0; i < sketch.rows(); ++i) {
    sums.fill(0.0);
    for (std::size_t m = 0; m < hidden; ++m)
      for (std::size_t k = 0; k < kSketch; ++k) sums[k] += static_cast<double>(output_proj(i, m)) * signs[m * kSketch + k];
    for (std::size_t k = 0; k < kSketch; ++k) sketch(i, k) = static_cast<float>(scale * sums[k]);
  }
  return sketch;
}

void set_norms(LayerEffect& effect, std::span<const double> squares, std::span<const float> residual) {
  KVSIM_CHECK(squares.size() == residual.size(), "{} errors for {} norms", squares.size(), residual.size());
  for (std::size_t t = 0; t < squares.size(); ++t) {
    const double norm = std::sqrt(squares[t]);
    effect.projected.push_back(static_cast<float>(norm));
    effect.relative.push_back(static_cast<float>(norm / static_cast<double>(residual[t])));
  }
}

}  // namespace kvsim
