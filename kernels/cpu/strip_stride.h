// Distance between transposed rows, so that rows written side by side do not fall into one cache set.
#pragma once

#include <cstddef>

#include "kernels/view.h"

namespace kvsim {

/// At least `tokens` elements; rows start one cache line apart modulo the page, where a power of two would
/// put sixteen rows into the eight ways of one set.
template <typename T>
constexpr std::size_t strip_stride(std::size_t tokens) {
  constexpr std::size_t kPage = 4096;
  return round_up(tokens, kPage / sizeof(T)) + kAlignment / sizeof(T);
}

}  // namespace kvsim
