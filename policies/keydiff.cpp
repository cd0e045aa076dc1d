// KeyDiff: keys that differ most from the mean direction of all keys.
//
// Park et al., arXiv:2504.15364, in kvpress's one-shot form (KeyDiffPress): score = -cos(key, mean of the
// normalised keys), over the whole prompt. The paper applies it block by block while the prompt is read.
#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "keydiff",
                               .summary = "keys that differ most from the mean key direction",
                               .reference = "arXiv:2504.15364; kvpress KeyDiffPress",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct KeyDiff final : RecipePolicy {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Recipe recipe() const override {
    Recipe recipe;
    recipe.base = Base::keydiff;
    return recipe;
  }
};

const RegisterPolicy<KeyDiff> registered{kTraits};

}  // namespace
}  // namespace kvsim
