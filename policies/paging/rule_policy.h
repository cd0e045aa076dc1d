// The page policy that a victim rule makes: a slot cache around it, or the bare rule for Guard.
#pragma once

#include <memory>

#include "policies/paging/page_registry.h"
#include "policies/paging/slot_cache.h"

namespace kvsim {

/// Derived provides `Rule make_rule(const CacheSetup&) const` and `static constexpr PageTraits kTraits`.
template <typename Derived, typename Rule>
class RulePolicy : public PagePolicy {
 public:
  const PageTraits& traits() const override { return Derived::kTraits; }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<SlotCache<Rule>>(setup, self().make_rule(setup));
  }
  std::unique_ptr<VictimRule> rule(const CacheSetup& setup) const override {
    return std::make_unique<Rule>(self().make_rule(setup));
  }

 private:
  const Derived& self() const { return static_cast<const Derived&>(*this); }
};

}  // namespace kvsim
