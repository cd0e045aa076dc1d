// OBCache as it runs: first-order damage to the output, added up while the token is held.
//
// arXiv:2510.07651, from a derivative of the authors' first public code. For a query with attention a, logit s and output o over
// what is held: value a^2 |v|^2, key (a s)^2 |v - o|^2, joint both and 2 a^2 s (|v|^2 - v.o). Every step adds its terms to what is
// held. At the prompt's end the terms of the last `window` queries count (the code takes as many as there are recent tokens);
// the newest tokens stay.
#include <limits>

#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "obcache",
                             .summary = "damage to the output if a value, a key or both were pruned, and recent tokens",
                             .reference = "arXiv:2510.07651; a derivative of the authors' first code",
                             .accounting = "the recent tokens, floor(recent x capacity), count towards the capacity"};
constexpr std::string_view kWhatChoices[] = {"value", "key", "joint"};
constexpr std::string_view kStepUnitChoices[] = {"kv", "query"};

struct State final : Cloned<State> {
  State(std::size_t what, double recent, std::size_t value_dim) : what_(what), recent_(recent), output_(value_dim) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    for (std::size_t s = square_.size(); s < cache.slots(); ++s) {
      double square = 0;
      for (const float v : cache.value(s)) square += static_cast<double>(v) * static_cast<double>(v);
      square_.push_back(square);
    }
    damage_.resize(cache.slots(), 0.0);
    for (std::size_t h = 0; h < cache.query_heads(); ++h)
      for (std::size_t r = 0; r < cache.rows(); ++r) add_row(cache, h, r);
  }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const CacheView& cache = *caches[0];
    const std::vector<float> score(damage_.begin(), damage_.end());
    keep_best(cache.positions(), score, cache.capacity(), {0, static_cast<std::uint32_t>(recent_ * cache.capacity())}, out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override {
    erase_slots(damage_, slots);
    erase_slots(square_, slots);
  }

 private:
  void add_row(const CacheView& cache, std::size_t h, std::size_t r) {
    const float* const weight = cache.attention(h).row(r);
    if (what_ == 0) {
      for (std::size_t s = 0; s < damage_.size(); ++s) {
        const auto a = static_cast<double>(weight[s]);
        damage_[s] += a * a * square_[s];
      }
      return;
    }
    const std::span<const float> logits = cache.logits(h, r);
    std::fill(output_.begin(), output_.end(), 0.0);
    for (std::size_t s = 0; s < damage_.size(); ++s) {
      if (weight[s] == 0.0f) continue;
      const std::span<const float> value = cache.value(s);
      for (std::size_t c = 0; c < output_.size(); ++c) output_[c] += static_cast<double>(weight[s]) * static_cast<double>(value[c]);
    }
    double length = 0;
    for (const double o : output_) length += o * o;
    for (std::size_t s = 0; s < damage_.size(); ++s) {
      if (weight[s] == 0.0f) continue;
      const std::span<const float> value = cache.value(s);
      double along = 0;
      for (std::size_t c = 0; c < output_.size(); ++c) along += static_cast<double>(value[c]) * output_[c];
      const auto a = static_cast<double>(weight[s]), l = static_cast<double>(logits[s]);
      const double of_key = a * l * a * l * (square_[s] - 2 * along + length);
      damage_[s] += what_ == 1 ? of_key : a * a * square_[s] + of_key + 2 * a * a * l * (square_[s] - along);
    }
  }

  std::size_t what_;
  double recent_;
  std::vector<double> damage_, square_, output_;  // [slots], [slots]: |v|^2, [dv]
};

struct ObCache final : StepwisePolicy {
  std::size_t what_ = 2;
  double recent_ = 0.5;
  std::uint32_t window_ = 64;
  std::size_t unit_ = 0;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.choice("what", what_, kWhatChoices, "what is thought to be pruned");
    f.number("recent", recent_, 0.0, 1.0, "share of the capacity that holds the newest tokens");
    f.number("window", window_, 1, std::numeric_limits<std::uint32_t>::max(), "last prompt queries whose damage counts at the prompt's end");
    f.choice("unit", unit_, kStepUnitChoices, "what owns a cache: a KV head or a query head");
    schedule_.fields(f);
  }
  StepNeed needs() const override {
    const StepNeed always = StepNeed::attention | StepNeed::values;
    return what_ == 0 ? always : always | StepNeed::queries;
  }
  std::uint32_t prompt_rows() const override { return window_; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  std::unique_ptr<StepState> start(const StepContext& context) const override {
    return std::make_unique<State>(what_, recent_, context.geometry.value_dim);
  }
};

const RegisterStepwisePolicy<ObCache> registered{kTraits};

}  // namespace
}  // namespace kvsim
