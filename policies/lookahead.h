// Which recorded first pass of Lookahead Q-Cache serves which budget.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Names passes: "" = all that are there (those of snapkv, the paper's first pass, where several methods were
/// recorded), a method such as "snapkv" = its passes at all capacities, a full name such as "snapkv-256" =
/// that one.
struct PassChoice {
  std::string name;

  /// Whether the choice can depend on the budget; decided without the trace, by the form of the name.
  bool by_budget() const;
  /// The passes chosen from, ascending in capacity. Throws UserError listing the recorded ones where there is
  /// none.
  std::vector<LookaheadPass> candidates(const LayerGeometry& layer) const;
  /// The pass of the nearest capacity not above `budget`, or the smallest there is.
  LookaheadPass at(const LayerGeometry& layer, std::uint32_t budget) const;
};

/// Throws UserError where the pass holds fewer than `length` pseudo queries.
void check_length(std::string_view policy, const LookaheadPass& pass, std::uint32_t length);

/// A policy with several passes scores by each of them: UnitScores::score by the first of
/// PassChoice::candidates, UnitScores::extra by the others: their number, then [number][T]; what a wrapper
/// appends behind them is left alone. join_passes applies `join` to the scores of every pass.
void join_passes(LayerScores& scores, const std::function<void(LayerScores&)>& join);
/// Place among the candidates of the pass that a budget takes.
std::size_t pass_index(const PassChoice& choice, const LayerGeometry& layer, std::uint32_t budget);
/// The ranking by the scores of one pass; `ranking` itself for the first.
LayerRanking ranking_of_pass(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking,
                             std::size_t pass);

/// Policies that read pseudo queries: the results name the pass that each budget took.
class ReadsLookahead {
 public:
  virtual ~ReadsLookahead() = default;
  /// Name of the pass at this budget; empty where none is read.
  virtual std::string pass_at(const LayerGeometry& layer, std::uint32_t budget) const = 0;
  /// `ranking` by the scores of that pass.
  virtual LayerRanking ranking_at(const LayerGeometry& layer, const LayerRanking& ranking,
                                  std::uint32_t budget) const = 0;
};

/// The pass that a policy, or the one inside a wrapper, reads at this budget; empty where it reads none.
std::string lookahead_pass_at(const Policy& policy, const LayerGeometry& layer, std::uint32_t budget);
/// The ranking that this policy, or the one inside a wrapper, goes by at this budget: for allocators around
/// it.
LayerRanking ranking_at(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking,
                        std::uint32_t budget);

}  // namespace kvsim
