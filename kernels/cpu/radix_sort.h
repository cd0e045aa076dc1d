// A stable radix sort of (key, token) entries, ascending, as every order of the kernels needs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvsim {

/// Key in the high 32 bits, token in the low ones; ascending keys.
using SortEntry = std::uint64_t;

/// Buffers that a caller keeps from sort to sort.
struct SortBuffers {
  std::vector<SortEntry> entries;
  std::vector<SortEntry> spare;
  std::vector<std::uint32_t> starts;
};

/// Sorts the first n entries by their keys, equal keys as they stood. Three passes of 11 bits.
void sort_entries(SortBuffers& buffers, std::size_t n);

/// The same result, faster where keys are spread: two passes over the upper 22 of 31 key bits, then insertion
/// of the few that the lower 9 bits put elsewhere; falls back to sort_entries where they are many. Keys must
/// be below 2^31.
void sort_spread_entries(SortBuffers& buffers, std::size_t n);

}  // namespace kvsim
