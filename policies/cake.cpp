// CAKE: layer budgets by how dispersed and how shifting the window's attention is; tokens by its mean and variance.
//
// arXiv:2503.12491, after the authors' code. A layer's preference is P = H^(1/tau1) V^(1/tau2), H the entropy
// and V the variance over the window's queries, summed over all query heads and candidates: the code's reciprocal
// exponents, where some texts print H^tau1 V^tau2. The tokens beyond the window are shared in proportion to P. A token's
// score is mean + gamma * variance of its attention over the window, pooled, then averaged over the group.
//
// cascade=true re-cuts all layers so far after every layer, each time sharing out the whole total, as the method does
// while it reads the prompt; nothing taken away comes back, so it may keep less than the total. The authors find the same
// sets as with one cut at the end, the default here (as in their configuration class). Deviations: excess over the prompt's
// length is shared out again until the total is exact, where their code checks once; and the budget is never exceeded,
// where theirs evicts nothing from prompts up to cache_size + window. Their tau per model: Llama-3.1-8B 1.6, 0.4 at 1024
// tokens and 1.6, 0.6 at 128; Llama-2-7B 1.9, 1.8 and 0.9, 2.3; Mistral-0.3-7B 0.8, 0.5 and 1, 0.8; Qwen2.5-7B 1.5, 0.6
// and 0.4, 0.6; otherwise 1.
#include <limits>

#include "policies/layer_preference.h"
#include "policies/recipe_policy.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "cake",
    .summary = "layer budgets by entropy and variance of the window's attention, tokens likewise",
    .reference = "arXiv:2503.12491, the authors' code",
    .accounting = "budget tokens per unit on average over the recorded layers; the window is always kept and counts",
    .nested = false,  // rounding can take a token from one layer when the total grows
    .windowed = true,
    .model_wide = true};

struct Cake final : RecipePolicy {
  PolicyTraits traits_ = kTraits;
  std::uint32_t window_ = 32;
  double gamma_ = 200;
  std::uint32_t kernel_ = 5;
  LayerPreference layers_;

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    f.number("window", window_, 2, std::numeric_limits<std::uint32_t>::max(), "last prompt queries that vote, always kept");
    f.number("gamma", gamma_, 0.0, 1e9, "weight of the variance in a token's score");
    f.number("tau1", layers_.tau1, 1e-3, 1e6, "temperature of the entropy: exponent 1/tau1");
    f.number("tau2", layers_.tau2, 1e-3, 1e6, "temperature of the variance: exponent 1/tau2");
    f.number("kernel", kernel_, 1, 4095, "tokens that a score is averaged over, odd");
    f.flag("cascade", layers_.cascade, "re-cut all layers so far after every layer, not once at the end");
    if (traits_.own_size != layers_.cascade) traits_.own_size = layers_.cascade;
  }
  Scope scope() const override { return Scope::model; }
  Recipe recipe() const override {
    Recipe recipe;
    recipe.base = Base::attention;
    recipe.query = {{.kind = QueryPart::Kind::window, .count = window_}};
    Reducer fold = fold_step(Fold::meanvar);
    fold.gamma = gamma_;
    recipe.reduce = {fold, pool_step(true, kernel_), group_step(Group::mean)};
    recipe.recent = window_;
    return recipe;
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    RecipePolicy::score(head, out);
    const QueryRows rows{.source = QueryRows::Source::window, .count = window_};
    out[0].extra = attention_spread(head, {rows}, head.geometry().prompt - window_).to_floats();
  }
  std::vector<float> summarise(const LayerGeometry&, const LayerRanking& ranking) const override {
    return summarise_spread(ranking.scores);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const auto prompt = static_cast<std::uint32_t>(layer.prompt);
    std::fill(kept.begin(), kept.end(),
              layers_.tokens(ranking.summaries, layer_place(layer), budget, std::min(window_, prompt), prompt));
  }
};

const RegisterPolicy<Cake> registered{kTraits};

}  // namespace
}  // namespace kvsim
