// Distributions as bytes: what part files store, about two bytes a bin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sim/distribution_sum.h"
#include "sim/results.h"

namespace kvsim {

/// Appends count, sum, minimum, maximum (exact) and the bins as differences, all integers in 7-bit groups.
void pack(const Distribution& distribution, std::vector<std::uint8_t>& out);

/// Reads one distribution and moves `bytes` behind it. False when the bytes end early or make no sense.
bool unpack(std::span<const std::uint8_t>& bytes, Distribution& out);
/// The same, added to what `out` holds; bytes that make no sense may have been added in part.
bool unpack(std::span<const std::uint8_t>& bytes, DistributionSum& out);

}  // namespace kvsim
