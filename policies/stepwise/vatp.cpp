// VATP: attention gathered while held, times the size of the token's value.
//
// Guo et al., "Attention score is not all you need for token importance indicator in KV cache reduction", arXiv:2406.12335, on
// top of H2O: every query adds its attention times |v|_1, which is the gathered attention times |v|_1. The first 20 tokens are
// forced, and as in H2O half of the capacity holds recent tokens. The authors mask instead of dropping; without H2O's hidden
// token that is the same set.
#include <cmath>
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "vatp",
                             .summary = "gathered attention times |v|_1, sinks and recent tokens",
                             .reference = "arXiv:2406.12335; the authors' code",
                             .accounting = "sinks and the recent tokens, floor(recent x capacity), count towards the capacity"};
constexpr std::string_view kStepUnitChoices[] = {"kv", "query"};

struct State final : Cloned<State> {
  State(std::uint32_t sinks, double recent) : sinks_(sinks), recent_(recent) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    for (std::size_t s = gathered_.size(); s < cache.slots(); ++s) {
      double norm = 0;
      for (const float v : cache.value(s)) norm += static_cast<double>(std::abs(v));
      norm_.push_back(norm);
    }
    gathered_.resize(cache.slots(), 0.0);
    for (std::size_t h = 0; h < cache.query_heads(); ++h) {
      const std::span<const float> sum = cache.attention_sum(h);
      for (std::size_t s = 0; s < sum.size(); ++s) gathered_[s] += static_cast<double>(sum[s]);
    }
  }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    score_.resize(gathered_.size());
    for (std::size_t s = 0; s < score_.size(); ++s) score_[s] = static_cast<float>(gathered_[s] * norm_[s]);
    keep_best(cache.positions(), score_, cache.capacity(), {sinks_, static_cast<std::uint32_t>(recent_ * cache.capacity())}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override {
    erase_slots(gathered_, slots);
    erase_slots(norm_, slots);
  }

 private:
  std::uint32_t sinks_;
  double recent_;
  std::vector<double> gathered_, norm_;  // [slots]
  std::vector<float> score_;
};

struct Vatp final : StepwisePolicy {
  std::uint32_t sinks_ = 20;
  double recent_ = 0.5;
  std::size_t unit_ = 0;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(), "first tokens that are never evicted");
    f.number("recent", recent_, 0.0, 1.0, "share of the capacity that holds the newest tokens");
    f.choice("unit", unit_, kStepUnitChoices, "what owns a cache: a KV head or a query head");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::attention | StepNeed::values | StepNeed::prompt_sum; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(sinks_, recent_); }
};

const RegisterStepwisePolicy<Vatp> registered{kTraits};

}  // namespace
}  // namespace kvsim
