// Random eviction: a uniform resident page leaves.
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_set.h"

namespace kvsim {
namespace {

class RandomRule final : public VictimRule {
 public:
  explicit RandomRule(std::unique_ptr<RandomSource> random) : random_(std::move(random)) {}
  void resize(std::size_t slots) override { visible_.resize(slots); }
  void load(Slot slot, const PageRequest&) override { visible_.add(slot); }
  void hit(Slot, const PageRequest&) override {}
  void unload(Slot slot) override { visible_.remove(slot); }
  Slot victim(const PageRequest&) override { return visible_.draw(*random_); }
  void hide(Slot slot) override { visible_.remove(slot); }
  void show(Slot slot) override { visible_.add(slot); }

 private:
  std::unique_ptr<RandomSource> random_;
  SlotSet visible_;
};

struct Random final : RulePolicy<Random, RandomRule> {
  static constexpr PageTraits kTraits{.name = "random",
                                      .summary = "a uniformly drawn resident page leaves",
                                      .reference = "classical",
                                      .guardable = true,
                                      .randomised = true};
  std::uint32_t seed = 0;
  void fields(FieldVisitor& visitor) override {
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  RandomRule make_rule(const CacheSetup& setup) const {
    return RandomRule(setup.random(RandomPurpose::eviction, seed));
  }
};

const RegisterPagePolicy<Random> registered;

}  // namespace
}  // namespace kvsim
