// Errors of caches whose tokens take the positions of their slots when a query meets them.
#pragma once

#include "sim/stepwise/tile_measure.h"

namespace kvsim {

/// error[h * 16 + lane] of every step of the tile: softmax over what it could read, with key and query rotated to the
/// places of their slots (0, 1, 2, ... in ascending position; the step's own token last). Only the distance counts, so the
/// query is turned by how much nearer a slot came, once per distance. `exact` is the tile's exact outputs [dv, 16 per query
/// head]; `delta` (may be null) receives o' - o in the same shape. In double.
void shifted_errors(const TileInput& in, const HeldCache& cache, MatrixView<const float> exact, float* error, float* delta);

}  // namespace kvsim
