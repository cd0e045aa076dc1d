// Distributions as bytes: what part files store, about two bytes a bin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sim/results.h"

namespace kvsim {

/// Appends count, sum, minimum, maximum (exact) and the bins as differences, all integers in 7-bit groups.
void pack(const Distribution& distribution, std::vector<std::uint8_t>& out);

/// Reads one distribution and moves `bytes` behind it. False when the bytes end early or make no sense.
bool unpack(std::span<const std::uint8_t>& bytes, Distribution& out);

}  // namespace kvsim
