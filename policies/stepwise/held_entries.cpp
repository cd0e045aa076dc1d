// Keys and values that a cache holds, as matrices.
#include "policies/stepwise/held_entries.h"

#include <algorithm>

namespace kvsim {

Matrix<float> held_keys(const CacheView& cache, std::size_t key_dim, std::size_t first) {
  Matrix<float> keys(cache.slots() - first, key_dim);
  for (std::size_t s = first; s < cache.slots(); ++s)
    std::copy_n(cache.key(s).data(), key_dim, keys.row(s - first));
  return keys;
}

Matrix<float> held_values(const CacheView& cache, std::size_t value_dim, std::size_t first) {
  Matrix<float> values(cache.slots() - first, value_dim);
  for (std::size_t s = first; s < cache.slots(); ++s)
    std::copy_n(cache.value(s).data(), value_dim, values.row(s - first));
  return values;
}

}  // namespace kvsim
