// H2O in its one-shot form: the attention that a token gathered over the whole causal prompt.
//
// Zhang et al., "H2O: heavy-hitter oracle", arXiv:2306.14048, as applied once at the end of the prompt: the
// plain sum over all queries, so that early tokens, which more queries see, are favoured as in the authors'
// code. The authors also keep a recent window (recent=) and a set per query head (unit=query);
// observed_attention divides by the number of queries.
#include <limits>

#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "h2o",
    .summary = "attention summed over the whole causal prompt (heavy hitters)",
    .reference = "arXiv:2306.14048; one-shot form of the authors' accumulated attention",
    .accounting = "the recent tokens, none by default, count towards the budget"};

struct H2o final : Policy {
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
  Need needs() const override { return Need::prompt_attention; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    Recipe recipe;
    recipe.query = QuerySource::all;
    recipe.base = Base::attention;
    recipe.reduce = {{.kind = Reducer::Kind::sum},
                     {.kind = Reducer::Kind::group, .group = static_cast<Group>(group_)}};
    recipe.recent = recent_;
    recipe.unit = unit();
    recipe.score(head, kTraits.name, out);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }
};

const RegisterPolicy<H2o> registered{kTraits};

}  // namespace
}  // namespace kvsim
