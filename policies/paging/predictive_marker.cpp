// PredictiveMarker: marking with predictions, until a chain of evictions shows that they are wrong.
#include <limits>

#include "policies/paging/marking_policy.h"

namespace kvsim {
namespace {

/// A clean miss opens a chain whose representative is the page that it evicts. A miss on a stale page is one
/// on the representative of some chain: the chain grows, and once longer than gamma * H_k it evicts at
/// random.
class PredictiveMarkerCache final : public MarkingCache<PredictiveMarkerCache> {
 public:
  using MarkingCache<PredictiveMarkerCache>::MarkingCache;
  void set_gamma(double gamma) { longest_ = gamma * harmonic(k_); }

  void grow_pages(Page limit) { chain_of_.grow(limit); }
  Slot choose(const PageRequest& request) {
    if (!is_stale(request.page)) {
      current_ = length_.size();
      length_.push_back(1);
      return farthest_unmarked();
    }
    current_ = chain_of_[request.page];
    return static_cast<double>(++length_[current_]) <= longest_ ? farthest_unmarked() : draw_unmarked();
  }
  void chosen(const PageRequest&, Slot slot) { chain_of_[page_at(slot)] = current_; }
  void phase_opened() { length_.clear(); }

 private:
  double longest_ = 0;
  std::vector<std::uint64_t> length_;  // chains of this phase
  PageMap<std::size_t> chain_of_;      // of representatives: stale pages evicted in this phase
  std::size_t current_ = 0;
};

struct PredictiveMarker final : MarkingPolicy<PredictiveMarker, PredictiveMarkerCache> {
  static constexpr PageTraits kTraits{.name = "predictive_marker",
                                      .summary =
                                          "Marker that evicts the farthest predicted unmarked page until its "
                                          "chain is longer than gamma * H_k",
                                      .reference = "Lykouris and Vassilvitskii, 2018; ties: lowest slot",
                                      .guard_refusal = kMarksRefusal,
                                      .unit_only = true,
                                      .randomised = true};
  static constexpr std::string_view kPredictor = "oracle";
  static constexpr PredictionKind kKind = PredictionKind::next_use;
  double gamma = 1;
  void more_fields(FieldVisitor& visitor) {
    visitor.number("gamma", gamma, 0.0, std::numeric_limits<double>::max(),
                   "chains longer than gamma * H_k evict at random; very large = farthest unmarked, always");
  }
  void configure(PredictiveMarkerCache& cache) const { cache.set_gamma(gamma); }
};

const RegisterPagePolicy<PredictiveMarker> registered;

}  // namespace
}  // namespace kvsim
