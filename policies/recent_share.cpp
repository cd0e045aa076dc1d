// Orders in which a share of every budget goes to the newest tokens: the recent half of H2O and its
// relatives.
#include "policies/recent_share.h"

#include <algorithm>

#include "kernels/order.h"
#include "policies/recipe.h"

namespace kvsim {

std::vector<std::vector<TokenIndex>> orders_with_recent_share(std::span<const float> score,
                                                              std::uint32_t sinks, double share,
                                                              std::span<const std::uint32_t> budgets) {
  const std::size_t tokens = score.size();
  std::vector<TokenIndex> sorted(tokens);
  sort_descending(score, sorted);
  std::vector<std::vector<TokenIndex>> orders;
  for (const std::uint32_t budget : budgets) {
    const auto recent =
        static_cast<std::uint32_t>(share * std::min<double>(budget, static_cast<double>(tokens)));
    std::vector<TokenIndex> order = protected_order(tokens, sinks, recent);
    std::vector<bool> taken(tokens, false);
    for (const TokenIndex t : order) taken[t] = true;
    for (const TokenIndex t : sorted)
      if (!taken[t]) order.push_back(t);
    orders.push_back(std::move(order));
  }
  return orders;
}

}  // namespace kvsim
