// Dense numbers for objects, in the order of first appearance.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "kernels/error.h"
#include "policies/paging/page_policy.h"

namespace kvsim {

/// Open addressing, 12 to 24 bytes per object.
class Interner {
 public:
  Interner() : slots_(64), mask_(63) {}
  Page page_of(std::uint64_t object) {
    std::size_t i = place(object);
    for (; slots_[i].page != kNoPage; i = (i + 1) & mask_) {
      if (slots_[i].object == object) return slots_[i].page;
    }
    if (count_ == kNoPage - 1)
      throw UserError("more than {} different objects; sample the input with --sample", count_);
    slots_[i] = {object, count_};
    if (++count_ * 2ull > slots_.size()) enlarge();
    return count_ - 1;
  }
  Page count() const { return count_; }

 private:
  struct Entry {
    std::uint64_t object = 0;
    Page page = kNoPage;
  };
  std::size_t place(std::uint64_t object) const {
    return static_cast<std::size_t>(stream_of(object)) & mask_;
  }
  void enlarge() {
    std::vector<Entry> old(slots_.size() * 2);
    old.swap(slots_);
    mask_ = slots_.size() - 1;
    for (const Entry& e : old) {
      if (e.page == kNoPage) continue;
      std::size_t i = place(e.object);
      while (slots_[i].page != kNoPage) i = (i + 1) & mask_;
      slots_[i] = e;
    }
  }

  std::vector<Entry> slots_;
  std::size_t mask_;
  Page count_ = 0;
};

}  // namespace kvsim
