// One joint ranking over all heads of all recorded layers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// The scores of a layer's units, each in its own order: protected tokens first, then falling. What Policy::summarise hands
/// to the other layers: four bytes a token and unit, held for all layers while a trace is replayed.
std::vector<float> pool_summary(const LayerRanking& ranking);

/// How many tokens each unit of the layer at `place` has among the `total` best of all units of all summaries, when every
/// unit keeps `floor` at least: protected tokens first (place by place over all units), then by score; ties go to the
/// earlier place in the unit's order, then to the earlier layer and unit. The counts of all layers sum to min(total, all
/// tokens) exactly.
std::vector<std::uint32_t> model_pool_counts(std::span<const std::vector<float>> summaries, std::size_t place, std::uint64_t total,
                                             std::uint32_t floor);

}  // namespace kvsim
