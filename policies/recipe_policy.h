// A named policy that is nothing but parts: a score made by a recipe, the same budget for every unit.
#pragma once

#include <string>

#include "policies/lookahead.h"
#include "policies/reads_means.h"
#include "policies/recipe.h"

namespace kvsim {

/// What a preset of parts does; the policy itself gives traits, parameters and the recipe that they stand
/// for.
class RecipePolicy : public Policy, public ReadsLookahead, public ReadsMeans {
 public:
  virtual Recipe recipe() const = 0;

  void prepare(Resources&) override { recipe().check_parts(traits().name); }
  void check(const LayerGeometry& layer) const override { recipe().check(traits().name, layer); }
  Need needs() const override { return recipe().needs(); }
  std::uint32_t window() const override { return recipe().window(); }
  Unit unit() const override { return recipe().unit; }
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    recipe().score(head, traits().name, out);
  }
  void join(const LayerGeometry& layer, LayerScores& scores) const override;
  void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
               std::span<const std::uint32_t> kept, std::span<std::vector<TokenIndex>> order) const override;
  bool means_alone() const override { return !recipe().reads_rows(); }
  std::string pass_at(const LayerGeometry& layer, std::uint32_t budget) const override;
  LayerRanking ranking_at(const LayerGeometry& layer, const LayerRanking& ranking,
                          std::uint32_t budget) const override;
};

/// One order for all units where the layer owns the set, then protected tokens first, for the scores of every
/// pass.
void join_recipe(const Recipe& recipe, LayerScores& scores);
/// The pass whose scores a budget takes; empty without pseudo queries.
std::string recipe_pass(const Recipe& recipe, const LayerGeometry& layer, std::uint32_t budget);
/// The ranking that a budget takes.
LayerRanking recipe_ranking(const Policy& policy, const Recipe& recipe, const LayerGeometry& layer,
                            const LayerRanking& ranking, std::uint32_t budget);

}  // namespace kvsim
