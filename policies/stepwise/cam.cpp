// CaM: evicted values are spread over the tokens kept after them.
//
// kvpress' CAMPress (openreview LCTmppB165) around any score that `decoding` takes: every so many steps the scores, mean over the KV
// heads, say which tokens the whole layer lets go. Of those the best (as many as steps have passed) are candidates: with the
// probability clamp(A_m / mean of A over the next `merge` kept tokens, 0, 1), A = attention gathered since the prompt, each KV head
// adds v_m / (number of those tokens) to their values. Prompt values gather nothing during the prefill. Draws hang on (seed,
// trace, layer, KV head; step, position).
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "kernels/philox.h"
#include "policies/key_value_features.h"
#include "policies/registry.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/held_features.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "cam",
                             .summary = "values of evicted tokens are merged into those kept after them",
                             .reference = "openreview LCTmppB165; kvpress CAMPress",
                             .accounting = "capacity tokens per KV head after each compression, the same for all of a layer"};

struct Settings {
  const Policy* score = nullptr;
  std::uint32_t merge = 32;
  std::uint32_t every = 512;
  std::uint32_t seed = 0;
};

struct State final : Cloned<State> {
  State(const Settings& settings, const StepContext& context) : settings_(settings), context_(context), gathered_(context.caches) {}

  void observe(std::span<const CacheView* const> caches) override {
    for (std::size_t i = 0; i < caches.size(); ++i) {
      const CacheView& cache = *caches[i];
      gathered_[i].resize(cache.slots(), 0.0);
      if (cache.phase() != StepPhase::step) continue;
      for (std::size_t h = 0; h < cache.query_heads(); ++h) {
        const float* const row = cache.attention(h).row(cache.rows() - 1);
        for (std::size_t s = 0; s < cache.slots(); ++s) gathered_[i][s] += static_cast<double>(row[s]) / static_cast<double>(cache.query_heads());
      }
    }
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    const std::size_t slots = caches[0]->slots();
    const std::vector<float> score = layer_score(caches);
    keep_best(caches[0]->positions(), score, caches[0]->capacity(), {}, out[0]);
    for (std::size_t i = 1; i < out.size(); ++i) out[i] = out[0];
    if (caches[0]->phase() != StepPhase::step) return;  // nothing was gathered
    std::vector<bool> leaves(slots, false);
    for (const std::uint32_t s : out[0].slots) leaves[s] = true;
    std::vector<std::uint32_t> candidates = out[0].slots;
    std::stable_sort(candidates.begin(), candidates.end(), [&](std::uint32_t a, std::uint32_t b) {
      return score[a] != score[b] ? score[a] > score[b] : a > b;  // ties: the later position first
    });
    candidates.resize(std::min<std::size_t>(candidates.size(), settings_.every));
    for (std::size_t i = 0; i < caches.size(); ++i) merge(*caches[i], gathered_[i], candidates, leaves, out[i]);
  }
  void removed(std::size_t cache, std::span<const std::uint32_t> slots) override { erase_slots(gathered_[cache], slots); }

 private:
  std::vector<float> layer_score(std::span<const CacheView* const> caches) const {
    const Policy& policy = *settings_.score;
    std::vector<double> mean(caches[0]->slots(), 0.0);
    const RecentQueries none;
    for (const CacheView* const cache : caches) {
      std::vector<UnitScores> scored(1);
      const HeldFeatures features(*cache, context_.geometry, context_.rope, context_.logit_softcap, none, held_needs(policy.needs()));
      policy.score(features, scored);
      for (std::size_t s = 0; s < mean.size(); ++s) mean[s] += static_cast<double>(scored[0].score[s]) / static_cast<double>(caches.size());
    }
    return {mean.begin(), mean.end()};
  }

  void merge(const CacheView& cache, const std::vector<double>& gathered, std::span<const std::uint32_t> candidates,
             const std::vector<bool>& leaves, Eviction& out) const {
    const Philox random(settings_.seed, stream_of(context_.geometry.trace_digest, context_.geometry.layer, cache.kv_head()));
    std::vector<std::vector<double>> sum(cache.slots());  // new values of the slots that change
    for (const std::uint32_t m : candidates) {
      std::vector<std::uint32_t> after;
      for (std::uint32_t s = m + 1; s < cache.slots() && after.size() < settings_.merge; ++s)
        if (!leaves[s]) after.push_back(s);
      if (after.empty()) continue;
      double mean = 0;
      for (const std::uint32_t s : after) mean += gathered[s] / static_cast<double>(after.size());
      const double ratio = gathered[m] / mean;  // 0 / 0 merges nothing, x / 0 always
      const double chance = std::isnan(ratio) ? 0.0 : std::min(ratio, 1.0);
      const Philox::Block block = random.block(std::uint64_t{cache.step()} << 32 | cache.positions()[m]);
      const double uniform = (static_cast<double>(block[0]) + 0.5) * 0x1.0p-32;
      if (uniform >= chance) continue;
      const std::span<const float> value = cache.value(m);
      for (const std::uint32_t s : after) {
        if (sum[s].empty()) sum[s].assign(cache.value(s).begin(), cache.value(s).end());
        for (std::size_t c = 0; c < value.size(); ++c) sum[s][c] += static_cast<double>(value[c]) / static_cast<double>(after.size());
      }
    }
    for (std::uint32_t s = 0; s < sum.size(); ++s)
      if (!sum[s].empty()) out.changes.push_back({s, {sum[s].begin(), sum[s].end()}});
  }

  Settings settings_;
  StepContext context_;
  std::vector<std::vector<double>> gathered_;  // [caches][slots]: attention since the prompt, mean over the query heads
};

struct Cam final : StepwisePolicy {
  std::unique_ptr<Policy> score_ = make_policy("knorm");
  Settings settings_;

  Cam() {
    schedule_.prompt_end = false;
    schedule_.every = 512;
  }
  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.policy("score", score_, "the prompt-time policy whose scores are used");
    f.number("merge", settings_.merge, 1, std::numeric_limits<std::uint32_t>::max(), "kept tokens that take up an evicted value");
    f.number("seed", settings_.seed, 0, std::numeric_limits<std::uint32_t>::max(), "of the draws, with trace, layer, KV head, step and position");
    schedule_.fields(f);
    settings_.score = score_.get();
    settings_.every = schedule_.every;
  }
  void prepare(Resources& resources) override {
    if (!score_) throw UserError("decode:cam needs a policy that scores, e.g. cam(score=knorm)");
    if (!scores_keys_and_values(*score_)) {
      throw UserError("decode:cam cannot take {}: give it a score of keys or values with one set per KV head, e.g. knorm", score_->traits().name);
    }
    score_->prepare(resources);
  }
  void check(const LayerGeometry& layer) const override { score_->check(layer); }
  StepNeed needs() const override {
    const StepNeed own = StepNeed::attention | StepNeed::values;
    return score_ ? own | held_needs(score_->needs()) : own;
  }
  Unit unit() const override { return Unit::layer; }
  std::unique_ptr<StepState> start(const StepContext& context) const override { return std::make_unique<State>(settings_, context); }
};

const RegisterStepwisePolicy<Cam> registered{kTraits};

}  // namespace
}  // namespace kvsim
