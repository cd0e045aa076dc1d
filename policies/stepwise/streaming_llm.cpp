// StreamingLLM as it runs: the first tokens and a window that rolls with every step.
//
// Xiao et al., "Efficient streaming language models with attention sinks", arXiv:2309.17453. The window ends with the newest
// token and holds capacity - sinks tokens. The authors re-assign positions inside the cache (shift=true): keys meet the
// query at the distance of their slots, which moves only the sinks nearer. Most reimplementations leave positions as they
// are, which is the default here.
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "streaming_llm",
                             .summary = "attention sinks plus a window that rolls with every step",
                             .reference = "arXiv:2309.17453",
                             .accounting = "sinks count towards the capacity; the rest of it are the newest tokens",
                             .stack = true};

struct State final : Cloned<State> {
  explicit State(std::uint32_t sinks) : sinks_(sinks) {}
  void observe(std::span<const CacheView* const>) override {}
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    const std::size_t slots = cache.slots();
    if (slots <= cache.capacity()) return;
    const std::span<const TokenIndex> positions = cache.positions();
    const auto sinks = static_cast<std::uint32_t>(std::lower_bound(positions.begin(), positions.end(), sinks_) - positions.begin());
    out[0].clamped = sinks > cache.capacity();
    const std::uint32_t front = std::min(sinks, cache.capacity());
    for (std::size_t s = front; s < slots - (cache.capacity() - front); ++s) out[0].slots.push_back(static_cast<std::uint32_t>(s));
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

  std::uint32_t sinks_;
};

struct StreamingLlm final : StepwisePolicy {
  std::uint32_t sinks_ = 4;
  bool shift_ = false;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(), "first tokens that are never evicted");
    f.flag("shift", shift_, "held tokens take the positions 0, 1, 2, ... of their slots, as in the authors' code");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::none; }
  bool shifts_positions() const override { return shift_; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(sinks_); }
};

const RegisterStepwisePolicy<StreamingLlm> registered{kTraits};

}  // namespace
}  // namespace kvsim
