// The cache that predictions foresee: what "evict the farthest predicted next use" holds after every request.
#pragma once

#include <vector>

#include "policies/paging/page_map.h"
#include "policies/paging/predictor.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {

/// With exact next uses this is Belady's cache. Pages of one size; ties to the lowest slot.
class PredictedState {
 public:
  explicit PredictedState(std::uint64_t capacity) : capacity_(capacity) {}
  void grow(Page limit) { slot_of_.grow(limit); }
  bool contains(Page page) const { return slot_of_.find(page) != kNoSlot; }

  /// Returns the page that leaves, or kNoPage; the requested page is held afterwards. O(log k).
  Page request(Page page, double next_use) {
    Slot slot = slot_of_[page];
    Page gone = kNoPage;
    if (slot != kNoSlot) {
      heap_.update(slot, next_use);
      return gone;
    }
    if (page_of_.size() < capacity_) {
      slot = static_cast<Slot>(page_of_.size());
      page_of_.push_back(page);
      heap_.resize(page_of_.size());
    } else {
      slot = heap_.top();
      heap_.remove(slot);
      gone = page_of_[slot];
      slot_of_[gone] = kNoSlot;
      page_of_[slot] = page;
    }
    slot_of_[page] = slot;
    heap_.insert(slot, next_use);
    return gone;
  }

 private:
  std::uint64_t capacity_;
  PageMap<Slot> slot_of_{kNoSlot};
  std::vector<Page> page_of_;
  SlotHeap<double> heap_;
};

/// The next use as a number that orders: never is beyond all.
inline double exact_next_use(const PageRequest& request) { return static_cast<double>(request.next_use); }

}  // namespace kvsim
