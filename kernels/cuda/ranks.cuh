// How weights become keys that sort, and what the needed sets hold.
#pragma once

#include "kernels/cuda/kernels.h"

namespace kvsim::cuda {

inline constexpr std::uint32_t kHeaviest =
    0x3F800000u;  // bits of 1.0f: weights lie in [0, 1], their bits order as they do
inline constexpr std::uint32_t kUnseen =
    kHeaviest + 1;  // after every visible token, those of weight 0 included
inline constexpr int kKeyBits = 30;

/// Ascending = heaviest first.
__device__ inline std::uint32_t key_of(float weight) { return kHeaviest - __float_as_uint(weight); }
__device__ inline double weight_of_key(std::uint32_t key) {
  return static_cast<double>(__uint_as_float(kHeaviest - key));
}

/// A token is needed while the mass before it falls short of the fraction.
static __constant__ double kNeededMass[kFractions] = {0.5, 0.9, 0.99};

}  // namespace kvsim::cuda
