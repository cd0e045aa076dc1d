// What the errors of all layers together do to the model's output: metrics of a whole trace.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sim/results.h"

namespace kvsim {

/// What the chosen metrics of a trace are computed from.
bool needs_responses(std::span<const std::string> metrics);
bool needs_norms(std::span<const std::string> metrics);

/// Adds up the layers of one (trace, variant, budget). Layers come in ascending order, so that sums have one order.
class EffectSum {
 public:
  /// An effect with nothing in it stands for a layer that says nothing. Throws UserError where layers differ in samples or steps.
  void add(const LayerEffect& layer);
  /// Values of a metric of Level::trace at every step (formulas: all_metrics()); empty where one of the layers lacks what it
  /// is computed from.
  std::vector<double> steps(std::string_view metric) const;

 private:
  template <typename F>
  std::vector<double> mean_over_samples(const F& f) const;

  bool predicts_ = false;  // some layer is deep enough to count
  std::size_t layers_ = 0, with_response_ = 0, with_norms_ = 0, samples_ = 0;
  std::vector<double> response_;   // [samples * steps] sum over layers of g.delta
  std::vector<double> layers_kl_;  // [steps] sum over layers of the mean over samples of (g.delta)^2 / 2
  std::vector<double> projected_, relative_, predicted_;  // [steps] sums over layers
};

}  // namespace kvsim
