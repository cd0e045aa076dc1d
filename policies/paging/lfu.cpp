// Least frequently used: counts since admission (lfu), or counts that survive eviction (plfu).
#include <tuple>

#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_heap.h"

namespace kvsim {
namespace {

/// Ordered so that the largest key is the smallest count, then the least recent use.
struct LfuKey {
  std::uint64_t count = 0, time = 0;
  friend bool operator<(const LfuKey& a, const LfuKey& b) {
    return std::tie(b.count, b.time) < std::tie(a.count, a.time);
  }
  friend bool operator==(const LfuKey&, const LfuKey&) = default;
};

template <bool kPerfect>
class LfuRule final : public VictimRule {
 public:
  void resize(std::size_t slots) override {
    heap_.resize(slots);
    page_.resize(slots, 0);
  }
  void load(Slot slot, const PageRequest& request) override {
    std::uint64_t count = 1;
    if constexpr (kPerfect) {
      counts_.grow(request.page + 1);
      count = ++counts_[request.page];
    }
    page_[slot] = request.page;
    heap_.insert(slot, {count, ++clock_});
  }
  void hit(Slot slot, const PageRequest&) override {
    std::uint64_t count = heap_.key(slot).count + 1;
    if constexpr (kPerfect) count = ++counts_[page_[slot]];
    heap_.update(slot, {count, ++clock_});
  }
  void unload(Slot slot) override { heap_.remove(slot); }
  Slot victim(const PageRequest&) override { return heap_.top(); }
  void hide(Slot slot) override { heap_.hide(slot); }
  void show(Slot slot) override { heap_.show(slot); }

 private:
  SlotHeap<LfuKey> heap_;
  std::vector<Page> page_;
  PageMap<std::uint64_t> counts_;
  std::uint64_t clock_ = 0;
};

struct Lfu final : RulePolicy<Lfu, LfuRule<false>> {
  static constexpr PageTraits kTraits{
      .name = "lfu",
      .summary = "the page with the fewest requests since it was loaded leaves; ties: least recent",
      .reference = "classical; counts are forgotten on eviction",
      .guardable = true};
  LfuRule<false> make_rule(const CacheSetup&) const { return {}; }
};
struct PerfectLfu final : RulePolicy<PerfectLfu, LfuRule<true>> {
  static constexpr PageTraits kTraits{
      .name = "plfu",
      .summary = "LFU with counts over the whole past, evicted or not; ties: least recent",
      .reference = "classical (perfect LFU)",
      .guardable = true,
      .stack = true};
  LfuRule<true> make_rule(const CacheSetup&) const { return {}; }
};

const RegisterPagePolicy<Lfu> registered_lfu;
const RegisterPagePolicy<PerfectLfu> registered_plfu;

}  // namespace
}  // namespace kvsim
