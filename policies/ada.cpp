// Ada-KV: moves budget between the heads of a layer to where the largest scores are.
//
// Feng et al., arXiv:2407.11550. form=guarantee is kvpress's AdaKVPress: trunc(alpha * budget) tokens per
// head are certain, the rest goes to the best scores of the whole layer. form=interp is the authors' code:
// head budgets are interpolated between adaptive (1 - alpha) and uniform (alpha), beyond the protected
// window; they round every head by itself (total=repo), here the total is exact unless that is asked for.
// Scores are compared raw across heads, so they need a common unit: attention has one, key norms only by
// accident. The default scorer is the authors', snapkv.
#include <array>

#include "policies/allotment.h"
#include "policies/lookahead.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "ada",
    .summary = "shifts budget between the heads of a layer, around any score",
    .reference = "arXiv:2407.11550; kvpress AdaKVPress (guarantee), FFY0/AdaKV (interp)",
    .accounting = "budget tokens per unit on average over the layer, protected tokens of the score included"};

constexpr std::array<std::string_view, 2> kFormChoices{"guarantee", "interp"};
constexpr std::array<std::string_view, 2> kTotalChoices{"exact", "repo"};

struct Ada final : ScoreWrapper {
  double alpha_ = 0.2;
  std::size_t form_ = 0;
  std::size_t total_ = 0;

  Ada() : ScoreWrapper(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("alpha", alpha_, 0.0, 1.0, "share of the budget that every head keeps for itself");
    f.choice("form", form_, kFormChoices, "kvpress's guaranteed share or the authors' interpolation");
    f.choice("total", total_, kTotalChoices,
             "interp: keep the layer's total exactly, or round as the authors do");
    // Largest remainders can take a token back from one head when the budget grows by one.
    update(traits_.nested, traits_.nested && !(form_ == 1 && total_ == 0));
  }
  Unit unit() const override { return ScoreWrapper::unit() == Unit::query ? Unit::query : Unit::kv; }
  Scope scope() const override { return ScoreWrapper::scope() == Scope::model ? Scope::model : Scope::layer; }

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    score_->allocate(layer, ranking, budget, kept);
    const HeadShare share{alpha_, form_ == 0 ? HeadShare::Form::guarantee : HeadShare::Form::interpolate,
                          total_ == 1};
    share.apply(traits_.order_by_budget ? ranking_at(*score_, layer, ranking, budget) : ranking, kept);
  }
};

const RegisterPolicy<Ada> registered{kTraits};

}  // namespace
}  // namespace kvsim
