// DMS as it runs: every token is judged once, when it leaves the window of the newest ones.
//
// The inference rule of arXiv:2506.05345 around any score of keys or values, as kvpress' DMSPress: the prompt's tokens are scored
// together, later ones each by itself; a token older than the newest `window` whose score is below the threshold goes for good. No
// sinks, no minimum: the cache has the size that the threshold gives it, whatever the capacity.
#include <limits>

#include "kernels/error.h"
#include "policies/key_value_features.h"
#include "policies/registry.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/held_entries.h"
#include "policies/stepwise/held_features.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "dms",
                             .summary = "tokens that leave the window below a threshold go",
                             .reference = "arXiv:2506.05345 (inference rule); kvpress DMSPress",
                             .accounting = "chooses its own size by the threshold; the capacity does not matter",
                             .bounded = false};

struct Settings {
  const Policy* score = nullptr;
  StepNeed needs = StepNeed::none;
  double threshold = 0;
  std::uint32_t window = 128;
};

struct State final : Cloned<State> {
  State(const Settings& settings, const StepContext& context) : settings_(settings), layer_(context.geometry), rope_(context.rope) {}

  void observe(std::span<const CacheView* const> caches) override {
    const CacheView& cache = *caches[0];
    if (cache.slots() == score_.size()) return;
    // A dense prompt and every block are scored together, decoded tokens one by one.
    std::vector<UnitScores> scored(1);
    const std::size_t first = score_.size();
    const KeyValueFeatures unseen(layer_, cache.kv_head(), rope_, cache.slots() - first,
                                  has(settings_.needs, StepNeed::keys) ? held_keys(cache, layer_.key_dim, first) : Matrix<float>(),
                                  has(settings_.needs, StepNeed::values) ? held_values(cache, layer_.value_dim, first) : Matrix<float>());
    settings_.score->score(unseen, scored);
    score_.insert(score_.end(), scored[0].score.begin(), scored[0].score.end());
    judged_.resize(score_.size(), false);
  }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const std::span<const TokenIndex> positions = caches[0]->positions();
    const std::size_t newest = positions.back();
    for (std::size_t s = 0; s < positions.size() && positions[s] + std::size_t{settings_.window} <= newest; ++s) {
      if (!judged_[s] && static_cast<double>(score_[s]) < settings_.threshold) out[0].slots.push_back(static_cast<std::uint32_t>(s));
      judged_[s] = true;
    }
  }
  void removed(std::size_t, std::span<const std::uint32_t> slots) override {
    erase_slots(score_, slots);
    erase_slots(judged_, slots);
  }

 private:
  Settings settings_;
  LayerGeometry layer_;
  Rope rope_;
  std::vector<float> score_;   // [slots]
  std::vector<char> judged_;   // [slots]
};

struct Dms final : StepwisePolicy {
  std::unique_ptr<Policy> score_ = make_policy("knorm");
  Settings settings_;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.policy("score", score_, "the prompt-time policy whose scores are judged");
    f.number("threshold", settings_.threshold, -1e30, 1e30, "tokens of a smaller score go");
    f.number("window", settings_.window, 0, std::numeric_limits<std::uint32_t>::max(), "newest tokens that are not judged yet");
    schedule_.fields(f);
    settings_.score = score_.get();
    settings_.needs = needs();
  }
  void prepare(Resources& resources) override {
    if (!score_) throw UserError("decode:dms needs a policy that scores, e.g. dms(score=knorm,threshold=-12)");
    if (!scores_keys_and_values(*score_)) {
      throw UserError("decode:dms judges tokens by themselves, {} cannot: take a score of keys or values, e.g. knorm", score_->traits().name);
    }
    score_->prepare(resources);
  }
  void check(const LayerGeometry& layer) const override { score_->check(layer); }
  StepNeed needs() const override { return score_ ? held_needs(score_->needs()) : StepNeed::none; }
  std::unique_ptr<StepState> start(const StepContext& context) const override { return std::make_unique<State>(settings_, context); }
};

const RegisterStepwisePolicy<Dms> registered{kTraits};

}  // namespace
}  // namespace kvsim
