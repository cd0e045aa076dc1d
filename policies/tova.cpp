// TOVA: the last prompt query decides for the whole layer.
//
// Oren et al., "Transformers are multi-state RNNs", arXiv:2401.06104, once at the end of the prompt:
// attention of the last query, mean over all query heads of the layer, one set for all its KV heads. As in
// kvpress (TOVAPress) the newest token is always kept, which the authors' code does not promise.
#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "tova",
    .summary = "attention of the last prompt query, one set per layer",
    .reference = "arXiv:2401.06104; kvpress TOVAPress",
    .accounting = "budget tokens per KV head, the same for all of a layer; the newest token counts and stays",
    .windowed = true};

struct Tova final : RecipePolicy {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Recipe recipe() const override {
    Recipe recipe;
    recipe.query = {{.kind = QueryPart::Kind::current, .count = 1}};
    recipe.base = Base::attention;
    recipe.reduce = {fold_step(Fold::mean), group_step(Group::mean)};
    recipe.recent = 1;
    recipe.unit = Unit::layer;
    return recipe;
  }
};

const RegisterPolicy<Tova> registered{kTraits};

}  // namespace
}  // namespace kvsim
