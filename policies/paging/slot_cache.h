// A cache of slots that serves requests by a victim rule, with Guard between the two where asked.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/error.h"
#include "policies/paging/guard_state.h"
#include "policies/paging/page_map.h"
#include "policies/paging/request_loop.h"

namespace kvsim {

/// Cold fills use the lowest slot that was never used, then slots that were given back, last first. `Rule` is
/// a final class derived from VictimRule (calls are then inlined), or ErasedRule. With kGuarded this is
/// Guard around the rule, and serve_step keeps its guarantees for the sets of steps: hits first, then misses,
/// all pinned.
template <typename Rule, bool kGuarded = false>
class SlotCache final : public RequestLoop<SlotCache<Rule, kGuarded>> {
  using Loop = RequestLoop<SlotCache<Rule, kGuarded>>;

 public:
  SlotCache(const CacheSetup& setup, Rule rule) : Loop(setup), rule_(std::move(rule)) {}
  SlotCache(const CacheSetup& setup, Rule rule, const GuardOptions& options)
      : Loop(setup), rule_(std::move(rule)), guard_(std::in_place, setup, options) {}

  bool contains(Page page) const override { return slot_of_.find(page) != kNoSlot; }
  const GuardCounters* guard_counters() const override { return guard_ ? &guard_->counters() : nullptr; }
  const GuardState* guard_state() const { return guard_ ? &*guard_ : nullptr; }
  Rule& rule() { return rule_; }
  Page page_at(Slot s) const { return page_of_[s]; }
  std::size_t slots() const { return page_of_.size(); }

  void grow(Page limit) {
    slot_of_.grow(limit);
    if constexpr (kGuarded) guard_->grow_pages(limit);
  }

  bool access(const PageRequest& request) {
    rule_.before(request);
    const Slot slot = slot_of_[request.page];
    if (slot != kNoSlot) {
      if constexpr (kGuarded) guard_->requested(slot);
      rule_.hit(slot, request);
      return true;
    }
    load(request);
    return false;
  }

  void serve_step(const RequestBlock& set, PageTally& tally) override {
    grow(set.page_limit);
    for (const bool hits : {true, false}) {
      for (std::size_t i = 0; i < set.count(); ++i) {
        const Slot before = slot_of_[set.pages[i]];
        const bool pinned = before != kNoSlot && is_pinned(before);
        if ((before != kNoSlot) != hits || pinned) continue;
        this->serve(set.part(i, 1), tally);
        const Slot slot = slot_of_[set.pages[i]];
        if (slot != kNoSlot) pin(slot);
      }
    }
    for (const Slot s : pinned_) {
      pinned_flag_[s] = 0;
      unhide(s);
    }
    pinned_.clear();
  }

  void prefetch(Page page) const { slot_of_.prefetch(page); }
  void prefetch_near(Page page) const {
    if constexpr (requires { rule_.prefetch(Slot{}); }) {
      const Slot slot = slot_of_[page];
      if (slot != kNoSlot) rule_.prefetch(slot);
    }
  }

 private:
  void load(const PageRequest& request) {
    bool guard = false;
    while (used_ + request.size > this->capacity_) guard = evict_one(request);
    const Slot slot = take_slot();
    used_ += request.size;
    if (request.size != 1 || !size_of_.empty()) {
      size_of_.resize(page_of_.size(), 1);
      size_of_[slot] = request.size;
    }
    page_of_[slot] = request.page;
    slot_of_[request.page] = slot;
    ++this->admitted_;
    this->admitted_bytes_ += request.size;
    rule_.load(slot, request);
    if constexpr (kGuarded) {
      guard_->count_miss();
      if (guard) {
        guard_->protect(slot);
        hide(slot);
      }
    }
  }

  /// Makes room by one victim; true when the incoming page is to be guarded.
  bool evict_one(const PageRequest& request) {
    bool guard = false;
    Slot victim = kNoSlot;
    if constexpr (kGuarded) {
      if (guard_->phase_is_over()) open_phase(request);
      guard = guard_->is_error(request.page);
      victim = guard_->draws(guard) ? guard_->draw() : rule_.victim(request);
      guard_->evicted(victim, page_of_[victim], guard);
    } else {
      victim = rule_.victim(request);
    }
    rule_.unload(victim);
    this->evicted_page_ = page_of_[victim];
    slot_of_[page_of_[victim]] = kNoSlot;
    used_ -= size_at(victim);
    free_.push_back(victim);
    ++this->evicted_;
    return guard;
  }

  void open_phase(const PageRequest& request) {
    for (const Slot s : guard_->guarded()) unhide(s);
    guard_->open_phase(request.time);
    for (const Slot s : free_) guard_->requested(s);
    for (const Slot s : pinned_) guard_->requested(s);
  }

  Slot take_slot() {
    if (!free_.empty()) {
      const Slot s = free_.back();
      free_.pop_back();
      return s;
    }
    const Slot s = static_cast<Slot>(page_of_.size());
    page_of_.push_back(0);
    if (s >= reserved_) {
      reserved_ = std::max<std::size_t>(16, std::min<std::size_t>(reserved_ * 2, this->capacity_));
      reserved_ = std::max<std::size_t>(reserved_, s + 1);
      rule_.resize(reserved_);
    }
    if constexpr (kGuarded) guard_->grow_slots(page_of_.size());
    return s;
  }

  std::uint64_t size_at(Slot s) const { return s < size_of_.size() ? size_of_[s] : 1; }

  // A slot may be hidden for two reasons, guarded and pinned; the rule hears of the first and of the last.
  void hide(Slot s) {
    if (hidden_.size() <= s) hidden_.resize(page_of_.size(), 0);
    if (hidden_[s]++ == 0) rule_.hide(s);
  }
  void unhide(Slot s) {
    if (--hidden_[s] == 0) rule_.show(s);
  }
  bool is_pinned(Slot s) const { return s < pinned_flag_.size() && pinned_flag_[s] != 0; }
  void pin(Slot s) {
    if (pinned_flag_.size() <= s) pinned_flag_.resize(page_of_.size(), 0);
    pinned_flag_[s] = 1;
    pinned_.push_back(s);
    hide(s);
  }

  Rule rule_;
  std::optional<GuardState> guard_;
  PageMap<Slot> slot_of_{kNoSlot};
  std::vector<Page> page_of_;
  std::vector<std::uint64_t> size_of_;  // stays empty for objects of one size
  std::vector<Slot> free_;
  std::vector<std::uint8_t> hidden_, pinned_flag_;
  std::vector<Slot> pinned_;
  std::size_t reserved_ = 0;
  std::uint64_t used_ = 0;
};

/// A rule behind a pointer, for Guard around whatever base was named.
class ErasedRule final : public VictimRule {
 public:
  explicit ErasedRule(std::unique_ptr<VictimRule> rule) : rule_(std::move(rule)) {}
  void resize(std::size_t slots) override { rule_->resize(slots); }
  void before(const PageRequest& request) override { rule_->before(request); }
  void load(Slot slot, const PageRequest& request) override { rule_->load(slot, request); }
  void hit(Slot slot, const PageRequest& request) override { rule_->hit(slot, request); }
  void unload(Slot slot) override { rule_->unload(slot); }
  Slot victim(const PageRequest& incoming) override { return rule_->victim(incoming); }
  void hide(Slot slot) override { rule_->hide(slot); }
  void show(Slot slot) override { rule_->show(slot); }

 private:
  std::unique_ptr<VictimRule> rule_;
};

}  // namespace kvsim
