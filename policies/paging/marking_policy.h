// The page policy of marking caches that read a predictor.
#pragma once

#include "policies/paging/marking_cache.h"
#include "policies/paging/page_registry.h"

namespace kvsim {

/// Derived provides `kTraits`, `kPredictor` (default spec), `kKind` and may hide `more_fields` and `make`.
template <typename Derived, typename Cache>
class MarkingPolicy : public PagePolicy {
 public:
  const PageTraits& traits() const override { return Derived::kTraits; }
  void fields(FieldVisitor& visitor) override {
    predictor_.field(visitor);
    static_cast<Derived&>(*this).more_fields(visitor);
    visitor.number("seed", seed_, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  void prepare() override { predictor_.prepare(traits().name); }
  bool needs_future() const override { return predictor_->traits().future; }
  std::string refusal(const CacheSetup& setup) const override {
    const std::string why = predictor_.refusal(traits().name, setup);
    return why.empty() ? PagePolicy::refusal(setup) : why;
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    auto cache = std::make_unique<Cache>(setup, seed_, predictor_->start(setup));
    static_cast<const Derived&>(*this).configure(*cache);
    return cache;
  }
  void more_fields(FieldVisitor&) {}
  void configure(Cache&) const {}

 private:
  PredictorField predictor_{Derived::kPredictor, Derived::kKind};
  std::uint32_t seed_ = 0;
};

}  // namespace kvsim
