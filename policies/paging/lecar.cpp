// LeCaR: LRU and LFU as two experts whose weights fall when a page that they evicted comes back.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "policies/paging/ghost_list.h"
#include "policies/paging/rule_policy.h"
#include "policies/paging/slot_heap.h"
#include "policies/paging/slot_list.h"

namespace kvsim {
namespace {

struct LeastUsed {
  std::uint64_t count = 0, time = 0;
  friend bool operator<(const LeastUsed& a, const LeastUsed& b) {
    return std::tie(b.count, b.time) < std::tie(a.count, a.time);
  }
  friend bool operator==(const LeastUsed&, const LeastUsed&) = default;
};

class LecarRule final : public VictimRule {
 public:
  LecarRule(const CacheSetup& setup, double rate, double base, std::unique_ptr<RandomSource> random)
      : rate_(rate),
        decay_(std::log(base) / static_cast<double>(setup.capacity)),
        random_(std::move(random)),
        ghost_{GhostList(ghost_size(setup), setup.by_bytes), GhostList(ghost_size(setup), setup.by_bytes)} {}

  void resize(std::size_t slots) override {
    list_.resize(slots);
    heap_.resize(slots);
    page_.resize(slots, 0);
    size_.resize(slots, 1);
  }
  void load(Slot slot, const PageRequest& request) override {
    learn(request.page);
    learned_ = false;
    page_[slot] = request.page;
    size_[slot] = request.size;
    list_.push_front(slot);
    heap_.insert(slot, {++past_[request.page].count, ++clock_});
  }
  void hit(Slot slot, const PageRequest&) override {
    list_.move_front(slot);
    heap_.update(slot, {++past_[page_[slot]].count, ++clock_});
  }
  void unload(Slot slot) override {
    const Page page = page_[slot];
    if (slot == named_ && expert_ != kBoth) {
      ghost_[expert_].push(page, size_[slot]);
      past_[page].evicted = clock_;
    } else {
      past_[page].count = 0;
    }
    named_ = kNoSlot;
    list_.remove(slot);
    heap_.remove(slot);
  }
  Slot victim(const PageRequest& incoming) override {
    learn(incoming.page);
    const Slot by_recency = list_.oldest_visible();
    const Slot by_frequency = heap_.top();
    expert_ = random_->unit() < weight_lru_ ? kLru : kLfu;
    named_ = expert_ == kLru ? by_recency : by_frequency;
    if (by_recency == by_frequency) expert_ = kBoth;
    return named_;
  }
  void hide(Slot slot) override {
    list_.hide(slot);
    heap_.hide(slot);
  }
  void show(Slot slot) override {
    list_.show(slot);
    heap_.show(slot);
  }

 private:
  enum : std::size_t { kLru, kLfu, kBoth };
  struct Past {
    std::uint64_t count = 0, evicted = 0;
  };
  static std::uint64_t ghost_size(const CacheSetup& setup) {
    return std::max<std::uint64_t>(1, setup.capacity / 2);
  }
  void grow(Page limit) {
    past_.grow(limit);
    ghost_[kLru].grow(limit);
    ghost_[kLfu].grow(limit);
  }
  /// A miss on a page that an expert evicted lowers its weight by exp(-rate * base^(age / capacity)), before
  /// a victim is chosen. Once per miss.
  void learn(Page page) {
    if (learned_) return;
    learned_ = true;
    grow(page + 1);
    bool known = false;
    for (const std::size_t expert : {kLru, kLfu}) {
      if (!ghost_[expert].contains(page)) continue;
      known = true;
      ghost_[expert].remove(page);
      const double regret = std::exp(decay_ * static_cast<double>(clock_ - past_[page].evicted));
      double w[2] = {weight_lru_, 1.0 - weight_lru_};
      w[expert] *= std::exp(-rate_ * regret);
      weight_lru_ = w[kLru] / (w[kLru] + w[kLfu]);
    }
    if (!known) past_[page].count = 0;
  }

  double rate_, decay_;
  std::unique_ptr<RandomSource> random_;
  GhostList ghost_[2];
  SlotList list_;
  SlotHeap<LeastUsed> heap_;
  std::vector<Page> page_;
  std::vector<std::uint64_t> size_;
  PageMap<Past> past_;
  double weight_lru_ = 0.5;
  std::uint64_t clock_ = 0;
  Slot named_ = kNoSlot;
  std::size_t expert_ = kBoth;
  bool learned_ = false;  // from the present miss
};

struct Lecar final : RulePolicy<Lecar, LecarRule> {
  static constexpr PageTraits kTraits{
      .name = "lecar",
      .summary = "LRU and LFU as experts, drawn by weights that fall when an evicted page comes back",
      .reference = "Vietri et al., HotStorage 2018; libCacheSim's constants",
      .guardable = true,
      .randomised = true};
  double rate = 0.45, discount = 0.005;
  std::uint32_t seed = 0;
  void fields(FieldVisitor& visitor) override {
    visitor.number("rate", rate, 0.0, 100.0, "learning rate");
    visitor.number("discount", discount, 1e-12, 1.0,
                   "what is left of a regret after one cache size of requests");
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  LecarRule make_rule(const CacheSetup& setup) const {
    return LecarRule(setup, rate, discount, setup.random(RandomPurpose::eviction, seed));
  }
};

const RegisterPagePolicy<Lecar> registered;

}  // namespace
}  // namespace kvsim
