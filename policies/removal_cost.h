// What the attention outputs lose when one token is taken out of the cache: the closed form that score_truth
// and oracle_output share.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/view.h"
#include "policies/policy.h"

namespace kvsim {

/// |o' - o| of one query, o' = the output with the token gone and the other weights renormalised (reference,
/// section 2.5; CAOTE, arXiv:2504.14051): a / (1 - a) * |v - o|, exact for a single token. `weight` is a,
/// `distance` is |v - o|. Where one token holds all the weight (a rounds to 1 in float), 1 - a counts as
/// 2^-24, half a unit in the last place of 1.
double removal_cost(double weight, double distance);

/// removal_cost of every token under one set of weights: alpha = weight / sum of the weights, each token
/// against o = sum of alpha v, or, with `fast`, against the plain mean of the values (CAOTE and FastCAOTE,
/// arXiv:2504.14051). `weight` [n], none negative; `values` [at least n, dv]; tokens that stay [n] have no
/// part in any of the sums and cost nothing.
std::vector<double> output_change(std::span<const double> weight, MatrixView<const float> values,
                                  const std::vector<bool>& stays, bool fast);

/// Adds the squares of removal_cost over the rows [begin, end) to squares[i] for every token i, row after
/// row: the sum over all rows is the squared change of the stacked outputs. `weights` is token-major, [at
/// least T, rows], `outputs` is channel-major, [dv, rows], `values` [at least T, dv]; T = squares.size(). The
/// same bits for any cut of the rows.
void add_removal_squares(MatrixView<const float> weights, MatrixView<const float> values,
                         MatrixView<const float> outputs, std::size_t begin, std::size_t end,
                         std::span<double> squares);

/// Root of the sum over all true decode steps of the squares, [T], for one query head: how much its outputs
/// over the decode change when this one token is gone. Needs Need::decode_queries and Need::values. Shared by
/// all variants.
std::span<const float> decode_removal_cost(const HeadFeatures& head, std::size_t query_head);

/// The same for the stacked outputs of several query heads: root of the sum of the heads' squares, token by
/// token.
std::vector<float> joint_removal_cost(std::span<const std::span<const float>> cost_of_query_head);

}  // namespace kvsim
