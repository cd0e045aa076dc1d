// A named policy that is nothing but parts.
#include "policies/recipe_policy.h"

namespace kvsim {

void join_recipe(const Recipe& recipe, LayerScores& scores) {
  const auto join = [&](LayerScores& one) {
    if (recipe.unit == Unit::layer) share_over_layer(one);
    lift_protected(one);
  };
  if (recipe.by_budget())
    join_passes(scores, join);
  else
    join(scores);
}

std::string recipe_pass(const Recipe& recipe, const LayerGeometry& layer, std::uint32_t budget) {
  const QueryPart* pseudo = lookahead_part(recipe.query);
  return pseudo == nullptr ? std::string() : pseudo->pass.at(layer, budget).name;
}

LayerRanking recipe_ranking(const Policy& policy, const Recipe& recipe, const LayerGeometry& layer,
                            const LayerRanking& ranking, std::uint32_t budget) {
  const std::size_t pass =
      recipe.by_budget() ? pass_index(lookahead_part(recipe.query)->pass, layer, budget) : 0;
  return ranking_of_pass(policy, layer, ranking, pass);
}

void RecipePolicy::join(const LayerGeometry&, LayerScores& scores) const { join_recipe(recipe(), scores); }

void RecipePolicy::reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
                           std::span<const std::uint32_t>, std::span<std::vector<TokenIndex>> order) const {
  const LayerRanking taken = ranking_at(layer, ranking, budget.tokens);
  std::copy(taken.order.begin(), taken.order.end(), order.begin());
}

LayerRanking RecipePolicy::ranking_at(const LayerGeometry& layer, const LayerRanking& ranking,
                                      std::uint32_t budget) const {
  return recipe_ranking(*this, recipe(), layer, ranking, budget);
}

std::string RecipePolicy::pass_at(const LayerGeometry& layer, std::uint32_t budget) const {
  return recipe_pass(recipe(), layer, budget);
}

}  // namespace kvsim
