// Gradient-boosted regression trees on histograms: small, deterministic to the last bit, no library.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/view.h"
#include "policies/paging/random_source.h"

namespace kvsim {

/// LRB's settings (Song et al., NSDI 2020) are the defaults; trees grow level by level to `depth`.
struct BoostingOptions {
  std::uint32_t trees = 32;
  std::uint32_t depth = 5;  // up to 2^depth leaves
  double learning_rate = 0.1;
  double feature_fraction = 0.8, row_fraction = 0.8;  // drawn anew for every tree
  std::uint32_t least_rows = 20;                      // in a leaf
  bool logistic = false;  // targets 0/1 and predictions as probabilities; else squared error
};

/// Friedman, 2001, with second-order leaves. Features may be infinite or NaN (absent): NaN sorts as the
/// largest value.
class BoostedTrees {
 public:
  /// features [rows, n], targets [rows]; rows > 0. O(trees * depth * rows * n).
  static BoostedTrees fit(MatrixView<const float> features, std::span<const float> targets,
                          const BoostingOptions& options, RandomSource& random);
  double predict(std::span<const float> features) const;
  std::size_t trees() const { return roots_.size(); }

 private:
  struct Node {
    std::uint32_t feature = 0;
    float threshold = 0;     // left when the value is <= it
    std::uint32_t left = 0;  // right = left + 1; 0 = a leaf
    double value = 0;
  };
  class Fitter;

  double base_ = 0;
  bool logistic_ = false;
  std::vector<Node> nodes_;
  std::vector<std::uint32_t> roots_;
};

}  // namespace kvsim
