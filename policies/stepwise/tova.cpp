// TOVA as it runs: at every step the current query decides, one set for the whole layer.
//
// Oren et al., "Transformers are multi-state RNNs", arXiv:2401.06104. The current query's attention row, mean over all query
// heads of the layer; nothing is accumulated or protected (kvpress forces the newest token, which newest=true does).
#include "policies/stepwise/choose.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "tova",
                             .summary = "attention of the current query, one set per layer",
                             .reference = "arXiv:2401.06104; the authors' code",
                             .accounting = "capacity tokens per KV head, the same for all of a layer"};

struct State final : Cloned<State> {
  explicit State(bool newest) : newest_(newest) {}

  void observe(std::span<const CacheView* const> caches) override {
    const std::size_t slots = caches[0]->slots();
    if (caches[0]->rows() == 0) {
      score_.resize(slots);
      return;
    }
    sum_.assign(slots, 0.0);
    std::size_t heads = 0;
    for (const CacheView* cache : caches)
      for (std::size_t h = 0; h < cache->query_heads(); ++h, ++heads) {
        const float* row = cache->attention(h).row(cache->rows() - 1);
        for (std::size_t s = 0; s < slots; ++s) sum_[s] += static_cast<double>(row[s]);
      }
    score_.resize(slots);
    for (std::size_t s = 0; s < slots; ++s) score_[s] = static_cast<float>(sum_[s] / static_cast<double>(heads));
  }

  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    keep_best(caches[0]->positions(), score_, caches[0]->capacity(), {0, newest_ ? 1u : 0u}, out[0]);
    for (std::size_t i = 1; i < out.size(); ++i) out[i] = out[0];
  }
  // Called for every cache of the layer with the same slots.
  void removed(std::size_t cache, std::span<const std::uint32_t> slots) override {
    if (cache == 0) erase_slots(score_, slots);
  }

 private:
  bool newest_;
  std::vector<float> score_;
  std::vector<double> sum_;
};

struct Tova final : StepwisePolicy {
  bool newest_ = false;

  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.flag("newest", newest_, "the newest token always stays, as in kvpress");
    schedule_.fields(f);
  }
  StepNeed needs() const override { return StepNeed::attention; }
  std::uint32_t prompt_rows() const override { return 1; }
  Unit unit() const override { return Unit::layer; }
  std::unique_ptr<StepState> start(const StepContext&) const override { return std::make_unique<State>(newest_); }
};

const RegisterStepwisePolicy<Tova> registered{kTraits};

}  // namespace
}  // namespace kvsim
