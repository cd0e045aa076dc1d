// Follows scores that every resident has at any time: the lowest score leaves (Parrot's way of following).
#include "policies/paging/predictor.h"
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {
namespace {

/// The visible slots are a heap with the scores of one epoch. A victim is named in O(log k); the first one of
/// a new epoch (a step of a recording) reads the k scores that are new then and orders the heap anew, O(k).
/// No rule that heeds them can do with less.
class FollowScoresRule final : public VictimRule {
 public:
  explicit FollowScoresRule(std::unique_ptr<Prediction> prediction) : prediction_(std::move(prediction)) {}
  void resize(std::size_t slots) override {
    heap_.resize(slots);
    page_.resize(slots, 0);
  }
  void load(Slot slot, const PageRequest& request) override {
    page_[slot] = request.page;
    heap_.insert(slot, key(slot));
  }
  void hit(Slot, const PageRequest&) override {}
  void unload(Slot slot) override { heap_.remove(slot); }
  Slot victim(const PageRequest& incoming) override {
    const std::uint64_t epoch = prediction_->score_epoch(incoming.time);
    time_ = incoming.time;
    if (epoch != epoch_ || !ordered_) {
      epoch_ = epoch;
      ordered_ = true;
      heap_.rekey([this](Slot s) { return key(s); });
    }
    return heap_.top();
  }
  void hide(Slot slot) override { heap_.hide(slot); }
  void show(Slot slot) override { heap_.insert(slot, key(slot)); }

 private:
  /// The score at the time of the heap, negative: the heap's top is its largest key, ties to the lowest slot.
  double key(Slot slot) const { return ordered_ ? -prediction_->score(page_[slot], time_) : 0.0; }

  std::unique_ptr<Prediction> prediction_;
  SlotHeap<double> heap_;
  std::vector<Page> page_;
  std::uint64_t time_ = 0, epoch_ = 0;
  bool ordered_ = false;  // before the first victim, keys are not needed
};

struct FollowScores final : RulePolicy<FollowScores, FollowScoresRule> {
  static constexpr PageTraits kTraits{
      .name = "follow_scores",
      .summary =
          "the resident with the lowest present score leaves; ties: lowest slot; reads all scores once a "
          "step",
      .reference = "Liu et al., 2020 (Parrot's rule), with attention as the score",
      .guardable = true};
  PredictorField predictor{"attention", PredictionKind::score};
  void fields(FieldVisitor& visitor) override { predictor.field(visitor); }
  void prepare() override { predictor.prepare("follow_scores"); }
  bool needs_future() const override { return predictor->traits().future; }
  std::string refusal(const CacheSetup& setup) const override {
    return predictor.refusal("follow_scores", setup);
  }
  FollowScoresRule make_rule(const CacheSetup& setup) const {
    return FollowScoresRule(predictor->start(setup));
  }
};

const RegisterPagePolicy<FollowScores> registered;

}  // namespace
}  // namespace kvsim
