// A prompt-time score at work during the decode: every so many steps the whole cache is scored again and cut.
//
// kvpress' DecodingPress: after every `every` decode steps (512 there) the inner press scores what the cache holds as if it
// were a prompt, and the best `capacity` tokens stay; the prompt itself is not compressed. Windows hold the last decode queries,
// of which 256 are remembered. Tokens keep position order here; kvpress 2.0.4 leaves survivors in order of score, so that scores
// of position see slots out of order from the second compression on.
#include <limits>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/stepwise/choose.h"
#include "policies/stepwise/held_features.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "decoding",
                             .summary = "any prompt-time score, every so many steps over the whole cache",
                             .reference = "kvpress DecodingPress",
                             .accounting = "capacity tokens per KV head after each compression; what the score protects counts"};

struct Settings {
  const Policy* score = nullptr;
  std::uint32_t remembered = 256;
};

struct State final : Cloned<State> {
  State(const Settings& settings, const StepContext& context) : settings_(settings), context_(context), recent_(context.caches) {}

  void observe(std::span<const CacheView* const> caches) override {
    if (!has(settings_.score->needs(), Need::window_queries)) return;
    for (std::size_t i = 0; i < caches.size(); ++i) remember(*caches[i], recent_[i]);
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    bool same_size = true;
    for (const CacheView* cache : caches) same_size &= cache->slots() == caches[0]->slots();
    if (same_size) {
      compress(caches, 0, out);
      return;
    }
    // A sliding window passed tokens that only some heads had kept: each head by itself.
    for (std::size_t i = 0; i < caches.size(); ++i) compress(caches.subspan(i, 1), i, out.subspan(i, 1));
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

 private:
  /// Scores and cuts caches of equal size as if they were the heads of a layer; `first` is the first one's number.
  void compress(std::span<const CacheView* const> caches, std::size_t first, std::span<Eviction> out) const {
    const Policy& policy = *settings_.score;
    LayerScores scores;
    scores.unit = policy.unit();
    scores.units.resize(caches.size());
    LayerGeometry geometry = context_.geometry;
    geometry.prompt = caches[0]->slots();
    geometry.kv_heads = caches.size();
    for (std::size_t i = 0; i < caches.size(); ++i) {
      const HeldFeatures features(*caches[i], context_.geometry, context_.rope, context_.logit_softcap, recent_[first + i],
                                  held_needs(policy.needs()));
      policy.score(features, std::span(scores.units).subspan(i, 1));
    }
    policy.join(geometry, scores);
    const LayerRanking ranking = rank_layer(policy, geometry, std::move(scores));
    std::vector<std::uint32_t> kept(caches.size());
    policy.allocate(geometry, ranking, caches[0]->capacity(), kept);
    for (std::size_t i = 0; i < caches.size(); ++i) {
      kept[i] = std::min(kept[i], caches[i]->capacity());  // chunks may overshoot a budget, a capacity holds
      out[i].clamped = ranking.scores.units[i].protected_tokens.size() > kept[i];
      if (kept[i] >= ranking.order[i].size()) continue;
      out[i].slots.assign(ranking.order[i].begin() + kept[i], ranking.order[i].end());
      std::sort(out[i].slots.begin(), out[i].slots.end());
    }
  }

  void remember(const CacheView& cache, RecentQueries& recent) const {
    recent.of_query_head.resize(cache.query_heads());
    for (std::size_t r = 0; r < cache.rows(); ++r) {
      if (recent.positions.size() == settings_.remembered) {
        recent.positions.erase(recent.positions.begin());
        for (auto& queries : recent.of_query_head) queries.erase(queries.begin(), queries.begin() + static_cast<std::ptrdiff_t>(context_.geometry.key_dim));
      }
      recent.positions.push_back(cache.row_position(r));
      for (std::size_t h = 0; h < cache.query_heads(); ++h) {
        const std::span<const float> q = cache.query(h, r);
        recent.of_query_head[h].insert(recent.of_query_head[h].end(), q.begin(), q.end());
      }
    }
  }

  Settings settings_;
  StepContext context_;
  std::vector<RecentQueries> recent_;  // [caches]
};

struct Decoding final : StepwisePolicy {
  std::unique_ptr<Policy> score_ = make_policy("knorm");

  Decoding() {
    schedule_.prompt_end = false;
    schedule_.every = 512;
  }
  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.policy("score", score_, "the prompt-time policy whose scores are used");
    schedule_.fields(f);
  }
  void prepare(Resources& resources) override {
    if (!score_) throw UserError("decode:decoding needs a policy that scores, e.g. decoding(score=knorm)");
    const std::string_view name = score_->traits().name;
    const Need allowed = Need::keys | Need::values | Need::window_queries;
    if ((std::uint32_t(score_->needs()) & ~std::uint32_t(allowed)) != 0)
      throw UserError("{} reads more of the prompt than a cache can show while decoding; take a score of keys, values or a window of queries", name);
    if (score_->scope() != Scope::head || score_->unit() == Unit::query)
      throw UserError("{} has sizes or sets of its own per head, which a cache of one capacity cannot follow", name);
    score_->prepare(resources);
  }
  void check(const LayerGeometry& layer) const override { score_->check(layer); }
  StepNeed needs() const override { return score_ ? held_needs(score_->needs()) : StepNeed::none; }
  std::uint32_t prompt_rows() const override { return score_ && schedule_.prompt_end ? score_->window() : 0; }
  Unit unit() const override { return score_ ? score_->unit() : Unit::kv; }
  bool joint() const override { return true; }
  std::unique_ptr<StepState> start(const StepContext& context) const override { return std::make_unique<State>(Settings{score_.get()}, context); }
};

const RegisterStepwisePolicy<Decoding> registered{kTraits};

}  // namespace
}  // namespace kvsim
