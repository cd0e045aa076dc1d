// Several LRU lists of pages, each page in at most one of them: the material of ARC, 2Q, LIRS and TinyLFU.
#pragma once

#include <vector>

#include "policies/paging/page_map.h"

namespace kvsim {

template <std::size_t kLists>
class PageLists {
 public:
  static constexpr std::size_t kNoList = kLists;

  void grow(Page limit) { entry_of_.grow(limit); }
  std::size_t list_of(Page page) const {
    const Slot e = entry_of_.find(page);
    return e == kNoSlot ? kNoList : entries_[e].list;
  }
  bool empty(std::size_t list) const { return ends_[list].front == kNoSlot; }
  /// Sum of sizes, and number of pages.
  std::uint64_t size(std::size_t list) const { return ends_[list].size; }
  std::uint64_t count(std::size_t list) const { return ends_[list].count; }
  Page back(std::size_t list) const { return entries_[ends_[list].back].page; }
  std::uint64_t size_of(Page page) const {
    const Slot e = entry_of_[page];
    return e < sizes_.size() ? sizes_[e] : 1;
  }

  void push_front(std::size_t list, Page page, std::uint64_t size) {
    Slot e;
    if (free_.empty()) {
      e = static_cast<Slot>(entries_.size());
      entries_.push_back({});
    } else {
      e = free_.back();
      free_.pop_back();
    }
    if (size != 1 || !sizes_.empty()) {
      sizes_.resize(entries_.size(), 1);
      sizes_[e] = size;
    }
    entries_[e].page = page;
    entry_of_[page] = e;
    link_front(list, e);
  }
  void remove(Page page) {
    const Slot e = entry_of_[page];
    unlink(e);
    entry_of_[page] = kNoSlot;
    free_.push_back(e);
  }
  void move_front(std::size_t list, Page page) {
    const Slot e = entry_of_[page];
    unlink(e);
    link_front(list, e);
  }

 private:
  struct Entry {
    Page page = 0;
    Slot newer = kNoSlot, older = kNoSlot;
    std::uint32_t list = 0;
  };
  struct Ends {
    Slot front = kNoSlot, back = kNoSlot;
    std::uint64_t size = 0, count = 0;
  };

  std::uint64_t size_at(Slot e) const { return e < sizes_.size() ? sizes_[e] : 1; }
  void link_front(std::size_t list, Slot e) {
    Ends& ends = ends_[list];
    entries_[e].list = static_cast<std::uint32_t>(list);
    entries_[e].newer = kNoSlot;
    entries_[e].older = ends.front;
    (ends.front == kNoSlot ? ends.back : entries_[ends.front].newer) = e;
    ends.front = e;
    ends.size += size_at(e);
    ++ends.count;
  }
  void unlink(Slot e) {
    const Entry& entry = entries_[e];
    Ends& ends = ends_[entry.list];
    (entry.newer == kNoSlot ? ends.front : entries_[entry.newer].older) = entry.older;
    (entry.older == kNoSlot ? ends.back : entries_[entry.older].newer) = entry.newer;
    ends.size -= size_at(e);
    --ends.count;
  }

  std::vector<Entry> entries_;
  std::vector<std::uint64_t> sizes_;  // stays empty for pages of one size
  std::vector<Slot> free_;
  PageMap<Slot> entry_of_{kNoSlot};
  Ends ends_[kLists];
};

}  // namespace kvsim
