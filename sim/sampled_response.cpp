// First-order changes of sampled log-likelihoods by the errors of a layer.
#include "sim/sampled_response.h"

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {

void add_sampled_response(MatrixView<const float> sensitivity, MatrixView<const float> delta, std::size_t group,
                          std::size_t all_steps, StepRange steps, std::size_t sample_stride, std::span<double> sums) {
  const std::size_t value_dim = delta.rows, samples = sensitivity.rows / value_dim;
  KVSIM_CHECK(sensitivity.cols == group * all_steps, "sensitivities of {} rows for {}", sensitivity.cols, group * all_steps);
  std::vector<float> of_head(steps.count);
  for (std::size_t r = 0; r < samples; ++r) {
    double* const to = sums.data() + r * sample_stride;
    for (std::size_t h = 0; h < group; ++h) {
      std::fill(of_head.begin(), of_head.end(), 0.0f);
      for (std::size_t c = 0; c < value_dim; ++c) {
        const float* const g = sensitivity.row(r * value_dim + c) + h * all_steps + steps.first;
        const float* const d = delta.row(c) + h * steps.count;
        float* const sum = of_head.data();
        for (std::size_t t = 0; t < steps.count; ++t) sum[t] += g[t] * d[t];
      }
      for (std::size_t t = 0; t < steps.count; ++t) to[t] += static_cast<double>(of_head[t]);
    }
  }
}

LayerEffect start_effect(const LayerGeometry& g, std::uint32_t variant, std::uint32_t budget, std::span<const double> response) {
  LayerEffect effect;
  effect.variant = variant;
  effect.budget = budget;
  effect.samples = static_cast<std::uint32_t>(response.size() / g.decode);
  effect.depth = (static_cast<double>(g.layer) + 1) / static_cast<double>(g.model_layers);
  effect.response.assign(response.begin(), response.end());
  return effect;
}

}  // namespace kvsim
