// Total orders on scores: larger first, then the earlier position, on every device and in every sort.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/view.h"

namespace kvsim {

/// Bits that order floats as unsigned integers; -0 and +0 become equal. Not for NaN.
inline std::uint32_t ordered_bits(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// Key whose ascending order is: larger score first, then lower index.
struct OrderKey {
  std::uint64_t bits;
  OrderKey(float score, TokenIndex index)
      : bits(static_cast<std::uint64_t>(~ordered_bits(score)) << 32 | index) {}
  TokenIndex index() const { return static_cast<TokenIndex>(bits); }
  friend auto operator<=>(const OrderKey&, const OrderKey&) = default;
};

/// Writes the indices 0..n-1 of `scores` to `order`, best first (stable radix sort, O(n)). Scores must not be NaN.
void sort_descending(std::span<const float> scores, std::span<TokenIndex> order);

}  // namespace kvsim
