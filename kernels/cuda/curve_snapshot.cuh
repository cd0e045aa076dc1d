// Sums of the consumers of curve_hopper.cu: how they begin, and the comparison with the exact outputs at a snapshot.
#pragma once

#include <math_constants.h>

#include "kernels/cuda/curve_shape.cuh"

namespace kvsim::cuda::hopper {

constexpr float kFloor = 1e-18f;

/// Sums of a consumer: Blocks x 64 rows x Columns channels, then the weights' sum (8 times).
template <int Columns, int Blocks>
struct Sums {
  static constexpr int kMass = Columns / 2;
  float at[Blocks][kMass + 4];
};

/// Rows and columns of a thread's sums.
struct Place {
  int row, column, side;  // first row (of block 0, half 0) and column
};

template <int Columns, int Blocks>
__device__ __forceinline__ void begin(const CurveCall& in, int row_end, const Place& place, Sums<Columns, Blocks>& sums) {
#pragma unroll
  for (int m = 0; m < Blocks; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row + m * 64 + half * 8;
      const bool present = row < row_end;
#pragma unroll
      for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = place.column + n * 8 + e;
          sums.at[m][n * 4 + half * 2 + e] = present && c < in.value_dim ? in.tail[static_cast<std::size_t>(row) * in.value_dim + c] : 0.0f;
        }
      sums.at[m][Sums<Columns, Blocks>::kMass + half * 2] = present ? in.tail_weight[row] : 0.0f;
      sums.at[m][Sums<Columns, Blocks>::kMass + half * 2 + 1] = 0.0f;
    }
}

/// Compares with the exact outputs and writes `snapshots` budgets from `first` on (counted over all rankings).
template <bool Deltas, int Columns, int Sides, int Blocks>
__device__ __forceinline__ void snapshot(const CurveCall& in, const RankingOnDevice& ranking, const Place& place, std::size_t first,
                                         int snapshots, const Sums<Columns, Blocks>& sums, float* part) {
  constexpr int kMass = Sums<Columns, Blocks>::kMass;
  const int lane = threadIdx.x % 32;
  int column = place.column;  // opaque, or the addresses of all of `exact` are computed before the loop and spill
  asm volatile("" : "+r"(column));
  const bool pairs = in.value_dim % 2 == 0;  // two channels are 8 aligned bytes
  // Squares are added up 64 columns at a time, so that a row's bits are the same whichever consumers have the columns.
  constexpr int kParts = Columns / 64;
  float mine[kParts] = {}, mine_held = 0;  // of the row that this thread finishes: lane % 4 of the four that its quad has
#pragma unroll
  for (int m = 0; m < Blocks; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row + m * 64 + half * 8;
      const bool present = row >= static_cast<int>(ranking.row_begin) && row < static_cast<int>(ranking.row_end);
      const float held = sums.at[m][kMass + half * 2];
      const float factor = held > 0 ? 1.0f / held : 0.0f;
      const int columns = present ? in.value_dim - column : 0;  // from this thread's first on
      const float* const exact = in.exact + static_cast<std::size_t>(present ? row : 0) * in.value_dim + column;
      float difference[Columns / 4];
#pragma unroll
      for (int i = 0; i < Columns / 4; ++i) difference[i] = 0.0f;
      if (pairs) {
#pragma unroll
        for (int n = 0; n < Columns / 8; ++n)
          if (n * 8 < columns) {
            const float2 two = *reinterpret_cast<const float2*>(exact + n * 8);
            difference[n * 2] = two.x;
            difference[n * 2 + 1] = two.y;
          }
      } else {
#pragma unroll
        for (int i = 0; i < Columns / 4; ++i)
          if (i / 2 * 8 + i % 2 < columns) difference[i] = exact[i / 2 * 8 + i % 2];
      }
      float square[kParts] = {};
#pragma unroll
      for (int i = 0; i < Columns / 4; ++i) {
        difference[i] = sums.at[m][i / 2 * 4 + half * 2 + i % 2] * factor - difference[i];
        square[i / 16] = fmaf(difference[i], difference[i], square[i / 16]);
      }
      if constexpr (Deltas) {  // braces: nvcc 13.0 drops what follows a discarded statement without them
        for (int b = 0; b < snapshots; ++b) {
          float* const to = in.delta + ((first + b) * in.value_dim + column) * in.result_stride + row;
#pragma unroll
          for (int i = 0; i < Columns / 4; ++i)
            if (i / 2 * 8 + i % 2 < columns) to[static_cast<std::size_t>(i / 2 * 8 + i % 2) * in.result_stride] = difference[i];
        }
      }
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        square[i] += __shfl_xor_sync(0xffffffffu, square[i], 1);
        square[i] += __shfl_xor_sync(0xffffffffu, square[i], 2);
        if (lane % 4 == m * 2 + half) mine[i] = square[i];
      }
      if (lane % 4 == m * 2 + half) mine_held = held;
    }
  const int at = lane % 4 / 2 * 64 + lane % 2 * 8, row = place.row + at;
  const bool writes = lane % 4 < 2 * Blocks && row >= static_cast<int>(ranking.row_begin) && row < static_cast<int>(ranking.row_end);
  double square = 0;
  if constexpr (Sides == 2) {  // the other consumer has the other columns
    const int slot = threadIdx.x % kGroupThreads;
#pragma unroll
    for (int i = 0; i < kParts; ++i) part[(place.side * kParts + i) * kGroupThreads + slot] = mine[i];
    meet(1, 2 * kGroupThreads);
#pragma unroll
    for (int i = 0; i < 2 * kParts; ++i) square += static_cast<double>(part[i * kGroupThreads + slot]);
    meet(1, 2 * kGroupThreads);
  } else {
#pragma unroll
    for (int i = 0; i < kParts; ++i) square += static_cast<double>(mine[i]);
  }
  if (writes && place.side == 0) {
    const double norm = in.norm[row];
    const float error = mine_held < kFloor ? CUDART_NAN_F : static_cast<float>(sqrt(norm > 0 ? square / norm : square));
    for (int i = 0; i < snapshots; ++i) {
      in.error[(first + i) * in.result_stride + row] = error;
      in.recall[(first + i) * in.result_stride + row] = mine_held;
    }
  }
}

}  // namespace kvsim::cuda::hopper
