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

/// The metric score_truth of one KV head: the rank correlation, over the prompt tokens that are not
/// protected, of `scores` (all units of the layer) with the root of the summed squared changes over all
/// decode steps and the unit's query heads; with one unit per query head the mean of their correlations.
/// `cost_of_query_head` is [group][T].
double score_truth(const LayerScores& scores, std::size_t kv_head,
                   std::span<const std::vector<float>> cost_of_query_head);

}  // namespace kvsim
