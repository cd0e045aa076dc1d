// Metrics of a kept set as a whole: one figure per KV head and budget, all budgets in one walk over the
// ranking.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/view.h"
#include "sim/selection.h"

namespace kvsim {

/// The true decode queries' mean attention over the prompt, and the order in which it ranks the tokens.
struct OracleOrder {
  std::vector<float> mean;           // [T]
  std::vector<TokenIndex> order;     // [T]
  std::vector<std::uint32_t> place;  // [T], of each token in the order
  std::vector<double> mass;          // [T + 1]: of the first i tokens of the order

  explicit OracleOrder(std::vector<float> mean_attention);
};

/// Values per budget; NaN where undefined.
struct SetMetrics {
  std::vector<double> consistency, jaccard, mass_ratio, free_consistency, free_corrected, window_consistency,
      evidence;

  explicit SetMetrics(std::size_t budgets);
  /// Adds the other's values (NaN stays NaN) and divides by n: the mean over the units of a KV head.
  void add(const SetMetrics& other);
  void divide(double n);
  /// Takes over the other's values: its budget i is budget budgets[i] here.
  void place(const SetMetrics& other, std::span<const std::size_t> budgets);
};

/// Where each token stands in an order of the tokens 0 .. T-1.
std::vector<std::uint32_t> places_in(std::span<const TokenIndex> order);

/// overlap[i] = |first counts[i] of a  intersect  first counts[i] of b| for two orders of the same tokens, of
/// b the places of its tokens: one histogram of the larger of the two places (metrics.md, "Budget curves in
/// one pass"). Counts ascend.
std::vector<std::uint64_t> overlaps(std::span<const TokenIndex> a, std::span<const std::uint32_t> place_in_b,
                                    std::span<const std::uint32_t> counts);

/// `hindsight` may be empty. `evidence` are token ranges inside the prompt.
SetMetrics set_metrics(const UnitSelection& unit, const OracleOrder& oracle,
                       std::span<const TokenIndex> hindsight,
                       std::span<const std::pair<std::uint32_t, std::uint32_t>> evidence);

}  // namespace kvsim
