// A set of slots with constant-time insert, remove, refill and uniform draw.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

/// `order_` is always a permutation of all slots whose first size_ are the members, so "all slots" costs
/// nothing.
class SlotSet {
 public:
  void resize(std::size_t slots) {
    for (std::size_t s = order_.size(); s < slots; ++s) {
      order_.push_back(static_cast<Slot>(s));
      place_.push_back(static_cast<Slot>(s));
    }
  }
  std::uint32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  bool has(Slot s) const { return place_[s] < size_; }
  Slot operator[](std::uint32_t i) const { return order_[i]; }
  void clear() { size_ = 0; }
  void fill() { size_ = static_cast<std::uint32_t>(order_.size()); }
  void add(Slot s) {
    if (!has(s)) swap_to(s, size_++);
  }
  void remove(Slot s) {
    if (has(s)) swap_to(s, --size_);
  }
  /// Uniform member; not for the empty set.
  Slot draw(RandomSource& random) {
    const std::uint32_t i = random.below(size_);
    return random.ascending() ? nth(i) : order_[i];
  }
  /// The i-th smallest member, O(size).
  Slot nth(std::uint32_t i) const {
    std::vector<Slot> members(order_.begin(), order_.begin() + size_);
    std::nth_element(members.begin(), members.begin() + i, members.end());
    return members[i];
  }

 private:
  void swap_to(Slot s, std::uint32_t place) {
    const std::uint32_t from = place_[s];
    const Slot other = order_[place];
    order_[from] = other;
    place_[other] = from;
    order_[place] = s;
    place_[s] = place;
  }

  std::vector<Slot> order_;
  std::vector<Slot> place_;
  std::uint32_t size_ = 0;
};

}  // namespace kvsim
