// Key norm: tokens whose keys are short draw the most attention, so the smallest norms are kept.
//
// Devoto et al., "A simple and effective L2 norm-based strategy for KV cache compression", arXiv:2406.11430,
// as in kvpress (KnormPress): all layers, no sinks, no window; the authors leave the first two layers
// uncompressed.
#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "knorm",
                               .summary = "smallest key norms",
                               .reference = "arXiv:2406.11430; kvpress KnormPress",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct Knorm final : RecipePolicy {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Recipe recipe() const override {
    Recipe recipe;
    recipe.base = Base::knorm;
    return recipe;
  }
};

const RegisterPolicy<Knorm> registered{kTraits};

}  // namespace
}  // namespace kvsim
