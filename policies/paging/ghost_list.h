// Pages that were evicted lately: a FIFO queue of bounded size without their data.
#pragma once

#include <deque>

#include "policies/paging/page_map.h"

namespace kvsim {

/// Removed entries stay in the queue until they reach its end or are too many, so every operation is O(1)
/// amortised. Of several entries of one page only the newest can be alive; a byte per page counts the dead
/// ones before it.
class GhostList {
 public:
  GhostList(std::uint64_t capacity, bool by_bytes) : capacity_(capacity), by_bytes_(by_bytes) {}
  void grow(Page limit) {
    mark_.grow(limit);
    if (by_bytes_) size_of_.grow(limit);
  }
  bool contains(Page page) const { return (mark_[page] & kGhost) != 0; }

  void push(Page page, std::uint64_t size) {
    remove(page);
    mark_[page] |= kGhost;
    if (by_bytes_) size_of_[page] = size;
    used_ += size;
    ++count_;
    queue_.push_back(page);
    while (used_ > capacity_) {
      const Page oldest = queue_.front();
      queue_.pop_front();
      if (!buries(oldest)) forget(oldest);
    }
    if (queue_.size() > 2 * count_ + kSlack) compact();
  }
  void remove(Page page) {
    if (!contains(page)) return;
    forget(page);
    if (++mark_[page] == kMostDead) compact();
  }

 private:
  static constexpr std::uint8_t kGhost = 0x80, kMostDead = 0x7F;
  static constexpr std::size_t kSlack = 64;

  void forget(Page page) {
    mark_[page] &= static_cast<std::uint8_t>(~kGhost);
    used_ -= by_bytes_ ? size_of_[page] : 1;
    --count_;
  }
  /// For the oldest entry of a page, which leaves the queue: true if it was dead.
  bool buries(Page page) {
    if ((mark_[page] & kMostDead) == 0) return false;
    --mark_[page];
    return true;
  }
  void compact() {
    std::deque<Page> kept;
    for (const Page page : queue_) {
      if (!buries(page)) kept.push_back(page);
    }
    queue_.swap(kept);
  }

  std::uint64_t capacity_;
  bool by_bytes_;
  std::deque<Page> queue_;
  PageMap<std::uint8_t> mark_{0};  // kGhost, and the number of dead entries
  PageMap<std::uint64_t> size_of_{1};
  std::uint64_t used_ = 0, count_ = 0;
};

}  // namespace kvsim
