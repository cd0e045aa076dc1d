// An indexed 4-ary heap over slots: largest key first, ties to the lowest slot.
#pragma once

#include <algorithm>
#include <vector>

#include "policies/paging/page_policy.h"

namespace kvsim {

/// Keys stay with their slots while a slot is hidden. O(log k) per change. `Key` needs < and ==.
template <typename Key = double>
class SlotHeap {
 public:
  void resize(std::size_t slots) {
    key_.resize(slots, Key{});
    place_.resize(slots, kNoSlot);
  }
  bool empty() const { return heap_.empty(); }
  std::size_t size() const { return heap_.size(); }
  bool has(Slot s) const { return place_[s] != kNoSlot; }
  Key key(Slot s) const { return key_[s]; }
  Slot top() const { return heap_.front(); }

  void insert(Slot s, Key key) {
    key_[s] = key;
    place_[s] = static_cast<Slot>(heap_.size());
    heap_.push_back(s);
    up(heap_.size() - 1);
  }
  /// Changes the key; a slot that is not in the heap (hidden) only remembers it.
  void update(Slot s, Key key) {
    const Key old = key_[s];
    key_[s] = key;
    if (!has(s)) return;
    if (old < key) {
      up(place_[s]);
    } else {
      down(place_[s]);
    }
  }
  void remove(Slot s) {
    if (!has(s)) return;
    const std::size_t i = place_[s];
    place_[s] = kNoSlot;
    const Slot last = heap_.back();
    heap_.pop_back();
    if (i == heap_.size()) return;
    heap_[i] = last;
    place_[last] = static_cast<Slot>(i);
    up(i);
    down(place_[last]);
  }
  /// Gives every slot in the heap the key key_of(slot): O(size).
  template <typename KeyOf>
  void rekey(KeyOf key_of) {
    for (const Slot s : heap_) key_[s] = key_of(s);
    for (std::size_t i = heap_.size() / 4 + 1; i-- > 0;) {
      if (i < heap_.size()) down(i);
    }
  }
  void hide(Slot s) { remove(s); }
  void show(Slot s) { insert(s, key_[s]); }

 private:
  bool before(Slot a, Slot b) const { return key_[b] < key_[a] || (key_[a] == key_[b] && a < b); }
  void set(std::size_t i, Slot s) {
    heap_[i] = s;
    place_[s] = static_cast<Slot>(i);
  }
  void up(std::size_t i) {
    const Slot s = heap_[i];
    while (i > 0) {
      const std::size_t parent = (i - 1) / 4;
      if (!before(s, heap_[parent])) break;
      set(i, heap_[parent]);
      i = parent;
    }
    set(i, s);
  }
  void down(std::size_t i) {
    const Slot s = heap_[i];
    for (;;) {
      const std::size_t first = 4 * i + 1;
      if (first >= heap_.size()) break;
      std::size_t best = first;
      for (std::size_t c = first + 1; c < std::min(first + 4, heap_.size()); ++c) {
        if (before(heap_[c], heap_[best])) best = c;
      }
      if (!before(heap_[best], s)) break;
      set(i, heap_[best]);
      i = best;
    }
    set(i, s);
  }

  std::vector<Key> key_;
  std::vector<Slot> place_;
  std::vector<Slot> heap_;
};

}  // namespace kvsim
