// First-order changes of sampled log-likelihoods by the errors of a layer.
#pragma once

#include <span>
#include <vector>

#include "kernels/view.h"
#include "sim/exact_steps.h"
#include "sim/results.h"

namespace kvsim {

/// Adds to `sums` [samples * stride of a sample] sum over query heads and components of g.delta: sums[r * sample_stride +
/// step] for the `steps` columns. `sensitivity` [samples * value_dim, group * all_steps] (HeadBlock::sensitivity) of which
/// the steps from `first` on are read; `delta` [value_dim, >= group * steps] holds row h * steps + t. Sums over components are in
/// float, those over query heads in double. `sums` is at the first of these steps.
void add_sampled_response(MatrixView<const float> sensitivity, MatrixView<const float> delta, std::size_t group,
                          std::size_t all_steps, StepRange steps, std::size_t sample_stride, std::span<double> sums);

/// Responses of one variant at all budgets: per budget [samples * steps].
class SampledResponse {
 public:
  SampledResponse() = default;
  SampledResponse(std::size_t budgets, std::size_t samples, std::size_t steps)
      : samples_(samples), steps_(steps), sums_(budgets, std::vector<double>(samples * steps, 0.0)) {}

  /// Adds one KV head's errors at budget `budget` over a range of steps, see add_sampled_response.
  void add(std::size_t budget, MatrixView<const float> delta, MatrixView<const float> sensitivity, std::size_t group, StepRange steps) {
    add_sampled_response(sensitivity, delta, group, steps_, steps, steps_, std::span(sums_[budget]).subspan(steps.first));
  }
  std::vector<double> take(std::size_t budget) { return std::move(sums_[budget]); }

  static std::size_t bytes_needed(std::size_t budgets, std::size_t samples, std::size_t steps) {
    return budgets * samples * steps * sizeof(double);
  }

 private:
  std::size_t samples_ = 0, steps_ = 0;
  std::vector<std::vector<double>> sums_;
};

/// An effect of this layer that holds a variant's responses [samples * steps], which may be empty.
LayerEffect start_effect(const LayerGeometry& g, std::uint32_t variant, std::uint32_t budget, std::span<const double> response);

}  // namespace kvsim
