// Keys and values that a cache holds, as matrices.
#pragma once

#include "kernels/view.h"
#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// Keys of the slots from `first` on, [slots - first, d], copied: views hand them out one by one.
Matrix<float> held_keys(const CacheView& cache, std::size_t key_dim, std::size_t first = 0);
/// Their values, [slots - first, dv].
Matrix<float> held_values(const CacheView& cache, std::size_t value_dim, std::size_t first = 0);

}  // namespace kvsim
