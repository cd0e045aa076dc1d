// The loop over a block of requests that all caches share: size check, lookup, tally.
#pragma once

#include <algorithm>

#include "policies/paging/page_policy.h"

namespace kvsim {

/// Derived provides `void grow(Page limit)`, `bool access(const PageRequest&)` (true on a hit) and may hide
/// `prefetch(Page)` and `prefetch_near(Page)`; it counts its own admissions and evictions in `admitted_`,
/// `admitted_bytes_` and `evicted_`.
template <typename Derived>
class RequestLoop : public PageCache {
 public:
  explicit RequestLoop(const CacheSetup& setup) : capacity_(setup.capacity) {}

  Page evicted_page() const override { return evicted_page_; }

  void serve(const RequestBlock& block, PageTally& tally) override {
    Derived& self = static_cast<Derived&>(*this);
    self.grow(block.page_limit);
    evicted_page_ = kNoPage;
    if (block.sizes.empty() && block.next_use.empty()) {
      run(self, block, tally, [&](std::size_t i) {
        return PageRequest{block.pages[i], 1, block.one_time ? block.first_time : block.first_time + i,
                           kNeverAgain};
      });
    } else {
      run(self, block, tally, [&](std::size_t i) { return block.at(i); });
    }
    tally.admitted += admitted_;
    tally.admitted_bytes += admitted_bytes_;
    tally.evicted += evicted_;
    admitted_ = admitted_bytes_ = evicted_ = 0;
  }

 protected:
  void prefetch(Page) const {}
  /// For what can be found only through what prefetch() has fetched.
  void prefetch_near(Page) const {}
  /// How many requests ahead state is fetched into the caches of the processor.
  static constexpr std::size_t kPrefetchDistance = 16, kNearDistance = 6;

  std::uint64_t capacity_;
  std::uint64_t admitted_ = 0, admitted_bytes_ = 0, evicted_ = 0;
  Page evicted_page_ = kNoPage;

 private:
  template <typename At>
  void run(Derived& self, const RequestBlock& block, PageTally& tally, At at) {
    const std::size_t n = block.count();
    std::uint64_t misses = 0, bytes = 0, miss_bytes = 0, oversized = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (i + kPrefetchDistance < n) self.prefetch(block.pages[i + kPrefetchDistance]);
      if (i + kNearDistance < n) self.prefetch_near(block.pages[i + kNearDistance]);
      const PageRequest request = at(i);
      bytes += request.size;
      bool hit = false;
      if (request.size > capacity_) {
        ++oversized;
      } else {
        hit = self.access(request);
      }
      if (!hit) {
        ++misses;
        miss_bytes += request.size;
      }
    }
    tally.requests += n;
    tally.misses += misses;
    tally.bytes += bytes;
    tally.miss_bytes += miss_bytes;
    tally.oversized += oversized;
  }
};

}  // namespace kvsim
