// Observed attention: the mean attention that a token got from the prompt queries that could see it.
//
// kvpress ObservedAttentionPress (after H2O, arXiv:2306.14048): the column sum of the causal attention
// divided by T - t, mean over the group; no recent window and no sinks, so the newest tokens, seen by few
// queries, are judged by those few.
#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "observed_attention",
                               .summary = "mean attention over the prompt queries that see the token",
                               .reference = "kvpress ObservedAttentionPress, after arXiv:2306.14048",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct ObservedAttention final : RecipePolicy {
  std::size_t group_ = 0;
  std::size_t unit_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.choice("group", group_, kGroupChoices, "how the query heads of a KV head are joined");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
  }
  Recipe recipe() const override {
    Recipe recipe;
    recipe.query = {{.kind = QueryPart::Kind::all}};
    recipe.base = Base::attention;
    recipe.reduce = {fold_step(Fold::visible), group_step(static_cast<Group>(group_))};
    recipe.unit = unit_ == 0 ? Unit::kv : Unit::query;
    return recipe;
  }
};

const RegisterPolicy<ObservedAttention> registered{kTraits};

}  // namespace
}  // namespace kvsim
