// What a score is worth.
#include "sim/score_truth.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "kernels/order.h"
#include "policies/removal_cost.h"
#include "sim/rank_correlation.h"

namespace kvsim {
namespace {

double unit_truth(const LayerRanking& ranking, std::size_t u, const RankedCost& cost) {
  const UnitScores& unit = ranking.scores.units[u];
  // An order begins with the protected tokens.
  const std::span<const TokenIndex> free = std::span(ranking.order[u]).subspan(unit.protected_tokens.size());
  std::vector<bool> is_protected(cost.cost.size(), false);
  for (const TokenIndex token : unit.protected_tokens) is_protected[token] = true;
  std::vector<TokenIndex> dearest;
  dearest.reserve(free.size());
  std::copy_if(cost.order.begin(), cost.order.end(), std::back_inserter(dearest),
               [&](TokenIndex token) { return !is_protected[token]; });
  return rank_correlation(RankedValues{unit.score, free}, RankedValues{cost.cost, dearest});
}

std::vector<float> joint_cost(std::span<const std::vector<float>> cost_of_query_head) {
  const std::vector<std::span<const float>> costs(cost_of_query_head.begin(), cost_of_query_head.end());
  return joint_removal_cost(costs);
}

std::vector<std::vector<float>> roots(std::span<const std::vector<double>> squares) {
  std::vector<std::vector<float>> costs;
  for (const std::vector<double>& of_head : squares) {
    std::vector<float>& cost = costs.emplace_back(of_head.size());
    for (std::size_t i = 0; i < cost.size(); ++i) cost[i] = static_cast<float>(std::sqrt(of_head[i]));
  }
  return costs;
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

RankedCost::RankedCost(std::vector<float> of_tokens) : cost(std::move(of_tokens)), order(cost.size()) {
  sort_descending(cost, order);
}

RemovalCosts::RemovalCosts(std::span<const std::vector<double>> squares, bool each_head)
    : joint(joint_cost(roots(squares))) {
  if (!each_head) return;
  for (std::vector<float>& cost : roots(squares)) of_query_head.emplace_back(std::move(cost));
}

double score_truth(const LayerRanking& ranking, std::size_t kv_head, const RemovalCosts& costs) {
  if (ranking.scores.unit != Unit::query) return unit_truth(ranking, kv_head, costs.joint);
  const std::size_t group = costs.of_query_head.size();
  double sum = 0;
  for (std::size_t h = 0; h < group; ++h)
    sum += unit_truth(ranking, kv_head * group + h, costs.of_query_head[h]);
  return sum / static_cast<double>(group);
}

}  // namespace kvsim
