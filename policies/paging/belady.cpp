// The clairvoyant optimum for pages of one size, and its greedy cousin for objects of many sizes.
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_heap.h"
#include "policies/paging/slot_set.h"

namespace kvsim {
namespace {

class BeladyRule final : public VictimRule {
 public:
  void resize(std::size_t slots) override { heap_.resize(slots); }
  void load(Slot slot, const PageRequest& request) override { heap_.insert(slot, request.next_use); }
  void hit(Slot slot, const PageRequest& request) override { heap_.update(slot, request.next_use); }
  void unload(Slot slot) override { heap_.remove(slot); }
  Slot victim(const PageRequest&) override { return heap_.top(); }
  void hide(Slot slot) override { heap_.hide(slot); }
  void show(Slot slot) override { heap_.show(slot); }

 private:
  SlotHeap<std::uint64_t> heap_;
};

struct Belady final : RulePolicy<Belady, BeladyRule> {
  static constexpr PageTraits kTraits{
      .name = "belady",
      .summary =
          "the page whose next request is farthest away leaves: the fewest misses for pages of one size",
      .reference = "Belady, 1966 (MIN); forced admission",
      .guardable = true,
      .future = true,
      .stack = true};
  BeladyRule make_rule(const CacheSetup&) const { return {}; }
};

/// Pages that never come back leave first, largest first; otherwise the largest size * time to next use of a
/// sample.
class BeladySizeRule final : public VictimRule {
 public:
  BeladySizeRule(std::unique_ptr<RandomSource> random, std::uint32_t samples)
      : random_(std::move(random)), samples_(samples) {}
  void resize(std::size_t slots) override {
    next_.resize(slots, 0);
    size_.resize(slots, 1);
    living_.resize(slots);
    dead_.resize(slots);
  }
  void load(Slot slot, const PageRequest& request) override {
    size_[slot] = request.size;
    next_[slot] = request.next_use;
    show(slot);
  }
  void hit(Slot slot, const PageRequest& request) override {
    const bool visible = living_.has(slot) || dead_.has(slot);
    if (visible) hide(slot);
    next_[slot] = request.next_use;
    if (visible) show(slot);
  }
  void unload(Slot slot) override { hide(slot); }
  Slot victim(const PageRequest& incoming) override {
    if (!dead_.empty()) return dead_.top();
    const std::uint32_t draws = std::min(samples_, living_.size());
    Slot best = kNoSlot;
    double best_score = -1;
    for (std::uint32_t i = 0; i < draws; ++i) {
      const Slot s = draws == living_.size() ? living_[i] : living_.draw(*random_);
      const double score = static_cast<double>(size_[s]) * static_cast<double>(next_[s] - incoming.time);
      if (score > best_score || (score == best_score && s < best)) {
        best = s;
        best_score = score;
      }
    }
    return best;
  }
  void hide(Slot slot) override {
    living_.remove(slot);
    dead_.remove(slot);
  }
  void show(Slot slot) override {
    if (next_[slot] == kNeverAgain) {
      dead_.insert(slot, size_[slot]);
    } else {
      living_.add(slot);
    }
  }

 private:
  std::unique_ptr<RandomSource> random_;
  std::uint32_t samples_;
  std::vector<std::uint64_t> next_, size_;
  SlotSet living_;
  SlotHeap<std::uint64_t> dead_;
};

struct BeladySize final : RulePolicy<BeladySize, BeladySizeRule> {
  static constexpr PageTraits kTraits{.name = "belady_size",
                                      .summary =
                                          "the largest size * time to next request leaves, out of a sample; "
                                          "no optimum exists in polynomial time",
                                      .reference = "libCacheSim's BeladySize (greedy)",
                                      .guardable = true,
                                      .future = true,
                                      .randomised = true};
  std::uint32_t samples = 64, seed = 0;
  void fields(FieldVisitor& visitor) override {
    visitor.number("samples", samples, 1, 1u << 20,
                   "residents looked at per eviction; all when there are fewer");
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  BeladySizeRule make_rule(const CacheSetup& setup) const {
    return BeladySizeRule(setup.random(RandomPurpose::sampling, seed), samples);
  }
};

const RegisterPagePolicy<Belady> registered;
const RegisterPagePolicy<BeladySize> registered_size;

}  // namespace
}  // namespace kvsim
