// A cache that follows other caches lazily: it evicts only on its own misses, and then what its leader does
// not hold.
#pragma once

#include <algorithm>
#include <vector>

#include "policies/paging/page_map.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {

/// Own residents C. For every leader i the pages of C that it does not hold are kept in a heap by last use,
/// least recent first, so that following costs O(log k). The leader's content is reported by loaded() and
/// evicted(). A page that was just requested is held by every leader, so last uses never change inside a
/// heap.
class LazyFollower {
 public:
  LazyFollower(std::uint64_t capacity, std::size_t leaders) : capacity_(capacity), leaders_(leaders) {}

  void grow(Page limit) {
    slot_of_.grow(limit);
    for (Leader& leader : leaders_) leader.holds.grow(limit);
  }
  bool contains(Page page) const { return slot_of_.find(page) != kNoSlot; }
  bool full() const { return page_of_.size() == capacity_; }

  void loaded(std::size_t i, Page page) {
    leaders_[i].holds[page] = 1;
    if (slot_of_[page] != kNoSlot) leaders_[i].others.remove(slot_of_[page]);
  }
  void evicted(std::size_t i, Page page) {
    leaders_[i].holds[page] = 0;
    const Slot slot = slot_of_[page];
    if (slot != kNoSlot && !leaders_[i].others.has(slot)) leaders_[i].others.insert(slot, -last_use_[slot]);
  }
  /// A request that hits.
  void touch(Page page) {
    const Slot slot = slot_of_[page];
    last_use_[slot] = ++clock_;
    for (Leader& leader : leaders_) leader.others.update(slot, -last_use_[slot]);
  }
  /// A request that misses: loads the page; when full, evicts the least recently used page that leader i does
  /// not hold. Returns the evicted page or kNoPage.
  Page load(std::size_t i, Page page) {
    Page gone = kNoPage;
    Slot slot;
    if (!full()) {
      slot = static_cast<Slot>(page_of_.size());
      page_of_.push_back(page);
      last_use_.push_back(0);
      for (Leader& leader : leaders_) leader.others.resize(page_of_.size());
    } else {
      slot = leaders_[i].others.top();
      gone = page_of_[slot];
      slot_of_[gone] = kNoSlot;
      for (Leader& leader : leaders_) leader.others.remove(slot);
    }
    page_of_[slot] = page;
    slot_of_[page] = slot;
    last_use_[slot] = ++clock_;
    for (Leader& leader : leaders_) {
      if (leader.holds[page] == 0) leader.others.insert(slot, -last_use_[slot]);
    }
    return gone;
  }

 private:
  struct Leader {
    PageMap<std::uint8_t> holds{0};
    SlotHeap<std::int64_t> others;  // own slots whose page the leader does not hold, key = -last use
  };
  std::uint64_t capacity_;
  std::vector<Leader> leaders_;
  PageMap<Slot> slot_of_{kNoSlot};
  std::vector<Page> page_of_;
  std::vector<std::int64_t> last_use_;
  std::int64_t clock_ = 0;
};

}  // namespace kvsim
