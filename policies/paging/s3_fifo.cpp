// S3-FIFO: a small queue filters pages used once, a main queue holds the rest, and a ghost queue remembers.
#include <algorithm>

#include "policies/paging/ghost_list.h"
#include "policies/paging/plain_policy.h"
#include "policies/paging/ring_queue.h"

namespace kvsim {
namespace {

/// One byte per page (queue and uses up to 3) and two rings of page numbers are all its state, beside the
/// ghosts.
class S3FifoCache final : public RequestLoop<S3FifoCache> {
 public:
  S3FifoCache(const CacheSetup& setup, double small_share, double ghost_share, std::uint32_t threshold)
      : RequestLoop(setup),
        by_bytes_(setup.by_bytes),
        threshold_(threshold),
        small_capacity_(share_of(setup.capacity, small_share)),
        main_capacity_(
            std::max<std::uint64_t>(1, setup.capacity - std::min(setup.capacity, small_capacity_))),
        ghost_(share_of(setup.capacity, ghost_share), setup.by_bytes) {}

  bool contains(Page page) const override { return state_.find(page) != 0; }
  void grow(Page limit) {
    state_.grow(limit);
    ghost_.grow(limit);
    if (by_bytes_) size_.grow(limit);
  }
  void prefetch(Page page) const { state_.prefetch(page); }

  bool access(const PageRequest& request) {
    std::uint8_t& state = state_[request.page];
    if (state != 0) {
      if ((state & kUses) < 3) ++state;
      return true;
    }
    if (request.size > small_capacity_) return false;
    const bool returns = ghost_.contains(request.page);
    if (returns) ghost_.remove(request.page);
    while (small_used_ + main_used_ + request.size > capacity_) evict();
    if (by_bytes_) size_[request.page] = request.size;
    ++admitted_;
    admitted_bytes_ += request.size;
    push(request.page, request.size, returns);
    return false;
  }

 private:
  static constexpr std::uint8_t kUses = 3, kSmall = 4, kMain = 8;

  static std::uint64_t share_of(std::uint64_t capacity, double share) {
    return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(static_cast<double>(capacity) * share));
  }
  std::uint64_t size_of(Page page) const { return by_bytes_ ? size_[page] : 1; }

  void push(Page page, std::uint64_t size, bool to_main) {
    state_[page] = to_main ? kMain : kSmall;
    (to_main ? main_ : small_).push(page);
    (to_main ? main_used_ : small_used_) += size;
  }
  void evict() {
    if (main_used_ > main_capacity_ || small_.empty()) {
      evict_main();
    } else {
      evict_small();
    }
  }
  void evict_small() {
    while (!small_.empty()) {
      const Page page = small_.pop();
      const std::uint64_t size = size_of(page);
      small_used_ -= size;
      if ((state_[page] & kUses) >= threshold_) {
        push(page, size, true);
        continue;
      }
      ghost_.push(page, size);
      gone(page);
      return;
    }
  }
  void evict_main() {
    for (;;) {
      const Page page = main_.pop();
      const std::uint8_t uses = state_[page] & kUses;
      if (uses == 0) {
        main_used_ -= size_of(page);
        gone(page);
        return;
      }
      state_[page] = static_cast<std::uint8_t>(kMain | (uses - 1));
      main_.push(page);
    }
  }
  void gone(Page page) {
    state_[page] = 0;
    evicted_page_ = page;
    ++evicted_;
  }

  bool by_bytes_;
  std::uint32_t threshold_;
  std::uint64_t small_capacity_, main_capacity_;
  std::uint64_t small_used_ = 0, main_used_ = 0;
  RingQueue small_, main_;
  GhostList ghost_;
  PageMap<std::uint8_t> state_{0};
  PageMap<std::uint64_t> size_{1};
};

struct S3Fifo final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "s3_fifo",
      .summary = "small FIFO, main FIFO with reinsertion, and a ghost queue; queues hold at least one page",
      .reference = "Yang et al., SOSP 2023; libCacheSim's defaults",
      .guard_refusal = kQueuesRefusal};
  double small = 0.1, ghost = 0.9;
  std::uint32_t threshold = 2;
  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("small", small, 0.001, 0.999, "share of the small queue");
    visitor.number("ghost", ghost, 0.0, 16.0, "share of the ghost queue");
    visitor.number("threshold", threshold, 1, 3, "uses that move a page from the small to the main queue");
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<S3FifoCache>(setup, small, ghost, threshold);
  }
};

const RegisterPagePolicy<S3Fifo> registered;

}  // namespace
}  // namespace kvsim
