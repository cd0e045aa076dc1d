// What the kernels share of a softmax whose slices are not joined yet.
#pragma once

#include <cfloat>

#include "kernels/cuda/kernels.h"

namespace kvsim::cuda {

/// Tokens first .. last - 1 that a query at `position` sees.
struct Seen {
  int first, last;
};
__device__ inline Seen seen_by(std::uint32_t position, unsigned window, int tokens) {
  const int last = position >= static_cast<unsigned>(tokens) ? tokens : static_cast<int>(position) + 1;
  const int first = window == 0 || position < window
                        ? 0
                        : static_cast<int>(min(position + 1 - window, static_cast<unsigned>(last)));
  return {first, last};
}

/// 2^n, 0 where that is far below any float.
__device__ inline double two_to(int n) { return n < -1000 ? 0.0 : __hiloint2double((1023 + n) << 20, 0); }

/// What parts of a slice are multiplied with, as two floats: units that convert doubles are few.
struct Factor {
  float high, low;
};
__device__ inline Factor factor_of_row(double inverse) {
  const auto high = static_cast<float>(inverse);
  return {high, static_cast<float>(inverse - static_cast<double>(high))};
}
/// The row's factor times 2^n, n <= 0; 0 where that leaves no normal weight.
__device__ inline Factor factor_of_slice(const Factor& row, int n) {
  const float power = n < -126 ? 0.0f : __int_as_float((n + 127) << 23);
  return {row.high * power, row.low * power};
}

/// The weight of a token: the one rounding that all kernels agree on. What falls below the normal floats
/// becomes 0, as on the CPU.
__device__ inline float weight_of(float part, const Factor& slice) {
  const float w = fminf(fmaf(part, slice.high, part * slice.low), 1.0f);
  return w < FLT_MIN ? 0.0f : w;
}

}  // namespace kvsim::cuda
