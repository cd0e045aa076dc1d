// H2O as it runs: heavy hitters by the attention that a token gathered while it was held.
//
// Zhang et al., "H2O: heavy-hitter oracle", arXiv:2306.14048. After the prompt (dense, all queries) and after every step the
// recent tokens stay, and the heaviest of the others; what left is gone. The authors' code keeps as many recent as heavy tokens
// (a tenth of the prompt each; here halves of the capacity) and owns a set per query head (unit=query). It removes nothing but
// masks attention, with a mask that is one column ahead of the cache: a token that leaves the recent ones is hidden for one
// step before it competes. removal=mask reproduces that bookkeeping, removal=drop is the textbook rule.
#include <algorithm>
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "h2o",
                             .summary = "attention accumulated while held (heavy hitters), and recent tokens",
                             .reference = "arXiv:2306.14048; the authors' code",
                             .accounting = "the recent tokens, floor(recent x capacity), count towards the capacity"};
constexpr std::string_view kRemovalChoices[] = {"drop", "mask"};
constexpr std::string_view kStepUnitChoices[] = {"kv", "query"};

struct State final : Cloned<State> {
  State(double recent, bool mask) : recent_(recent), mask_(mask) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    gathered_.resize(cache.slots(), 0.0);
    // The mean over the group's query heads orders as their sum.
    for (std::size_t h = 0; h < cache.query_heads(); ++h) {
      const std::span<const float> sum = cache.attention_sum(h);
      for (std::size_t s = 0; s < sum.size(); ++s) gathered_[s] += static_cast<double>(sum[s]);
    }
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    const auto recent = static_cast<std::uint32_t>(recent_ * cache.capacity());
    score_.assign(gathered_.begin(), gathered_.end());
    if (!mask_) {
      keep_best(cache.positions(), score_, cache.capacity(), {0, recent}, out[0]);
      return;
    }
    hide_one_column_ahead(cache, recent, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override { erase_slots(gathered_, slots); }

 private:
  /// The mask of the authors' code for a cache of s tokens: the last `recent` of s + 1 columns, and the heaviest of the first
  /// s - recent. Scores of what is neither are forgotten; the token at s - recent is hidden but keeps its score.
  void hide_one_column_ahead(const CacheView& cache, std::uint32_t recent, Eviction& out) {
    const std::size_t slots = cache.slots(), old = slots - std::min<std::size_t>(recent, slots);
    Eviction light;
    keep_best(cache.positions().first(old), std::span<const float>(score_).first(old), cache.capacity() - recent, {}, light);
    out.slots = light.slots;
    out.near_ties = light.near_ties;
    for (const std::uint32_t slot : out.slots) gathered_[slot] = 0.0;
    if (recent > 0 && old < slots) out.slots.push_back(static_cast<std::uint32_t>(old));
  }

  double recent_;
  bool mask_;
  std::vector<double> gathered_;  // [slots]
  std::vector<float> score_;
};

struct H2o final : StepwisePolicy {
  double recent_ = 0.5;
  std::size_t removal_ = 0;
  std::size_t unit_ = 0;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("recent", recent_, 0.0, 1.0, "share of the capacity that holds the newest tokens");
    f.choice("removal", removal_, kRemovalChoices, "drop: gone for good; mask: the authors' masks, one column ahead of the cache");
    f.choice("unit", unit_, kStepUnitChoices, "what owns a cache: a KV head or a query head");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::attention | StepNeed::prompt_sum; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  Removal removal() const override { return removal_ == 0 ? Removal::drop : Removal::mask; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(recent_, removal_ == 1); }
};

const RegisterStepwisePolicy<H2o> registered{kTraits};

}  // namespace
}  // namespace kvsim
