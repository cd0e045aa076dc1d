// Follows binary predictions: a page labelled "may leave" leaves, drawn uniformly.
#include "policies/paging/predictor.h"
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_set.h"

namespace kvsim {
namespace {

class FollowLabelsRule final : public VictimRule {
 public:
  FollowLabelsRule(std::unique_ptr<Prediction> prediction, std::unique_ptr<RandomSource> random)
      : prediction_(std::move(prediction)), random_(std::move(random)) {}
  void resize(std::size_t slots) override {
    visible_.resize(slots);
    leaving_.resize(slots);
    label_.resize(slots, 0);
  }
  void load(Slot slot, const PageRequest& request) override {
    visible_.add(slot);
    hit(slot, request);
  }
  void hit(Slot slot, const PageRequest& request) override {
    label_[slot] = prediction_->predict(request) >= 0.5 ? 1 : 0;
    refresh(slot);
  }
  void unload(Slot slot) override { hide(slot); }
  Slot victim(const PageRequest&) override { return (leaving_.empty() ? visible_ : leaving_).draw(*random_); }
  void hide(Slot slot) override {
    visible_.remove(slot);
    leaving_.remove(slot);
  }
  void show(Slot slot) override {
    visible_.add(slot);
    refresh(slot);
  }

 private:
  void refresh(Slot slot) {
    if (label_[slot] != 0 && visible_.has(slot)) {
      leaving_.add(slot);
    } else {
      leaving_.remove(slot);
    }
  }

  std::unique_ptr<Prediction> prediction_;
  std::unique_ptr<RandomSource> random_;
  SlotSet visible_, leaving_;
  std::vector<std::uint8_t> label_;
};

struct FollowLabels final : RulePolicy<FollowLabels, FollowLabelsRule> {
  static constexpr PageTraits kTraits{
      .name = "follow_labels",
      .summary = "a uniform page among those labelled 1 leaves, else a uniform page",
      .reference = "Cache-Coliseum's Predict with binary labels (LRB, FBP)",
      .guardable = true,
      .randomised = true};
  PredictorField predictor{"labels", PredictionKind::label};
  std::uint32_t seed = 0;
  void fields(FieldVisitor& visitor) override {
    predictor.field(visitor);
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  void prepare() override { predictor.prepare("follow_labels"); }
  bool needs_future() const override { return predictor->traits().future; }
  std::string refusal(const CacheSetup& setup) const override {
    return predictor.refusal("follow_labels", setup);
  }
  FollowLabelsRule make_rule(const CacheSetup& setup) const {
    return FollowLabelsRule(predictor->start(setup), setup.random(RandomPurpose::eviction, seed));
  }
};

const RegisterPagePolicy<FollowLabels> registered;

}  // namespace
}  // namespace kvsim
