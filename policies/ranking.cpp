// Turns the scores of a layer into orders: protected tokens first, then by score, ties to the earlier
// position.
#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "kernels/order.h"
#include "policies/policy.h"

namespace kvsim {
namespace {

std::vector<TokenIndex> order_unit(const UnitScores& unit) {
  const std::size_t tokens = unit.score.size();
  std::vector<TokenIndex> sorted(tokens);
  sort_descending(unit.score, sorted);
  if (unit.protected_tokens.empty()) return sorted;
  std::vector<bool> first(tokens, false);
  std::vector<TokenIndex> order;
  order.reserve(tokens);
  for (const TokenIndex t : unit.protected_tokens) {
    KVSIM_CHECK(t < tokens && !first[t], "protected token {} of {} is out of range or named twice", t,
                tokens);
    first[t] = true;
    order.push_back(t);
  }
  std::copy_if(sorted.begin(), sorted.end(), std::back_inserter(order),
               [&](TokenIndex t) { return !first[t]; });
  return order;
}

void refuse_nan(const Policy& policy, const LayerGeometry& layer, const LayerScores& scores,
                std::size_t unit) {
  constexpr std::string_view kUnitNames[] = {"KV head", "query head", "layer unit"};
  const std::vector<float>& score = scores.units[unit].score;
  const auto bad = std::find_if(score.begin(), score.end(), [](float s) { return std::isnan(s); });
  if (bad == score.end()) return;
  throw UserError("{}: the score of token {} is not a number (layer {}, {} {})", policy.traits().name,
                  bad - score.begin(), layer.layer, kUnitNames[static_cast<std::size_t>(scores.unit)], unit);
}

}  // namespace

LayerRanking rank_layer(const Policy& policy, const LayerGeometry& layer, LayerScores scores) {
  LayerRanking ranking{std::move(scores), {}, {}};
  ranking.order.resize(ranking.scores.units.size());
  for (std::size_t u = 0; u < ranking.order.size(); ++u) {
    const UnitScores& unit = ranking.scores.units[u];
    KVSIM_CHECK(unit.score.size() == layer.prompt, "{} scored {} of {} prompt tokens", policy.traits().name,
                unit.score.size(), layer.prompt);
    if (ranking.scores.unit == Unit::layer && u > 0) {
      KVSIM_CHECK(unit.score == ranking.scores.units[0].score, "{} shares a kept set but not the scores",
                  policy.traits().name);
      ranking.order[u] = ranking.order[0];
      continue;
    }
    refuse_nan(policy, layer, ranking.scores, u);
    ranking.order[u] = order_unit(unit);
  }
  return ranking;
}

void Policy::allocate(const LayerGeometry& layer, const LayerRanking&, std::uint32_t budget,
                      std::span<std::uint32_t> kept) const {
  std::fill(kept.begin(), kept.end(),
            static_cast<std::uint32_t>(std::min<std::size_t>(budget, layer.prompt)));
}

void Policy::reorder(const LayerGeometry&, const LayerRanking& ranking, BudgetAt budget, std::span<const std::uint32_t>,
                     std::span<std::vector<TokenIndex>> order) const {
  for (std::size_t u = 0; u < order.size(); ++u) {
    const auto& orders = ranking.scores.units[u].orders;
    if (!orders.empty()) order[u] = orders.at(budget.index);
  }
}

Transformed Policy::transform(const HeadFeatures&, std::size_t, std::span<const TokenIndex>) const {
  throw InternalError(std::string(traits().name) + " transforms nothing");
}

std::vector<std::vector<TokenIndex>> order_at(const Policy& policy, const LayerGeometry& layer,
                                              const LayerRanking& ranking, BudgetAt budget,
                                              std::span<const std::uint32_t> kept) {
  std::vector<std::vector<TokenIndex>> order = ranking.order;
  if (policy.traits().order_by_budget) policy.reorder(layer, ranking, budget, kept, order);
  return order;
}

}  // namespace kvsim
