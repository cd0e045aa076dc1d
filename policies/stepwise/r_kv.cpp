// R-KV: what the last queries look at, less what other keys repeat, every 128 tokens.
//
// Cai et al., "R-KV: redundancy-aware KV cache compression", arXiv:2505.24133, with the paper's lambda (the code has 0.07). A
// compression falls on the first forward after the number of tokens fed became a multiple of `every`. Deviation: the code keeps
// survivors in order of score, so that its later pooling and "newest near-duplicate" see that order; here slots stay in order
// of position.
#include "policies/stepwise/r_kv_score.h"
#include "policies/stepwise/stepwise_registry.h"

namespace kvsim {
namespace {

constexpr StepTraits kTraits{.name = "r_kv",
                             .summary = "importance under the last queries, less redundancy of the keys",
                             .reference = "arXiv:2505.24133; the authors' code",
                             .accounting = "capacity tokens per KV head, the window included"};

struct State final : Cloned<State> {
  State(const RkvSettings& settings, const StepContext& context)
      : settings_(settings), layer_(context.geometry), softcap_(context.logit_softcap) {}

  void observe(std::span<const CacheView* const> caches) override { ring_.add(*caches[0], settings_.window); }
  void evict(std::span<const CacheView* const> caches, std::span<Eviction> out) override {
    keep_by_r_kv(settings_, *caches[0], r_kv_score(settings_, *caches[0], ring_, layer_, softcap_), out[0]);
  }
  void removed(std::size_t, std::span<const std::uint32_t>) override {}

 private:
  RkvSettings settings_;
  LayerGeometry layer_;
  double softcap_;
  QueryRing ring_;
};

struct Rkv final : StepwisePolicy {
  RkvSettings settings_;

  Rkv() { schedule_.every = 128; }
  const StepTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    settings_.fields(f);
    schedule_.fields(f);
  }
  void prepare(Resources&) override { settings_.check("decode:r_kv"); }
  StepNeed needs() const override { return StepNeed::keys | StepNeed::queries; }
  std::uint32_t prompt_rows() const override { return settings_.window; }
  bool due(const LayerGeometry& layer, std::size_t step) const override { return (layer.prompt + step) % schedule_.every == 0; }
  std::unique_ptr<StepState> start(const StepContext& context) const override {
    return std::make_unique<State>(settings_, context);
  }
};

const RegisterStepwisePolicy<Rkv> registered{kTraits};

}  // namespace
}  // namespace kvsim
