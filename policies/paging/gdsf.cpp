// GDSF (greedy dual, size, frequency): the page with the smallest clock + frequency / size leaves.
#include <tuple>

#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {
namespace {

/// Ordered so that the largest key is the smallest priority, then the least recent use.
struct GdsfKey {
  double priority = 0;
  std::uint64_t time = 0;
  friend bool operator<(const GdsfKey& a, const GdsfKey& b) {
    return std::tie(b.priority, b.time) < std::tie(a.priority, a.time);
  }
  friend bool operator==(const GdsfKey&, const GdsfKey&) = default;
};

class GdsfRule final : public VictimRule {
 public:
  void resize(std::size_t slots) override {
    heap_.resize(slots);
    uses_.resize(slots, 0);
    size_.resize(slots, 1);
  }
  void load(Slot slot, const PageRequest& request) override {
    uses_[slot] = 1;
    size_[slot] = static_cast<double>(std::max<std::uint64_t>(1, request.size));
    heap_.insert(slot, {clock_ + 1.0 / size_[slot], ++time_});
  }
  void hit(Slot slot, const PageRequest&) override {
    heap_.update(slot, {clock_ + ++uses_[slot] / size_[slot], ++time_});
  }
  void unload(Slot slot) override { heap_.remove(slot); }
  Slot victim(const PageRequest&) override {
    clock_ = heap_.key(heap_.top()).priority;
    return heap_.top();
  }
  void hide(Slot slot) override { heap_.hide(slot); }
  void show(Slot slot) override { heap_.show(slot); }

 private:
  SlotHeap<GdsfKey> heap_;
  std::vector<double> uses_, size_;
  double clock_ = 0;
  std::uint64_t time_ = 0;
};

struct Gdsf final : RulePolicy<Gdsf, GdsfRule> {
  static constexpr PageTraits kTraits{
      .name = "gdsf",
      .summary =
          "the page with the smallest clock + frequency / size leaves; the clock is the last victim's value",
      .reference = "Cherkasova, HP Labs 1998; cost 1",
      .guardable = true};
  GdsfRule make_rule(const CacheSetup&) const { return {}; }
};

const RegisterPagePolicy<Gdsf> registered;

}  // namespace
}  // namespace kvsim
