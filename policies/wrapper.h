// A policy around another one: takes its scores, and changes what is done with them.
#pragma once

#include <memory>
#include <string_view>

#include "policies/policy.h"

namespace kvsim {

/// Passes everything on to the policy under the key `score`. What a wrapper adds it overrides.
class ScoreWrapper : public Policy {
 public:
  /// `inner` names the policy that scores when the spec names none.
  ScoreWrapper(const PolicyTraits& traits, std::string_view inner);

  const PolicyTraits& traits() const override { return traits_; }
  /// Throws UserError where no policy is given.
  void prepare(Resources& resources) override;
  void check(const LayerGeometry& layer) const override { score_->check(layer); }
  Need needs() const override { return score_ ? score_->needs() : Need::none; }
  std::uint32_t window() const override { return score_ ? score_->window() : 0; }
  Unit unit() const override { return score_ ? score_->unit() : Unit::kv; }
  Scope scope() const override { return score_ ? score_->scope() : Scope::head; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override { score_->score(head, out); }
  void join(const LayerGeometry& layer, LayerScores& scores) const override { score_->join(layer, scores); }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    score_->allocate(layer, ranking, budget, kept);
  }
  void reorder(const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
               std::span<const std::uint32_t> kept, std::span<std::vector<TokenIndex>> order) const override {
    score_->reorder(layer, ranking, budget, kept, order);
  }

  std::vector<float> summarise(const LayerGeometry& layer, const LayerRanking& ranking) const override {
    return score_->summarise(layer, ranking);
  }
  Transformed transform(const HeadFeatures& head, std::size_t query_head, std::span<const TokenIndex> kept) const override {
    return score_->transform(head, query_head, kept);
  }

  /// The policy that scores; null where none is given.
  const Policy* inner() const { return score_.get(); }

 protected:
  /// Declares `score` and takes over what its traits imply: foresight, windows, nested sets.
  void score_field(FieldVisitor& visitor);
  /// Sets a trait only where it changes, so that printing a policy that others use writes nothing.
  static void update(bool& trait, bool value) {
    if (trait != value) trait = value;
  }

  PolicyTraits traits_;
  PolicyTraits own_traits_;
  std::unique_ptr<Policy> score_;
};

}  // namespace kvsim
