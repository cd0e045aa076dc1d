// H2O in its one-shot form: the attention that a token gathered over the whole causal prompt.
//
// Zhang et al., "H2O: heavy-hitter oracle", arXiv:2306.14048, as applied once at the end of the prompt: the
// plain sum over all queries, so that early tokens, which more queries see, are favoured as in the authors'
// code. The authors also keep a recent window (recent=) and a set per query head (unit=query);
// observed_attention divides by the number of queries.
#include <limits>

#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "h2o",
    .summary = "attention summed over the whole causal prompt (heavy hitters)",
    .reference = "arXiv:2306.14048; one-shot form of the authors' accumulated attention",
    .accounting = "the recent tokens, none by default, count towards the budget"};

struct H2o final : RecipePolicy {
  std::uint32_t recent_ = 0;
  std::size_t group_ = 0;
  std::size_t unit_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("recent", recent_, 0, std::numeric_limits<std::uint32_t>::max(),
             "last prompt tokens that are always kept");
    f.choice("group", group_, kGroupChoices, "how the query heads of a KV head are joined");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
  }
  Recipe recipe() const override {
    Recipe recipe;
    recipe.query = {{.kind = QueryPart::Kind::all}};
    recipe.base = Base::attention;
    recipe.reduce = {fold_step(Fold::sum), group_step(static_cast<Group>(group_))};
    recipe.recent = recent_;
    recipe.unit = unit_ == 0 ? Unit::kv : Unit::query;
    return recipe;
  }
};

const RegisterPolicy<H2o> registered{kTraits};

}  // namespace
}  // namespace kvsim
