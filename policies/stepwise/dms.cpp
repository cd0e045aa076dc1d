// DMS as it runs: every token is judged once, when it leaves the window of the newest ones.
//
// The inference rule of arXiv:2506.05345 around any score of keys or values, as kvpress' DMSPress: the prompt's tokens are scored
// together, later ones each by itself; a token older than the newest `window` whose score is below the threshold goes for good. No
// sinks, no minimum: the cache has the size that the threshold gives it, whatever the capacity.
#include <limits>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "dms",
                             .summary = "tokens that leave the window below a threshold go",
                             .reference = "arXiv:2506.05345 (inference rule); kvpress DMSPress",
                             .accounting = "chooses its own size by the threshold; the capacity does not matter",
                             .bounded = false};

[[noreturn]] void not_there() { throw InternalError("a score of tokens by themselves asked for queries"); }

/// Some tokens of a cache as if they were a whole prompt.
class TokenFeatures final : public HeadFeatures {
 public:
  TokenFeatures(const CacheView& cache, std::size_t first, const LayerGeometry& layer, const Rope& rope, StepNeed needs)
      : geometry_(layer), kv_head_(cache.kv_head()), rope_(rope) {
    geometry_.prompt = cache.slots() - first;
    if (has(needs, StepNeed::keys)) keys_ = Matrix<float>(geometry_.prompt, layer.key_dim);
    if (has(needs, StepNeed::values)) values_ = Matrix<float>(geometry_.prompt, layer.value_dim);
    for (std::size_t s = 0; s < geometry_.prompt; ++s) {
      if (!keys_.empty()) std::copy_n(cache.key(first + s).data(), layer.key_dim, keys_.row(s));
      if (!values_.empty()) std::copy_n(cache.value(first + s).data(), layer.value_dim, values_.row(s));
    }
  }
  const LayerGeometry& geometry() const override { return geometry_; }
  std::uint32_t kv_head() const override { return kv_head_; }
  MatrixView<const float> keys() const override { return keys_.view(); }
  MatrixView<const float> values() const override { return values_.view(); }
  Rope rope() const override { return rope_; }
  std::span<const float> window_mean(std::uint32_t, std::size_t) const override { not_there(); }
  std::span<const float> attention_sum(std::size_t) const override { not_there(); }
  std::span<const float> attention_mean_over_visible(std::size_t) const override { not_there(); }
  QueryStats query_stats(std::size_t) const override { not_there(); }
  std::span<const float> decode_mean(std::size_t) const override { not_there(); }

 private:
  LayerGeometry geometry_;
  std::uint32_t kv_head_;
  Rope rope_;
  Matrix<float> keys_, values_;
};

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
    settings_.score->score(TokenFeatures(cache, score_.size(), layer_, rope_, settings_.needs), scored);
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
    const Need allowed = Need::keys | Need::values;
    if ((std::uint32_t(score_->needs()) & ~std::uint32_t(allowed)) != 0 || score_->scope() != Scope::head || score_->unit() != Unit::kv) {
      throw UserError("decode:dms judges tokens by themselves, {} cannot: take a score of keys or values, e.g. knorm", score_->traits().name);
    }
    score_->prepare(resources);
  }
  void check(const LayerGeometry& layer) const override { score_->check(layer); }
  StepNeed needs() const override {
    StepNeed needs = StepNeed::none;
    if (score_ && has(score_->needs(), Need::keys)) needs = needs | StepNeed::keys;
    if (score_ && has(score_->needs(), Need::values)) needs = needs | StepNeed::values;
    return needs;
  }
  std::unique_ptr<StepState> start(const StepContext& context) const override { return std::make_unique<State>(settings_, context); }
};

const RegisterStepwisePolicy<Dms> registered{kTraits};

}  // namespace
}  // namespace kvsim
