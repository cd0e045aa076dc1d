// One run of Belady that writes down what it evicts.
#include "policies/paging/belady_labels.h"

#include "policies/paging/page_map.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {

std::vector<bool> belady_labels(std::span<const Page> pages, std::span<const std::uint32_t> next,
                                std::uint64_t capacity) {
  std::vector<bool> labels(pages.size(), false);
  SlotHeap<std::uint64_t> heap;
  PageMap<Slot> slot_of{kNoSlot};
  std::vector<std::uint32_t> latest;  // per slot: its page's latest request
  for (std::uint32_t t = 0; t < pages.size(); ++t) {
    slot_of.grow(pages[t] + 1);
    Slot slot = slot_of[pages[t]];
    if (slot != kNoSlot) {
      heap.update(slot, next[t]);
    } else {
      if (latest.size() < capacity) {
        slot = static_cast<Slot>(latest.size());
        latest.push_back(t);
        heap.resize(latest.size());
      } else {
        slot = heap.top();
        heap.remove(slot);
        const std::uint32_t last = latest[slot];
        labels[last] = true;
        slot_of[pages[last]] = kNoSlot;
      }
      heap.insert(slot, next[t]);
      slot_of[pages[t]] = slot;
    }
    latest[slot] = t;
  }
  return labels;
}

}  // namespace kvsim
