// First in, first out: the oldest load leaves, hits change nothing.
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_list.h"

namespace kvsim {
namespace {

class FifoRule final : public VictimRule {
 public:
  void resize(std::size_t slots) override { list_.resize(slots); }
  void load(Slot slot, const PageRequest&) override { list_.push_front(slot); }
  void hit(Slot, const PageRequest&) override {}
  void unload(Slot slot) override { list_.remove(slot); }
  Slot victim(const PageRequest&) override { return list_.oldest_visible(); }
  void hide(Slot slot) override { list_.hide(slot); }
  void show(Slot slot) override { list_.show(slot); }

 private:
  SlotList list_;
};

struct Fifo final : RulePolicy<Fifo, FifoRule> {
  static constexpr PageTraits kTraits{.name = "fifo",
                                      .summary = "the oldest load leaves; hits change nothing",
                                      .reference = "classical",
                                      .guardable = true};
  FifoRule make_rule(const CacheSetup&) const { return {}; }
};

const RegisterPagePolicy<Fifo> registered;

}  // namespace
}  // namespace kvsim
