// CAOTE: turns any attention-like score into the exact change of its own weighted output when the token
// leaves.
//
// arXiv:2504.14051. The score of the inner policy, divided by its sum over the tokens that it may evict, is
// taken as the attention alpha; X = sum alpha v. Evicting token j and renormalising moves X by alpha_j / (1 -
// alpha_j) |v_j - X|, the largest of which are kept. fast_caote puts the plain mean of the values in place of
// X. When many tokens leave at once the single-token costs are used greedily, without recomputation, as the
// paper does. With alpha the attention row of one query this is exactly the change of that query's output.
// The sources say nothing of groups and of protection. Here: a score with a set per query head (the default
// inner policy, h2o(unit=query)) gets its costs head by head, then joined over the group (join=mean) or left
// as they are (join=none); what the inner policy protects stays protected and takes no part in alpha and X.
// compose(score=..., value=caote) is the same part.
#include <array>

#include "kernels/error.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "policies/removal_cost.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kCaoteTraits{
    .name = "caote",
    .summary = "change of the weighted output when the token leaves, around any attention-like score",
    .reference = "arXiv:2504.14051",
    .accounting = "as the policy under score: what it protects is kept first and counts"};
constexpr PolicyTraits kFastTraits{
    .name = "fast_caote",
    .summary = "caote with the mean value in place of the weighted output",
    .reference = "arXiv:2504.14051",
    .accounting = "as the policy under score: what it protects is kept first and counts"};

constexpr std::array<std::string_view, 2> kJoinChoices{"mean", "none"};

/// The scores of an attention-like policy. Throws UserError where a token that may leave has a negative one.
std::vector<double> weights(const PolicyTraits& inner, const UnitScores& unit,
                            const std::vector<bool>& stays) {
  for (std::size_t t = 0; t < unit.score.size(); ++t) {
    if (unit.score[t] < 0 && !stays[t]) {
      throw UserError(
          "caote needs scores that are shares of attention, but {} scores token {} with {}: choose a score "
          "that is never negative",
          inner.name, t, static_cast<double>(unit.score[t]));
    }
  }
  return {unit.score.begin(), unit.score.end()};
}

template <bool fast>
struct Caote final : ScoreWrapper {
  std::size_t join_ = 0;

  Caote() : ScoreWrapper(fast ? kFastTraits : kCaoteTraits, "") {
    score_ = bind_policy(parse_specs("h2o(unit=query)").front());
  }
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.choice("join", join_, kJoinChoices,
             "costs of query heads: their mean, one set per KV head, or a set for each");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    const PolicyTraits& inner = score_->traits();
    if (inner.order_by_budget || inner.model_wide || inner.own_size || inner.transforms || inner.step_order) {
      throw UserError("{}(score={}): it needs one score per token; put {} around it instead", traits_.name,
                      inner.name, inner.name);
    }
  }
  Need needs() const override { return ScoreWrapper::needs() | Need::values; }
  Unit unit() const override { return joins() ? Unit::kv : ScoreWrapper::unit(); }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    if (!joins()) {
      score_->score(head, out);
      for (UnitScores& unit : out) unit.score = to_scores(costs(head.values(), unit));
      return;
    }
    std::vector<UnitScores> units(head.geometry().group);
    score_->score(head, units);
    std::vector<std::vector<double>> rows;
    for (const UnitScores& unit : units) rows.push_back(costs(head.values(), unit));
    out[0] = std::move(units[0]);
    out[0].score = to_scores(join_group(rows, Group::mean));
  }

 private:
  bool joins() const { return join_ == 0 && ScoreWrapper::unit() == Unit::query; }

  std::vector<double> costs(MatrixView<const float> values, const UnitScores& unit) const {
    std::vector<bool> stays(unit.score.size(), false);
    for (const TokenIndex t : unit.protected_tokens) stays[t] = true;
    return output_change(weights(score_->traits(), unit, stays), values, stays, fast);
  }
};

const RegisterPolicy<Caote<false>> registered_caote{kCaoteTraits};
const RegisterPolicy<Caote<true>> registered_fast{kFastTraits};

}  // namespace
}  // namespace kvsim
