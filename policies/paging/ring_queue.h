// A growing ring of page numbers: push at the new end, pop at the old end.
#pragma once

#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

class RingQueue {
 public:
  bool empty() const { return head_ == tail_; }
  std::size_t size() const { return head_ - tail_; }
  void push(Page page) {
    if (size() == ring_.size()) enlarge();
    ring_[head_++ & mask_] = page;
  }
  Page pop() { return ring_[tail_++ & mask_]; }

 private:
  void enlarge() {
    std::vector<Page> larger(ring_.empty() ? 16 : 2 * ring_.size());
    for (std::size_t i = tail_; i < head_; ++i) larger[i - tail_] = ring_[i & mask_];
    head_ -= tail_;
    tail_ = 0;
    ring_.swap(larger);
    mask_ = ring_.size() - 1;
  }

  std::vector<Page> ring_;
  std::size_t mask_ = 0, head_ = 0, tail_ = 0;
};

}  // namespace kvsim
