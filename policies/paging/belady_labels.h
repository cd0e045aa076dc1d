// Belady's own decisions as labels.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

/// labels[t] = true when Belady, with the same capacity in pages, evicts the page of request t before its
/// next request. `next` as in CacheSetup::next. O(n log k).
std::vector<bool> belady_labels(std::span<const Page> pages, std::span<const std::uint32_t> next,
                                std::uint64_t capacity);

}  // namespace kvsim
