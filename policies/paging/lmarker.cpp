// LMarker and LNonMarker: predictions decide on clean misses, chance on stale ones.
#include "policies/paging/marking_policy.h"

namespace kvsim {
namespace {

class LMarkerCache final : public MarkingCache<LMarkerCache> {
 public:
  using MarkingCache<LMarkerCache>::MarkingCache;
  Slot choose(const PageRequest& request) {
    return is_stale(request.page) ? draw_unmarked() : farthest_unmarked();
  }
};

struct LMarker final : MarkingPolicy<LMarker, LMarkerCache> {
  static constexpr PageTraits kTraits{.name = "lmarker",
                                      .summary =
                                          "Marker; clean misses evict the farthest predicted unmarked page, "
                                          "stale ones a uniform unmarked page",
                                      .reference = "Rohatgi, 2020; equal to Guard without protection",
                                      .guard_refusal = kMarksRefusal,
                                      .unit_only = true,
                                      .randomised = true};
  static constexpr std::string_view kPredictor = "oracle";
  static constexpr PredictionKind kKind = PredictionKind::next_use;
};

/// Phases of k distinct pages: the (k+1)-th opens the next. A stale page whose eviction was caused by a clean
/// one evicts any page, marked or not.
class LNonMarkerCache final : public MarkingCache<LNonMarkerCache> {
 public:
  LNonMarkerCache(const CacheSetup& setup, std::uint64_t policy_seed, std::unique_ptr<Prediction> prediction)
      : MarkingCache(setup, policy_seed, std::move(prediction)) {
    all_.resize(0);
  }
  void grow_pages(Page limit) {
    seen_in_.grow(limit);
    evicted_by_.grow(limit);
  }
  bool opens_phase_on_miss() const { return false; }
  void before_request(const PageRequest& request, bool) {
    if (seen_in_[request.page] == count_of_phases_) return;
    if (distinct_ == k_) {
      ++count_of_phases_;
      distinct_ = 0;
      open_phase();
    }
    seen_in_[request.page] = count_of_phases_;
    ++distinct_;
  }
  Slot choose(const PageRequest& request) {
    if (!is_stale(request.page)) return farthest_unmarked();
    if (is_stale(evicted_by_[request.page])) return draw_unmarked();
    all_.resize(k_);
    all_.fill();
    return all_.draw(*random_);
  }
  void chosen(const PageRequest& request, Slot slot) { evicted_by_[page_at(slot)] = request.page; }

 private:
  SlotSet all_;
  PageMap<std::uint32_t> seen_in_{0};
  PageMap<Page> evicted_by_{0};
  std::uint32_t count_of_phases_ = 1;
  std::uint32_t distinct_ = 0;
};

struct LNonMarker final : MarkingPolicy<LNonMarker, LNonMarkerCache> {
  static constexpr PageTraits kTraits{
      .name = "lnonmarker",
      .summary =
          "as lmarker, but a stale page evicted by a clean one evicts any page; not robust alone, combine it "
          "with marker",
      .reference = "Rohatgi, 2020; phases as in chledowski/ml_caching_with_guarantees",
      .guard_refusal = kMarksRefusal,
      .unit_only = true,
      .randomised = true};
  static constexpr std::string_view kPredictor = "oracle";
  static constexpr PredictionKind kKind = PredictionKind::next_use;
};

const RegisterPagePolicy<LMarker> registered_lmarker;
const RegisterPagePolicy<LNonMarker> registered_lnonmarker;

}  // namespace
}  // namespace kvsim
