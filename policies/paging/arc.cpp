// ARC: two lists, seen once and seen often, whose balance follows hits on what each lately lost.
#include <algorithm>

#include "policies/paging/page_lists.h"
#include "policies/paging/plain_policy.h"

namespace kvsim {
namespace {

class ArcCache final : public RequestLoop<ArcCache> {
 public:
  explicit ArcCache(const CacheSetup& setup) : RequestLoop(setup) {}
  bool contains(Page page) const override { return is_resident(lists_.list_of(page)); }
  void grow(Page limit) { lists_.grow(limit); }

  bool access(const PageRequest& request) {
    const std::size_t list = lists_.list_of(request.page);
    if (is_resident(list)) {
      lists_.move_front(kT2, request.page);
      return true;
    }
    if (list == kB1 || list == kB2) {
      adapt(list, request.size);
      lists_.remove(request.page);
      make_room(request.size, list == kB2);
      lists_.push_front(kT2, request.page, request.size);
    } else {
      forget(request.size);
      make_room(request.size, false);
      lists_.push_front(kT1, request.page, request.size);
    }
    ++admitted_;
    admitted_bytes_ += request.size;
    return false;
  }

 private:
  enum : std::size_t { kT1, kT2, kB1, kB2, kCount };
  static bool is_resident(std::size_t list) { return list == kT1 || list == kT2; }

  /// Sizes before the ghost is removed.
  void adapt(std::size_t ghost, std::uint64_t size) {
    const double b1 = static_cast<double>(lists_.size(kB1)), b2 = static_cast<double>(lists_.size(kB2));
    const double s = static_cast<double>(size), c = static_cast<double>(capacity_);
    target_ = ghost == kB1 ? std::min(target_ + std::max(b2 / b1, 1.0) * s, c)
                           : std::max(target_ - std::max(b1 / b2, 1.0) * s, 0.0);
  }
  void forget(std::uint64_t size) {
    while (lists_.size(kT1) + lists_.size(kB1) + size > capacity_) {
      if (!lists_.empty(kB1)) {
        lists_.remove(lists_.back(kB1));
      } else {
        evict(kT1, kCount);
      }
    }
    while (!lists_.empty(kB2) && total() + size > 2 * capacity_) lists_.remove(lists_.back(kB2));
  }
  std::uint64_t total() const {
    return lists_.size(kT1) + lists_.size(kT2) + lists_.size(kB1) + lists_.size(kB2);
  }
  void make_room(std::uint64_t size, bool ghost_was_b2) {
    while (lists_.size(kT1) + lists_.size(kT2) + size > capacity_) {
      const double t1 = static_cast<double>(lists_.size(kT1));
      const bool from_t1 = !lists_.empty(kT1) && (t1 > target_ || (t1 == target_ && ghost_was_b2));
      if (from_t1 || lists_.empty(kT2)) {
        evict(kT1, kB1);
      } else {
        evict(kT2, kB2);
      }
    }
  }
  void evict(std::size_t from, std::size_t ghost) {
    const Page page = lists_.back(from);
    if (ghost == kCount) {
      lists_.remove(page);
    } else {
      lists_.move_front(ghost, page);
    }
    evicted_page_ = page;
    ++evicted_;
  }

  PageLists<kCount> lists_;
  double target_ = 0;  // of T1
};

struct Arc final : PlainPolicy<Arc, ArcCache> {
  static constexpr PageTraits kTraits{
      .name = "arc",
      .summary = "two LRU lists, seen once and seen often; ghosts of each move the balance",
      .reference = "Megiddo and Modha, FAST 2003; libCacheSim's form",
      .guard_refusal = kQueuesRefusal};
};

const RegisterPagePolicy<Arc> registered;

}  // namespace
}  // namespace kvsim
