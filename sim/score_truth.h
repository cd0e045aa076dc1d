// What a score is worth: how well it ranks tokens by the exact change of the outputs when each of them is
// removed.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "policies/policy.h"
#include "sim/exact_steps.h"

namespace kvsim {

/// Adds the squared changes of query head `head`'s outputs over the steps of `exact` to squares[T]
/// (policies/removal_cost.h).
void add_removal_squares(const ExactSteps& exact, const HeadBlock& block, std::size_t head,
                         std::span<double> squares);

/// What removing each token costs, over all decode steps, and the tokens by it.
struct RankedCost {
  explicit RankedCost(std::vector<float> of_tokens);
  std::vector<float> cost;        // [T]
  std::vector<TokenIndex> order;  // [T], dearest first
};

/// Costs of a KV head: the roots of the summed squared changes.
struct RemovalCosts {
  /// `squares` [group][T]: of each query head. `each_head`: orders of the query heads are asked for too.
  RemovalCosts(std::span<const std::vector<double>> squares, bool each_head);
  std::vector<RankedCost> of_query_head;  // [group] or empty
  RankedCost joint;                       // of all query heads together
};

/// The metric score_truth of one KV head: the rank correlation, over the prompt tokens that are not
/// protected, of the scores of `ranking` (all units of the layer) with the costs of the unit's query heads;
/// with one unit per query head the mean of their correlations.
double score_truth(const LayerRanking& ranking, std::size_t kv_head, const RemovalCosts& costs);

}  // namespace kvsim
