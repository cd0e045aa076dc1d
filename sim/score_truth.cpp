// What a score is worth.
#include "sim/score_truth.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "policies/removal_cost.h"
#include "sim/rank_correlation.h"

namespace kvsim {
namespace {

double unit_truth(const UnitScores& unit, std::span<const float> cost) {
  std::vector<bool> is_protected(cost.size(), false);
  for (const TokenIndex token : unit.protected_tokens) is_protected[token] = true;
  std::vector<float> score, truth;
  for (std::size_t i = 0; i < cost.size(); ++i) {
    if (is_protected[i]) continue;
    score.push_back(unit.score[i]);
    truth.push_back(cost[i]);
  }
  return rank_correlation(score, truth);
}

}  // namespace

void add_removal_squares(const ExactSteps& exact, const HeadBlock& block, std::size_t head,
                         std::span<double> squares) {
  if (DeviceHead* const device = exact.on_device())
    return device->add_removal_squares(head * exact.steps().count, (head + 1) * exact.steps().count, squares);
  const CurveInput in = exact.curve_input(block);
  const std::size_t steps = exact.steps().count;
  constexpr std::size_t kTokens = 256;  // of one task
  const std::size_t tasks = (squares.size() + kTokens - 1) / kTokens;
#pragma omp parallel for schedule(dynamic)
  for (std::size_t task = 0; task < tasks; ++task) {
    const std::size_t first = task * kTokens, count = std::min(kTokens, squares.size() - first);
    add_removal_squares(in.weights.rows_from(first, count), in.values.rows_from(first, count), in.exact,
                        head * steps, (head + 1) * steps, squares.subspan(first, count));
  }
}

double score_truth(const LayerScores& scores, std::size_t kv_head,
                   std::span<const std::vector<float>> cost_of_query_head) {
  const std::size_t group = cost_of_query_head.size();
  if (scores.unit == Unit::query) {
    double sum = 0;
    for (std::size_t h = 0; h < group; ++h)
      sum += unit_truth(scores.units[kv_head * group + h], cost_of_query_head[h]);
    return sum / static_cast<double>(group);
  }
  const std::vector<std::span<const float>> costs(cost_of_query_head.begin(), cost_of_query_head.end());
  return unit_truth(scores.units[kv_head], joint_removal_cost(costs));
}

}  // namespace kvsim
