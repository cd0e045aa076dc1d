// The page policy of caches that need nothing but their setup.
#pragma once

#include "policies/paging/page_registry.h"
#include "policies/paging/request_loop.h"

namespace kvsim {

/// Derived provides `static constexpr PageTraits kTraits`; Cache is made from a CacheSetup.
template <typename Derived, typename Cache>
class PlainPolicy : public PagePolicy {
 public:
  const PageTraits& traits() const override { return Derived::kTraits; }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<Cache>(setup);
  }
};

inline constexpr std::string_view kQueuesRefusal =
    "its victim follows from moves between its queues, and it cannot be asked for another page than that";

}  // namespace kvsim
