// Least recently used: the page whose last request is longest ago leaves.
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_list.h"

namespace kvsim {
namespace {

class LruRule final : public VictimRule {
 public:
  void resize(std::size_t slots) override { list_.resize(slots); }
  void load(Slot slot, const PageRequest&) override { list_.push_front(slot); }
  void hit(Slot slot, const PageRequest&) override { list_.move_front(slot); }
  void unload(Slot slot) override { list_.remove(slot); }
  Slot victim(const PageRequest&) override { return list_.oldest_visible(); }
  void hide(Slot slot) override { list_.hide(slot); }
  void show(Slot slot) override { list_.show(slot); }
  void prefetch(Slot slot) const { list_.prefetch(slot); }

 private:
  SlotList list_;
};

struct Lru final : RulePolicy<Lru, LruRule> {
  static constexpr PageTraits kTraits{.name = "lru",
                                      .summary = "the page whose last request is longest ago leaves",
                                      .reference = "classical; stack algorithm (Mattson et al., 1970)",
                                      .guardable = true,
                                      .stack = true};
  LruRule make_rule(const CacheSetup&) const { return {}; }
};

const RegisterPagePolicy<Lru> registered;

}  // namespace
}  // namespace kvsim
