// Compactor: leverage of keys blended with attention inside chunks, without looking at any question.
//
// Chari & Van Durme, arXiv:2507.08143, as in kvpress (CompactorPress): score = blending * leverage +
// noncausal, both standardised over all heads of the layer and over the tokens between the protected ends.
// blending is the share of tokens removed, so that every budget has its own order; a number fixes it.
// Wrappers that compare scores (ada) see blending = 0.5 then. The leverage is exact unless sketch > 0
// (kvpress: 48).
#include <limits>

#include "kernels/error.h"
#include "kernels/order.h"
#include "policies/compactor_parts.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "compactor",
                               .summary = "leverage of keys blended with attention inside chunks",
                               .reference = "arXiv:2507.08143; kvpress CompactorPress (sketch=48)",
                               .accounting = "sinks and the newest tokens are kept first and count",
                               .nested = false,
                               .order_by_budget = true};

constexpr double kByBudget = -1;  // blending = share removed

struct Compactor final : Policy {
  std::uint32_t sinks_ = 8;
  std::uint32_t recent_ = 4;
  std::uint32_t chunk_ = 256;
  std::uint32_t sketch_ = 0;
  double blending_ = kByBudget;
  std::uint32_t seed_ = 0;
  PolicyTraits traits_ = kTraits;

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("recent", recent_, 0, kAny, "last prompt tokens that are always kept");
    f.number("chunk", chunk_, 1, 1u << 20, "tokens of a chunk, counted from the end of the sinks");
    f.number("sketch", sketch_, 0, 4096, "columns of a random sketch of the keys, 0 = the keys themselves");
    f.number("blending", blending_, -1.0, 1e6, "weight of the leverage; -1 = the share of tokens removed");
    f.number("seed", seed_, 0, kAny, "another seed, another sketch");
    const bool fixed = blending_ >= 0;
    if (traits_.nested != fixed) traits_.nested = fixed;
    if (traits_.order_by_budget == fixed) traits_.order_by_budget = !fixed;
  }
  void prepare(Resources&) override {
    if (blending_ < 0 && blending_ != kByBudget)
      throw UserError("compactor: blending={} is neither a weight nor -1 (the share of tokens removed)",
                      blending_);
  }
  Need needs() const override { return Need::keys | Need::values | Need::all_queries; }

  /// `extra` holds the leverage of every token.
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    const TokenRange inner = inside(tokens);
    if (inner.count == 0) {
      throw UserError("compactor(sinks={},recent={}) needs a prompt of more than {} tokens, this one has {}",
                      sinks_, recent_, sinks_ + recent_, tokens);
    }
    out[0].score.assign(tokens, 0.0f);
    out[0].extra.assign(tokens, 0.0f);
    const std::span<const float> attention = chunk_attention(head, inner, chunk_);
    const std::span<const float> leverage = key_leverage(head, inner, sketch_, seed_);
    std::copy(attention.begin(), attention.end(),
              out[0].score.begin() + static_cast<std::ptrdiff_t>(inner.first));
    std::copy(leverage.begin(), leverage.end(),
              out[0].extra.begin() + static_cast<std::ptrdiff_t>(inner.first));
    out[0].protected_tokens = protected_order(tokens, sinks_, recent_);
  }
  /// Standardises both parts; `extra` becomes leverage, then attention.
  void join(const LayerGeometry& layer, LayerScores& scores) const override {
    const TokenRange inner = inside(layer.prompt);
    std::vector<std::span<float>> attention, leverage;
    for (UnitScores& unit : scores.units) {
      attention.push_back(std::span(unit.score).subspan(inner.first, inner.count));
      leverage.push_back(std::span(unit.extra).subspan(inner.first, inner.count));
    }
    standardise(attention);
    standardise(leverage);
    for (UnitScores& unit : scores.units) {
      unit.extra.insert(unit.extra.end(), unit.score.begin(), unit.score.end());
      unit.score = blended(unit, blending_ < 0 ? 0.5 : blending_);
    }
    lift_protected(scores);
  }

  void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
               std::span<const std::uint32_t>, std::span<std::vector<TokenIndex>> order) const override {
    const double removed =
        1 - std::min(1.0, static_cast<double>(budget.tokens) / static_cast<double>(layer.prompt));
    std::vector<TokenIndex> sorted(layer.prompt);
    for (std::size_t u = 0; u < order.size(); ++u) {
      const UnitScores& unit = ranking.scores.units[u];
      const TokenRange inner = inside(layer.prompt);
      sort_descending(blended(unit, removed), sorted);
      order[u] = unit.protected_tokens;
      for (const TokenIndex t : sorted)
        if (t >= inner.first && t < inner.first + inner.count) order[u].push_back(t);
    }
  }

 private:
  TokenRange inside(std::size_t tokens) const {
    const std::size_t first = std::min<std::size_t>(sinks_, tokens);
    return {first, tokens - first - std::min<std::size_t>(recent_, tokens - first)};
  }
  static std::vector<float> blended(const UnitScores& unit, double weight) {
    const std::size_t tokens = unit.score.size();
    std::vector<float> out(tokens);
    for (std::size_t t = 0; t < tokens; ++t)
      out[t] = static_cast<float>(weight * static_cast<double>(unit.extra[t]) +
                                  static_cast<double>(unit.extra[tokens + t]));
    return out;
  }
};

const RegisterPolicy<Compactor> registered{kTraits};

}  // namespace
}  // namespace kvsim
