// The figure by which a policy that chooses its own size decided to stop.
#pragma once

#include <cstdint>
#include <span>

#include "policies/policy.h"

namespace kvsim {

/// Implemented beside Policy by those that have such a figure; it becomes the metric stop_signal.
class StopSignal {
 public:
  virtual ~StopSignal() = default;
  /// What the stopping test reads at the counts that allocate gave for this budget.
  virtual double stop_signal(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                             std::span<const std::uint32_t> kept) const = 0;
};

}  // namespace kvsim
