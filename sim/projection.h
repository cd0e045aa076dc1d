// Errors after the output projection: all heads of a layer together.
#pragma once

#include <span>
#include <vector>

#include "sim/evaluate.h"

namespace kvsim {

/// Sums W_h (o'_h - o_h) over the query heads of a layer for one variant: [budget][hidden][steps].
class ProjectedError {
 public:
  ProjectedError() = default;
  ProjectedError(std::size_t budgets, std::size_t hidden, std::size_t steps);

  /// Adds one KV head's error vectors; budget i of `delta` is budget budgets[i] here. `output_proj` [group * value_dim,
  /// hidden].
  void add(const HeadDelta& delta, std::span<const std::size_t> budgets, MatrixView<const float> output_proj, std::size_t group,
           std::size_t value_dim, StepRange steps);
  /// Squared norms [steps] of one budget, summed over hidden in order.
  std::vector<double> squared_norms(std::size_t budget) const;

  /// Adds the sums of the only budget to `to` [hidden, steps].
  void add_to(Matrix<float>& to) const;

  static std::size_t bytes_needed(std::size_t budgets, std::size_t hidden, std::size_t steps) {
    return budgets * hidden * round_up(steps, kRowPad) * sizeof(float);
  }

 private:
  std::size_t hidden_ = 0, steps_ = 0;
  Matrix<float> sum_;  // [budgets * hidden, steps]
};

/// Numbers that stand for a projected error vector where only its norm is asked for.
inline constexpr std::size_t kSketch = 64;

/// Output projection [group * value_dim, hidden] times the same random signs / sqrt(kSketch) for all heads and layers: norms of sums of
/// projected errors come out right on average, single ones within sqrt(2 / kSketch) / 2 = 9 % (Achlioptas 2003, "Database-friendly
/// random projections"), at kSketch / hidden of the work. A copy where hidden is no larger than kSketch.
Matrix<float> sketch_of(MatrixView<const float> output_proj);

/// Fills in the norms of projected errors from their squares [steps], and what they are of `residual` [steps].
void set_norms(LayerEffect& effect, std::span<const double> squares, std::span<const float> residual);

}  // namespace kvsim
