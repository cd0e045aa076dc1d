// What a score is multiplied by: the values behind the tokens (reference, section 7.1, C7).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

enum class ValueNorm : std::uint8_t { none, l1, l2, l2sq };

/// How values enter a score.
struct ValuePart {
  enum class Kind : std::uint8_t {
    none,
    l1,         // * |v|_1 (VATP)
    l2,         // * |v|_2
    l2sq,       // * |v|_2^2 (OBCache)
    wo,         // (score + epsilon) * |v W_O|_1, mean over the query heads that share the score (CriticalKV)
    caote,      // a / (1 - a) |v - sum a v|, a = score / sum of scores (CAOTE)
    fast_caote  // the same with the mean of the values in place of sum a v
  };
  Kind kind = Kind::none;
  double epsilon = 1e-4;  // of wo
};

/// What it reads.
Need value_needs(const ValuePart& part);

/// Applies the part to rows[query head] of the group, or to one joined row; tokens behind the row's end play
/// no part, and `guarded` ones take no share of the output (caote).
void weigh_by_value(const ValuePart& part, const HeadFeatures& head, std::span<const TokenIndex> guarded,
                    std::vector<std::vector<double>>& rows);

/// Norms of the rows of a matrix, in double.
std::vector<double> row_norms(MatrixView<const float> rows, ValueNorm norm);
/// |v W_O|_1 of every prompt token through the rows of W_O that the query head reads, [T], computed once.
std::span<const float> projected_norms(const HeadFeatures& head, std::size_t query_head);

}  // namespace kvsim
