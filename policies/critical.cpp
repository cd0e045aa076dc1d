// CriticalKV: two stages around any score; the second one weighs it by what the token's value becomes behind
// W_O.
//
// Feng et al., "Identify critical KV cache in LLM inference from an output perturbation perspective",
// arXiv:2502.03805, as in kvpress (CriticalKVPress). Of n tokens a unit keeps the trunc(first * n) best by
// the inner policy's order; the rest is filled by (score + epsilon) * N, N = mean over the query heads of the
// group of the L1 norm of v W_O. Tokens that the inner policy protects carry the score M + 1, M the layer's
// largest, into both stages. Around ada this is kvpress's CriticalAdaKVPress, where in addition each head's
// share that ada guarantees is certain: critical(score=ada(score=...,alpha=0.2),safe=0.2).
#include <algorithm>
#include <optional>

#include "kernels/order.h"
#include "policies/lookahead.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "policies/value_weight.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "critical",
    .summary = "two stages around any score, the second weighed by projected values",
    .reference = "arXiv:2502.03805; kvpress CriticalKVPress, CriticalAdaKVPress (around ada)",
    .accounting = "as the policy under score; what it protects takes part in the first stage's share",
    .nested = false,
    .order_by_budget = true};

struct Critical final : ScoreWrapper {
  double first_ = 0.5;
  double epsilon_ = 1e-4;
  double safe_ = 0;

  Critical() : ScoreWrapper(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.number("first", first_, 0.0, 1.0, "share of a unit's tokens that the score alone decides");
    f.number("epsilon", epsilon_, 0.0, 1e6, "added to the score before the norm");
    f.number("safe", safe_, 0.0, 1.0,
             "share of the budget that is certain by the score: alpha of ada under score");
  }
  Need needs() const override { return ScoreWrapper::needs() | Need::values | Need::output_projection; }
  Unit unit() const override { return ScoreWrapper::unit() == Unit::query ? Unit::query : Unit::kv; }

  /// The norms stand behind what the inner policy keeps in `extra`.
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    score_->score(head, out);
    std::vector<std::vector<double>> norms;
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      const std::span<const float> row = projected_norms(head, h);
      norms.emplace_back(row.begin(), row.end());
    }
    if (unit() != Unit::query) norms = {join_group(norms, Group::mean)};
    for (std::size_t u = 0; u < out.size(); ++u)
      for (const double norm : norms[u]) out[u].extra.push_back(static_cast<float>(norm));
  }

  void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
               std::span<const std::uint32_t> kept, std::span<std::vector<TokenIndex>> order) const override {
    std::optional<LayerRanking> at_budget;  // scores of pseudo queries that the budget chose
    if (score_->traits().order_by_budget) {
      score_->reorder(layer, ranking, budget, kept, order);
      at_budget = ranking_at(*score_, layer, ranking, budget.tokens);
    }
    const LayerScores& scores = at_budget ? at_budget->scores : ranking.scores;
    for (std::size_t u = 0; u < order.size(); ++u) {
      const auto certain = static_cast<std::size_t>(first_ * kept[u]);
      const auto safe = static_cast<std::size_t>(
          safe_ * std::min<double>(budget.tokens, static_cast<double>(layer.prompt)));
      const std::span<const float> norms = std::span(ranking.scores.units[u].extra).last(layer.prompt);
      order[u] = staged(scores.units[u].score, norms, order[u],
                        std::max(certain, std::min<std::size_t>(safe, kept[u])));
    }
  }

 private:
  /// The first `certain` tokens of `base`, then the others by the weighed score.
  std::vector<TokenIndex> staged(std::span<const float> score, std::span<const float> norms,
                                 const std::vector<TokenIndex>& base, std::size_t certain) const {
    const std::size_t tokens = score.size();
    std::vector<float> weighed(tokens);
    for (std::size_t t = 0; t < tokens; ++t) {
      weighed[t] =
          static_cast<float>((static_cast<double>(score[t]) + epsilon_) * static_cast<double>(norms[t]));
    }
    std::vector<bool> taken(tokens, false);
    std::vector<TokenIndex> out(base.begin(),
                                base.begin() + static_cast<std::ptrdiff_t>(std::min(certain, base.size())));
    for (const TokenIndex t : out) taken[t] = true;
    std::vector<TokenIndex> sorted(tokens);
    sort_descending(weighed, sorted);
    for (const TokenIndex t : sorted)
      if (!taken[t]) out.push_back(t);
    return out;
  }
};

const RegisterPolicy<Critical> registered{kTraits};

}  // namespace
}  // namespace kvsim
