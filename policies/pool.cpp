// Pool: one joint ranking over the heads of a layer, or over all heads of all layers, around any score.
//
// The simplest adaptive budget (TRIM-KV, arXiv:2512.03324, pools scores over layers and heads; reference, section 7.1, C10
// pool-layer and pool-all): the best tokens win, wherever they are. `floor` is the share of the budget that every head
// keeps for itself; over a layer it is Ada-KV with guarantee. Scores are compared raw, so they need a common unit: attention
// has one, key norms only by accident. Over the model all layers are scored first, and their scores held (four bytes a
// token and head).
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/error.h"
#include "policies/allotment.h"
#include "policies/layer_preference.h"
#include "policies/model_pool.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "pool",
    .summary = "one joint ranking over the heads of a layer or of the whole model, around any score",
    .reference = "arXiv:2512.03324 (pooling over layers and heads); reference forms pool-layer, pool-all",
    .accounting = "budget tokens per unit on average over the layer or the recorded layers; protected tokens first"};

constexpr std::array<std::string_view, 2> kOverChoices{"layer", "model"};

struct Pool final : ScoreWrapper {
  std::size_t over_ = 0;
  double floor_ = 0;

  Pool() : ScoreWrapper(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.choice("over", over_, kOverChoices, "what is ranked together: the heads of a layer, or all heads of all layers");
    f.number("floor", floor_, 0.0, 1.0, "share of the budget that every head keeps for itself");
    update(traits_.model_wide, over_ == 1);  // a score that is model-wide itself is refused
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    const PolicyTraits& inner = score_->traits();
    if (score_->scope() != Scope::head || inner.order_by_budget || inner.own_size)
      throw UserError("pool: score={} shares budget itself or has another order at every budget", inner.name);
  }
  Unit unit() const override { return ScoreWrapper::unit() == Unit::query ? Unit::query : Unit::kv; }
  Scope scope() const override { return over_ == 0 ? Scope::layer : Scope::model; }

  std::vector<float> summarise(const LayerGeometry&, const LayerRanking& ranking) const override {
    return pool_summary(ranking);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const auto mean = static_cast<std::uint32_t>(std::min<std::size_t>(budget, layer.prompt));
    const auto floor = static_cast<std::uint32_t>(std::floor(mean * floor_));
    const std::uint64_t total = std::uint64_t{mean} * kept.size();
    const std::vector<std::uint32_t> counts =
        over_ == 0 ? joint_counts(ranking, total, std::vector<std::uint32_t>(kept.size(), floor))
                   : model_pool_counts(ranking.summaries, layer_place(layer), total * ranking.summaries.size(), floor);
    std::copy(counts.begin(), counts.end(), kept.begin());
  }
};

const RegisterPolicy<Pool> registered{kTraits};

}  // namespace
}  // namespace kvsim
