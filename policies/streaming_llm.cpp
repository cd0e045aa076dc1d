// StreamingLLM: the first tokens (attention sinks) and the most recent ones.
//
// Xiao et al., "Efficient streaming language models with attention sinks", arXiv:2309.17453; default sinks as
// in kvpress. Deviation: tokens keep their true positions, where the original re-assigns positions inside the
// cache; a budget below the number of sinks keeps the first of them, where kvpress ties.
#include <limits>

#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "streaming_llm",
    .summary = "attention sinks plus a sliding window",
    .reference = "arXiv:2309.17453; kvpress StreamingLLMPress",
    .accounting = "sinks count towards the budget; the rest of it goes to the newest tokens"};

struct StreamingLlm final : RecipePolicy {
  std::uint32_t sinks_ = 4;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(),
             "first tokens that are never evicted");
  }
  Recipe recipe() const override {
    Recipe recipe;  // base = position: newest first
    recipe.sinks = sinks_;
    return recipe;
  }
};

const RegisterPolicy<StreamingLlm> registered{kTraits};

}  // namespace
}  // namespace kvsim
