// The average rotation of coming positions, which turns statistics of queries before the rotary embedding
// into an expectation of future queries.
#pragma once

#include <cstddef>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Mean rotation over positions first .. first + count - 1: channel a[i] and b[i] turn by a scaled angle
/// whose mean cosine and sine these are. Channels that the rotary embedding leaves alone stay as they are.
struct MeanRotation {
  std::vector<std::size_t> a, b;
  std::vector<double> cosine, sine;

  MeanRotation(const Rope& rope, std::size_t first, std::size_t count);
  /// x <- R x for the vector at x[0], x[stride], ...
  void apply(double* x, std::size_t stride) const;
};

/// Keys as they were before the rotary embedding, for the tokens [first, first + count); token t stands at
/// position t.
Matrix<float> keys_before_rotation(const HeadFeatures& head, std::size_t first, std::size_t count);

}  // namespace kvsim
