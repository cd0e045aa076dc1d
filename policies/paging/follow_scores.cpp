// Follows scores that every resident has at any time: the lowest score leaves (Parrot's way of following).
#include "policies/paging/predictor.h"
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_set.h"

namespace kvsim {
namespace {

/// All residents are rescored at every miss: O(k).
class FollowScoresRule final : public VictimRule {
 public:
  explicit FollowScoresRule(std::unique_ptr<Prediction> prediction) : prediction_(std::move(prediction)) {}
  void resize(std::size_t slots) override {
    visible_.resize(slots);
    page_.resize(slots, 0);
  }
  void load(Slot slot, const PageRequest& request) override {
    page_[slot] = request.page;
    visible_.add(slot);
  }
  void hit(Slot, const PageRequest&) override {}
  void unload(Slot slot) override { visible_.remove(slot); }
  Slot victim(const PageRequest& incoming) override {
    Slot best = kNoSlot;
    double least = 0;
    for (std::uint32_t i = 0; i < visible_.size(); ++i) {
      const Slot s = visible_[i];
      const double score = prediction_->score(page_[s], incoming.time);
      if (best == kNoSlot || score < least || (score == least && s < best)) {
        best = s;
        least = score;
      }
    }
    return best;
  }
  void hide(Slot slot) override { visible_.remove(slot); }
  void show(Slot slot) override { visible_.add(slot); }

 private:
  std::unique_ptr<Prediction> prediction_;
  SlotSet visible_;
  std::vector<Page> page_;
};

struct FollowScores final : RulePolicy<FollowScores, FollowScoresRule> {
  static constexpr PageTraits kTraits{
      .name = "follow_scores",
      .summary = "the resident with the lowest present score leaves; ties: lowest slot; O(k) a miss",
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
