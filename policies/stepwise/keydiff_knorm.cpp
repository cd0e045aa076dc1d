// Scores of the keys that a cache holds: keydiff and knorm, prefill in blocks and step by step.
//
// KeyDiff (arXiv:2504.15364): -cos(key, mean of the unit keys held); the anchor moves with the cache. L2 norm (arXiv:2406.11430):
// -|key|. Formulas as in the prompt-time policies of the same names.
#include "policies/recipe.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/held_entries.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kKeyDiff{.name = "keydiff",
                              .summary = "keys that differ most from the mean of the keys held",
                              .reference = "arXiv:2504.15364 (blocks of 128); kvpress BlockPress around KeyDiffPress",
                              .accounting = "capacity tokens per KV head; nothing is protected"};
constexpr StepTraits kKnorm{.name = "knorm",
                            .summary = "tokens with the smallest keys",
                            .reference = "arXiv:2406.11430; kvpress BlockPress around KnormPress",
                            .accounting = "capacity tokens per KV head; nothing is protected"};

using Scores = std::vector<double> (*)(MatrixView<const float>);

struct State final : Cloned<State> {
  State(Scores scores, std::size_t key_dim) : scores_(scores), key_dim_(key_dim) {}
  void observe(std::span<const CacheView* const>) override {}
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const std::vector<double> exact = scores_(held_keys(*caches[0], key_dim_).view());
    const std::vector<float> score(exact.begin(), exact.end());
    keep_best(caches[0]->positions(), score, caches[0]->capacity(), {}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

 private:
  Scores scores_;
  std::size_t key_dim_;
};

template <const StepTraits& Traits, Scores Score, std::uint32_t Block>
struct KeyScored final : StepwisePolicy {
  KeyScored() { schedule_.block = Block; }
  const StepTraits& traits() const override { return Traits; }
  void fields(FieldVisitor& f) override { schedule_.fields(f); }
  StepNeed needs() const override { return StepNeed::keys; }
  std::unique_ptr<StepState> start(const StepContext& context) const override {
    return std::make_unique<State>(Score, context.geometry.key_dim);
  }
};

constexpr std::uint32_t kPaperBlock = 128;
const RegisterStepwisePolicy<KeyScored<kKeyDiff, key_difference_scores, kPaperBlock>> registered_keydiff{kKeyDiff};
const RegisterStepwisePolicy<KeyScored<kKnorm, key_norm_scores, 0>> registered_knorm{kKnorm};

}  // namespace
}  // namespace kvsim
