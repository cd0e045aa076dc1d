// Scores of the keys that a cache holds.
#pragma once

#include "kernels/view.h"
#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// Keys of all slots, [slots, d], copied: views hand them out one by one.
Matrix<float> held_keys(const CacheView& cache, std::size_t key_dim);

}  // namespace kvsim
