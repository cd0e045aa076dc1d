// VATP: accumulated attention times the L1 norm of the value, on top of H2O or Scissorhands.
//
// Guo et al., "Attention score is not all you need for token importance indicator in KV cache reduction:
// value also matters", arXiv:2406.12335, and the authors' code, once at the end of the prompt. base=h2o sums
// the attention of all prompt queries; half of every budget goes to the newest tokens (recent_share=0.5:
// heavy .25 + recent .25 of the prompt in the README). base=scissorhands takes the mean attention of the last
// `window` = 400 queries; the authors keep 10 recent tokens there (recent=10,recent_share=0). The first 20
// tokens are forced in both. Kept sets per query head, as the code was written for models without groups.
// norm=none leaves the value out: H2O or Scissorhands with the same recents.
#include <array>
#include <limits>

#include "policies/reads_means.h"
#include "policies/recent_share.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "vatp",
                               .summary = "accumulated attention times the L1 norm of the value",
                               .reference = "arXiv:2406.12335 and the authors' code",
                               .accounting =
                                   "sinks first, then `recent` newest tokens, then recent_share of the "
                                   "budget in newest tokens; all count",
                               .nested = false,
                               .order_by_budget = true};

constexpr std::array<std::string_view, 2> kBaseChoices{"h2o", "scissorhands"};
constexpr std::array<std::string_view, 3> kNormChoices{"none", "l1", "l2"};

struct Vatp final : Policy, ReadsMeans {
  std::size_t base_ = 0;
  std::uint32_t window_ = 400;
  std::uint32_t sinks_ = 20;
  std::uint32_t recent_ = 0;
  double recent_share_ = 0.5;
  std::size_t norm_ = 1;
  std::size_t group_ = 0;
  std::size_t unit_ = 1;
  PolicyTraits traits_ = kTraits;

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
    f.choice("base", base_, kBaseChoices,
             "attention of all prompt queries (h2o), or of the last `window` (scissorhands)");
    f.number("window", window_, 1, kAny, "base=scissorhands: last prompt queries that vote");
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("recent", recent_, 0, kAny, "last prompt tokens that are always kept");
    f.number("recent_share", recent_share_, 0.0, 1.0, "share of every budget that goes to the newest tokens");
    f.choice("norm", norm_, kNormChoices, "norm of the value that the attention is multiplied by");
    f.choice("group", group_, kGroupChoices, "unit=kv: how the query heads of a KV head are joined");
    f.choice("unit", unit_, kUnitChoices, "what owns a kept set: a KV head or a query head");
    const bool shares = recent_share_ > 0;
    if (traits_.order_by_budget != shares) traits_.order_by_budget = shares;
    if (traits_.nested == shares) traits_.nested = !shares;
    if (traits_.windowed != (base_ == 1)) traits_.windowed = base_ == 1;
  }
  Need needs() const override {
    const Need needs = base_ == 0 ? Need::prompt_attention : Need::window_queries;
    return norm_ == 0 ? needs : needs | Need::values;
  }
  std::uint32_t window() const override { return base_ == 0 ? 0 : window_; }
  bool means_alone() const override { return true; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t tokens = head.geometry().prompt;
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      const std::span<const float> row = base_ == 0 ? head.attention_sum(h) : head.window_mean(window_, h);
      rows.emplace_back(row.begin(), row.end());
    }
    if (unit_ == 0) rows = {join_group(rows, static_cast<Group>(group_))};
    std::vector<double> norms;
    if (norm_ != 0) norms = row_norms(head.values(), static_cast<ValueNorm>(norm_));
    for (std::size_t u = 0; u < rows.size(); ++u) {
      for (std::size_t t = 0; t < norms.size(); ++t) rows[u][t] *= norms[t];
      out[u].score = to_scores(rows[u]);
      out[u].protected_tokens = protected_order(tokens, sinks_, recent_);
      if (recent_share_ > 0) out[u].orders = orders(head, out[u]);
    }
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }

 private:
  std::vector<std::vector<TokenIndex>> orders(const HeadFeatures& head, const UnitScores& unit) const {
    std::vector<float> score = unit.score;
    float most = 0;
    for (const float s : score) most = std::max(most, s);
    for (const TokenIndex t : protected_order(score.size(), 0, recent_)) score[t] = most + 1;
    return orders_with_recent_share(score, sinks_, recent_share_, head.budgets());
  }
};

const RegisterPolicy<Vatp> registered{kTraits};

}  // namespace
}  // namespace kvsim
