// What stands around the masked products of own_order_hopper.cu, for any GPU: budgets of tokens before them, comparisons after them.
#pragma once

#include <cuda_fp16.h>

#include "kernels/cuda/curve.h"

namespace kvsim::cuda {

inline constexpr int kMostMaskedCounts = 64;  // where walking the orders becomes faster

/// budgets[prompt][stride] = the first count that keeps the token, as a number; in.count where none does, and in rows beyond the last.
/// `rows` = the head's rows, rounded up to a multiple of 32.
template <typename Rank>
void launch_budgets(const OwnOrderArguments<Rank>& in, int rows, __half* budgets, cudaStream_t stream);

/// Adds up sums[part][count][rows][padded value_dim] and masses[part][count][rows] over parts and counts, and compares.
template <typename Rank>
void launch_compare_segments(const OwnOrderArguments<Rank>& in, const float* sums, const float* masses, int rows, int parts,
                             cudaStream_t stream);

}  // namespace kvsim::cuda
