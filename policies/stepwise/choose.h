// What decode-time policies share: keeping the best slots, and shrinking their per-slot arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "policies/stepwise/stepwise_policy.h"

namespace kvsim {

/// Tokens that a policy never lets go: positions below `sinks`, and the `recent` newest slots.
struct Protection {
  std::uint32_t sinks = 0;
  std::uint32_t recent = 0;
};

/// Fills out.slots with all but `capacity` slots: what is protected stays, then the highest scores, ties to the earlier
/// position. A capacity below what is protected keeps the first of (sinks in order, then newest to oldest) and sets
/// out.clamped. O(slots). `score` [slots] must not be NaN (InternalError).
void keep_best(std::span<const TokenIndex> positions, std::span<const float> score, std::uint32_t capacity,
               Protection protection, Eviction& out);

/// Removes the entries of `slots` (ascending) from an array of `width` values per slot; the array may end before the last
/// slots (a policy that scores older tokens only).
template <typename T>
void erase_slots(std::vector<T>& values, std::span<const std::uint32_t> slots, std::size_t width = 1) {
  if (width == 0) return;
  const auto known = std::lower_bound(slots.begin(), slots.end(), values.size() / width);
  slots = slots.first(static_cast<std::size_t>(known - slots.begin()));
  if (slots.empty()) return;
  auto to = values.begin() + static_cast<std::ptrdiff_t>(slots[0] * width);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>((slots[i] + 1) * width);
    const auto last = i + 1 < slots.size() ? values.begin() + static_cast<std::ptrdiff_t>(slots[i + 1] * width) : values.end();
    to = std::move(first, last, to);
  }
  values.erase(to, values.end());
}

}  // namespace kvsim
