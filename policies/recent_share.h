// Orders in which a share of every budget goes to the newest tokens: the recent half of H2O and its
// relatives.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// One order over all tokens for each budget: `sinks` first tokens, then the floor(share * budget) newest
/// tokens, then the others by score. share in [0, 1].
std::vector<std::vector<TokenIndex>> orders_with_recent_share(std::span<const float> score,
                                                              std::uint32_t sinks, double share,
                                                              std::span<const std::uint32_t> budgets);

}  // namespace kvsim
