// Turning keys to other positions of the rotary embedding.
#pragma once

#include <span>

#include "policies/policy.h"

namespace kvsim {

/// Turns a vector by `delta` positions, in place: what stood at p then stands at p + delta. A factor on cosine and sine
/// that the vector already carries stays as it is. Channels beyond the rotary ones are left alone. Angles are products in
/// float, as kvpress computes them.
void turn(std::span<double> vector, const Rope& rope, double delta);

/// The kept keys (ascending positions) moved together: the i-th stands at position first + i (kvpress KeyRerotationPress,
/// and Finch). Row i of `keys` is the key of kept[i], at its own position. Without a rotary embedding a copy.
///
/// Both presses let later queries go on from the compressed length n; a recorded decode query stands at prompt + t instead,
/// and only distances matter, so that `first = prompt - n` is what Policy::transform hands out.
Matrix<float> moved_together(MatrixView<const float> keys, std::span<const TokenIndex> kept, const Rope& rope, std::size_t first);

/// Rows `kept` of a matrix.
Matrix<float> gathered(MatrixView<const float> rows, std::span<const TokenIndex> kept);

}  // namespace kvsim
