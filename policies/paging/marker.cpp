// Marker: a random page that was not requested in the phase leaves; and Cache-Coliseum's variant of its
// phases.
#include "policies/paging/marking_cache.h"
#include "policies/paging/page_registry.h"

namespace kvsim {
namespace {

template <bool kEager>
class MarkerCache final : public MarkingCache<MarkerCache<kEager>> {
 public:
  using MarkingCache<MarkerCache>::MarkingCache;
  Slot choose(const PageRequest&) { return this->draw_unmarked(); }
  void before_request(const PageRequest&, bool) {
    if (kEager && this->full() && this->unmarked_.empty()) this->open_phase();
  }
};

template <bool kEager>
struct Marker final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = kEager ? "marker_eager" : "marker",
      .summary = kEager
                     ? "Marker whose phase opens at any request when all pages are marked"
                     : "a uniform page that was not requested in this phase leaves; (2 H_k - 1)-competitive",
      .reference = kEager ? "Cache-Coliseum's Marker, to reproduce its numbers" : "Fiat et al., 1991",
      .guard_refusal = kMarksRefusal,
      .unit_only = true,
      .randomised = true};
  std::uint32_t seed = 0;
  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<MarkerCache<kEager>>(setup, seed);
  }
};

const RegisterPagePolicy<Marker<false>> registered;
const RegisterPagePolicy<Marker<true>> registered_eager;

}  // namespace
}  // namespace kvsim
