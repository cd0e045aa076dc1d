// Pages that were evicted lately: a FIFO queue of bounded size without their data.
#pragma once

#include <deque>

#include "policies/paging/page_map.h"

namespace kvsim {

/// Removed entries stay in the queue until they reach its end or are too many, so every operation is O(1)
/// amortised.
class GhostList {
 public:
  GhostList(std::uint64_t capacity, bool by_bytes) : capacity_(capacity), by_bytes_(by_bytes) {}
  void grow(Page limit) {
    stamp_.grow(limit);
    if (by_bytes_) size_of_.grow(limit);
  }
  bool contains(Page page) const { return stamp_[page] != 0; }

  void push(Page page, std::uint64_t size) {
    remove(page);
    stamp_[page] = ++pushed_;
    if (by_bytes_) size_of_[page] = size;
    used_ += size;
    ++count_;
    queue_.push_back({page, pushed_});
    while (used_ > capacity_ && !queue_.empty()) {
      const Entry oldest = queue_.front();
      queue_.pop_front();
      if (stamp_[oldest.page] == oldest.stamp) remove(oldest.page);
    }
    if (queue_.size() > 2 * count_ + kSlack) compact();
  }
  void remove(Page page) {
    if (stamp_[page] == 0) return;
    stamp_[page] = 0;
    used_ -= by_bytes_ ? size_of_[page] : 1;
    --count_;
  }

 private:
  struct Entry {
    Page page;
    std::uint32_t stamp;
  };
  static constexpr std::size_t kSlack = 64;

  void compact() {
    std::deque<Entry> kept;
    for (const Entry& e : queue_) {
      if (stamp_[e.page] == e.stamp) kept.push_back(e);
    }
    queue_.swap(kept);
  }

  std::uint64_t capacity_;
  bool by_bytes_;
  std::deque<Entry> queue_;
  PageMap<std::uint32_t> stamp_{0};  // number of the push, from 1; 0 = not a ghost
  PageMap<std::uint64_t> size_of_{1};
  std::uint64_t used_ = 0, count_ = 0;
  std::uint32_t pushed_ = 0;
};

}  // namespace kvsim
