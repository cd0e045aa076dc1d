// BlindOracle: follows predicted next uses without a doubt; the page predicted farthest away leaves.
#include "policies/paging/predictor.h"
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {
namespace {

/// A prediction is refreshed only by requests of its own page: one whose time has passed keeps its small
/// value.
class BlindOracleRule final : public VictimRule {
 public:
  explicit BlindOracleRule(std::unique_ptr<Prediction> prediction) : prediction_(std::move(prediction)) {}
  void resize(std::size_t slots) override { heap_.resize(slots); }
  void load(Slot slot, const PageRequest& request) override {
    heap_.insert(slot, prediction_->predict(request));
  }
  void hit(Slot slot, const PageRequest& request) override {
    heap_.update(slot, prediction_->predict(request));
  }
  void unload(Slot slot) override { heap_.remove(slot); }
  Slot victim(const PageRequest&) override { return heap_.top(); }
  void hide(Slot slot) override { heap_.hide(slot); }
  void show(Slot slot) override { heap_.show(slot); }

 private:
  std::unique_ptr<Prediction> prediction_;
  SlotHeap<double> heap_;
};

struct BlindOracle final : RulePolicy<BlindOracle, BlindOracleRule> {
  static constexpr PageTraits kTraits{
      .name = "blindoracle",
      .summary = "the page with the farthest predicted next use leaves; ties: lowest slot",
      .reference = "Wei, 2020; Cache-Coliseum's form (stale predictions stay)",
      .guardable = true};
  PredictorField predictor{"oracle", PredictionKind::next_use};
  void fields(FieldVisitor& visitor) override { predictor.field(visitor); }
  void prepare() override { predictor.prepare("blindoracle"); }
  bool needs_future() const override { return predictor->traits().future; }
  std::string refusal(const CacheSetup& setup) const override {
    return predictor.refusal("blindoracle", setup);
  }
  BlindOracleRule make_rule(const CacheSetup& setup) const {
    return BlindOracleRule(predictor->start(setup));
  }
};

const RegisterPagePolicy<BlindOracle> registered;

}  // namespace
}  // namespace kvsim
