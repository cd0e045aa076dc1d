// What the attention outputs lose when one token is taken out of the cache.
#include "policies/removal_cost.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/removal.h"

namespace kvsim {

double removal_cost(double weight, double distance) {
  return weight / std::max(1.0 - weight, kLeastRest) * distance;
}

std::vector<double> output_change(std::span<const double> weight, MatrixView<const float> values,
                                  const std::vector<bool>& stays, bool fast) {
  const auto free = static_cast<std::size_t>(std::count(stays.begin(), stays.end(), false));
  const double even = 1.0 / static_cast<double>(std::max<std::size_t>(1, free));
  double total = 0;
  for (std::size_t t = 0; t < weight.size(); ++t) total += stays[t] ? 0.0 : weight[t];
  std::vector<double> cost(weight.size()), centre(values.cols, 0.0);
  for (std::size_t t = 0; t < cost.size(); ++t) {
    const double alpha = total > 0 && !stays[t] ? weight[t] / total : 0.0;
    const double share = fast ? (stays[t] ? 0.0 : even) : alpha;
    for (std::size_t c = 0; c < centre.size(); ++c) centre[c] += share * static_cast<double>(values(t, c));
    cost[t] = alpha;
  }
  for (std::size_t t = 0; t < cost.size(); ++t) {
    double square = 0;
    for (std::size_t c = 0; c < centre.size(); ++c) {
      const double difference = static_cast<double>(values(t, c)) - centre[c];
      square += difference * difference;
    }
    cost[t] = removal_cost(cost[t], std::sqrt(square));
  }
  return cost;
}

void add_removal_squares(MatrixView<const float> weights, MatrixView<const float> values,
                         MatrixView<const float> outputs, std::size_t begin, std::size_t end,
                         std::span<double> squares) {
  removal_squares(weights, values, outputs, begin, end, squares);
}

std::span<const float> decode_removal_cost(const HeadFeatures& head, std::size_t query_head) {
  return head.shared("decode_removal_cost/" + std::to_string(query_head), [&] {
    const QueryRows rows{.source = QueryRows::Source::oracle};
    const MatrixView<const float> outputs = head.outputs(rows, query_head);
    Matrix<float> channel_major(outputs.cols, outputs.rows);
    for (std::size_t r = 0; r < outputs.rows; ++r)
      for (std::size_t c = 0; c < outputs.cols; ++c) channel_major(c, r) = outputs.row(r)[c];
    std::vector<double> squares(head.geometry().prompt, 0.0);
    add_removal_squares(head.attention(rows, query_head), head.values(), channel_major.view(), 0,
                        outputs.rows, squares);
    std::vector<float> cost(squares.size());
    for (std::size_t i = 0; i < cost.size(); ++i) cost[i] = static_cast<float>(std::sqrt(squares[i]));
    return cost;
  });
}

std::vector<float> joint_removal_cost(std::span<const std::span<const float>> cost_of_query_head) {
  std::vector<float> joint(cost_of_query_head.front().size());
  for (std::size_t i = 0; i < joint.size(); ++i) {
    double sum = 0;
    for (const std::span<const float> cost : cost_of_query_head)
      sum += static_cast<double>(cost[i]) * static_cast<double>(cost[i]);
    joint[i] = static_cast<float>(std::sqrt(sum));
  }
  return joint;
}

}  // namespace kvsim
