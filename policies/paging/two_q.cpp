// 2Q: a FIFO queue for first uses, a ghost queue behind it, and an LRU list for pages that came back.
#include <algorithm>

#include "policies/paging/ghost_list.h"
#include "policies/paging/page_lists.h"
#include "policies/paging/plain_policy.h"

namespace kvsim {
namespace {

class TwoQCache final : public RequestLoop<TwoQCache> {
 public:
  TwoQCache(const CacheSetup& setup, double in_share, double out_share)
      : RequestLoop(setup),
        in_capacity_(share_of(setup.capacity, in_share)),
        ghost_(share_of(setup.capacity, out_share), setup.by_bytes) {}
  bool contains(Page page) const override { return lists_.list_of(page) != lists_.kNoList; }
  void grow(Page limit) {
    lists_.grow(limit);
    ghost_.grow(limit);
  }

  bool access(const PageRequest& request) {
    const std::size_t list = lists_.list_of(request.page);
    if (list == kMain) lists_.move_front(kMain, request.page);
    if (list != lists_.kNoList) return true;
    const bool returns = ghost_.contains(request.page);
    if (returns) ghost_.remove(request.page);
    while (lists_.size(kIn) + lists_.size(kMain) + request.size > capacity_) evict();
    lists_.push_front(returns ? kMain : kIn, request.page, request.size);
    ++admitted_;
    admitted_bytes_ += request.size;
    return false;
  }

 private:
  enum : std::size_t { kIn, kMain, kCount };
  static std::uint64_t share_of(std::uint64_t capacity, double share) {
    return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(capacity) * share));
  }
  void evict() {
    const bool from_in = !lists_.empty(kIn) && (lists_.size(kIn) > in_capacity_ || lists_.empty(kMain));
    const Page page = lists_.back(from_in ? kIn : kMain);
    if (from_in) ghost_.push(page, lists_.size_of(page));
    lists_.remove(page);
    evicted_page_ = page;
    ++evicted_;
  }

  std::uint64_t in_capacity_;
  PageLists<kCount> lists_;
  GhostList ghost_;
};

struct TwoQ final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "two_q",
      .summary = "FIFO for first uses with a ghost queue behind it, LRU for pages that came back",
      .reference = "Johnson and Shasha, VLDB 1994 (full version); libCacheSim's shares",
      .guard_refusal = kQueuesRefusal};
  double in = 0.25, out = 0.5;
  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("in", in, 0.001, 0.999, "share of the FIFO queue");
    visitor.number("out", out, 0.0, 16.0, "share of its ghost queue");
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<TwoQCache>(setup, in, out);
  }
};

const RegisterPagePolicy<TwoQ> registered;

}  // namespace
}  // namespace kvsim
