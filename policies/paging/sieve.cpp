// SIEVE: a FIFO queue, one visited bit, and a hand that moves from the oldest page to the newest.
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_list.h"

namespace kvsim {
namespace {

class SieveRule final : public VictimRule {
 public:
  void resize(std::size_t slots) override {
    list_.resize(slots);
    visited_.resize(slots, 0);
  }
  void load(Slot slot, const PageRequest&) override {
    visited_[slot] = 0;
    list_.push_front(slot);
  }
  void hit(Slot slot, const PageRequest&) override { visited_[slot] = 1; }
  void unload(Slot slot) override {
    if (slot == hand_) hand_ = list_.newer(slot);
    list_.remove(slot);
  }
  Slot victim(const PageRequest&) override {
    for (;;) {
      if (hand_ == kNoSlot) hand_ = list_.back();
      if (!list_.is_hidden(hand_)) {
        if (visited_[hand_] == 0) return hand_;
        visited_[hand_] = 0;
      }
      hand_ = list_.newer(hand_);
    }
  }
  void hide(Slot slot) override { list_.hide(slot); }
  void show(Slot slot) override { list_.show(slot); }

 private:
  SlotList list_;
  std::vector<std::uint8_t> visited_;
  Slot hand_ = kNoSlot;
};

struct Sieve final : RulePolicy<Sieve, SieveRule> {
  static constexpr PageTraits kTraits{
      .name = "sieve",
      .summary = "FIFO; a hand clears visited bits in place and evicts the first unvisited page",
      .reference = "Zhang et al., NSDI 2024",
      .guardable = true};
  SieveRule make_rule(const CacheSetup&) const { return {}; }
};

const RegisterPagePolicy<Sieve> registered;

}  // namespace
}  // namespace kvsim
