// CLOCK: FIFO with a small counter that gives used pages another round.
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_list.h"

namespace kvsim {
namespace {

class ClockRule final : public VictimRule {
 public:
  explicit ClockRule(std::uint8_t most) : most_(most) {}
  void resize(std::size_t slots) override {
    list_.resize(slots);
    count_.resize(slots, 0);
  }
  void load(Slot slot, const PageRequest&) override {
    count_[slot] = 0;
    list_.push_front(slot);
  }
  void hit(Slot slot, const PageRequest&) override {
    if (count_[slot] < most_) ++count_[slot];
  }
  void unload(Slot slot) override { list_.remove(slot); }
  Slot victim(const PageRequest&) override {
    for (;;) {
      const Slot slot = list_.oldest_visible();
      if (count_[slot] == 0) return slot;
      --count_[slot];
      list_.move_front(slot);
    }
  }
  void hide(Slot slot) override { list_.hide(slot); }
  void show(Slot slot) override { list_.show(slot); }

 private:
  std::uint8_t most_;
  SlotList list_;
  std::vector<std::uint8_t> count_;
};

struct Clock final : RulePolicy<Clock, ClockRule> {
  static constexpr PageTraits kTraits{.name = "clock",
                                      .summary = "FIFO; a page used since the hand passed gets another round",
                                      .reference = "classical; libCacheSim's n-bit form",
                                      .guardable = true};
  std::uint32_t bits = 1;
  void fields(FieldVisitor& visitor) override {
    visitor.number("bits", bits, 1, 8, "width of the use counter");
  }
  ClockRule make_rule(const CacheSetup&) const {
    return ClockRule(static_cast<std::uint8_t>((1u << bits) - 1));
  }
};

const RegisterPagePolicy<Clock> registered;

}  // namespace
}  // namespace kvsim
