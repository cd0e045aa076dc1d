// Squared changes of attention outputs when one token at a time is taken out of the cache.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/view.h"

namespace kvsim {

/// The least that 1 - a counts as: half a unit in the last place of 1, where a rounds to 1 in float.
inline constexpr double kLeastRest = 0x1p-24;

/// squares[i] += sum over the rows [begin, end), row after row, of (a / (1 - a))^2 |v_i - o|^2: the squared
/// change of a row's output o when token i, which it weighs a, is gone and the other weights are renormalised
/// (CAOTE, arXiv:2504.14051). `weights` is token-major, [at least T, rows], `outputs` channel-major, [dv,
/// rows], `values` [at least T, dv]; T = squares.size(). |v - o|^2 accumulates over channels in float, the
/// rest in double; no alignment needed. The same bits for any cut of the rows.
void removal_squares(MatrixView<const float> weights, MatrixView<const float> values,
                     MatrixView<const float> outputs, std::size_t begin, std::size_t end,
                     std::span<double> squares);

}  // namespace kvsim
