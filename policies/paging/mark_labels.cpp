// Marking with binary predictions: Mark0 discards what is labelled, Mark&Predict prefers it as the victim.
#include "policies/paging/marking_policy.h"

namespace kvsim {
namespace {

/// Right after a request whose label is 1 the page is dropped: its slot is free and keeps its mark.
class Mark0Cache final : public MarkingCache<Mark0Cache> {
 public:
  using MarkingCache<Mark0Cache>::MarkingCache;
  Slot choose(const PageRequest&) { return draw_unmarked(); }
  void after_request(const PageRequest&, Slot slot, bool) {
    if (value_[slot] >= 0.5) drop(slot);
  }
};

struct Mark0 final : MarkingPolicy<Mark0, Mark0Cache> {
  static constexpr PageTraits kTraits{
      .name = "mark0",
      .summary = "Marker that drops a page at once when its label says it may leave",
      .reference = "Antoniadis et al., 2023; Cache-Coliseum's form",
      .guard_refusal = kMarksRefusal,
      .unit_only = true,
      .randomised = true};
  static constexpr std::string_view kPredictor = "labels";
  static constexpr PredictionKind kKind = PredictionKind::label;
};

/// The labelled ones among the unmarked slots are a set of their own: filled when a phase opens, which
/// happens after k requests at the earliest, so every request costs O(1) amortised beside the heap of
/// MarkingCache.
class MarkPredictCache final : public MarkingCache<MarkPredictCache> {
 public:
  using MarkingCache<MarkPredictCache>::MarkingCache;
  Slot choose(const PageRequest&) { return labelled_.empty() ? draw_unmarked() : labelled_.draw(*random_); }
  void phase_opened() {
    labelled_.resize(value_.size());
    labelled_.clear();
    for (Slot s = 0; s < value_.size(); ++s) {
      if (value_[s] >= 0.5) labelled_.add(s);
    }
  }
  /// The request marked its slot. Labels of unmarked slots do not change.
  void after_request(const PageRequest&, Slot slot, bool) {
    if (phase_ > 0) labelled_.remove(slot);
  }

 private:
  SlotSet labelled_;
};

struct MarkPredict final : MarkingPolicy<MarkPredict, MarkPredictCache> {
  static constexpr PageTraits kTraits{
      .name = "mark_predict",
      .summary = "Marker that evicts a uniform unmarked page labelled 1, else a uniform unmarked page",
      .reference = "Antoniadis et al., 2023 (Mark&Predict)",
      .guard_refusal = kMarksRefusal,
      .unit_only = true,
      .randomised = true};
  static constexpr std::string_view kPredictor = "phase_labels";
  static constexpr PredictionKind kKind = PredictionKind::label;
};

const RegisterPagePolicy<Mark0> registered_mark0;
const RegisterPagePolicy<MarkPredict> registered_mark_predict;

}  // namespace
}  // namespace kvsim
