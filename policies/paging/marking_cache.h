// The cache that all marking policies share: phases, marks per slot, and predictions of the unmarked pages.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <queue>
#include <vector>

#include "policies/paging/page_map.h"
#include "policies/paging/predictor.h"
#include "policies/paging/request_loop.h"
#include "policies/paging/slot_heap.h"
#include "policies/paging/slot_set.h"

namespace kvsim {

/// A request marks its slot. A miss on a full cache with all slots marked opens a phase: all marks go, and
/// the resident pages are the phase's stale ones. Derived names the victim of a miss among the unmarked
/// (`Slot choose(const PageRequest&)`) and may take part in what follows. Pages of one size.
template <typename Derived>
class MarkingCache : public RequestLoop<Derived> {
 public:
  MarkingCache(const CacheSetup& setup, std::uint64_t policy_seed,
               std::unique_ptr<Prediction> prediction = nullptr)
      : RequestLoop<Derived>(setup),
        k_(static_cast<std::uint32_t>(std::min<std::uint64_t>(setup.capacity, kNoSlot - 1))),
        random_(setup.random(RandomPurpose::eviction, policy_seed)),
        prediction_(std::move(prediction)) {}

  bool contains(Page page) const override { return slot_of_.find(page) != kNoSlot; }
  void grow(Page limit) {
    slot_of_.grow(limit);
    stale_in_.grow(limit);
    self().grow_pages(limit);
  }

  bool access(const PageRequest& request) {
    Slot slot = slot_of_[request.page];
    const bool hit = slot != kNoSlot;
    self().before_request(request, hit);
    if (!hit) slot = load(request);
    mark(slot);
    if (prediction_) {
      value_[slot] = prediction_->predict(request);
      if (unmarked_.has(slot)) farthest_.update(slot, value_[slot]);
    }
    self().after_request(request, slot, hit);
    return hit;
  }

 protected:
  // What derived classes may replace by hiding.
  void grow_pages(Page) {}
  void before_request(const PageRequest&, bool) {}
  void after_request(const PageRequest&, Slot, bool) {}
  void phase_opened() {}
  void chosen(const PageRequest&, Slot) {}
  bool opens_phase_on_miss() const { return true; }

  bool is_stale(Page page) const { return phase_ > 0 && stale_in_[page] == phase_; }
  Slot draw_unmarked() { return unmarked_.draw(*random_); }
  Slot farthest_unmarked() const { return farthest_.top(); }
  Page page_at(Slot slot) const { return page_of_[slot]; }
  bool full() const { return free_.empty() && page_of_.size() == k_; }

  void open_phase() {
    ++phase_;
    for (Slot s = 0; s < page_of_.size(); ++s) {
      if (slot_of_[page_of_[s]] == s) stale_in_[page_of_[s]] = phase_;
      unmark(s);
    }
    self().phase_opened();
  }
  void mark(Slot slot) {
    unmarked_.remove(slot);
    farthest_.remove(slot);
  }
  void unmark(Slot slot) {
    if (unmarked_.has(slot)) return;
    unmarked_.add(slot);
    if (prediction_) farthest_.insert(slot, value_[slot]);
  }
  /// Gives the slot back; its mark stays.
  void drop(Slot slot) {
    this->evicted_page_ = page_of_[slot];
    slot_of_[page_of_[slot]] = kNoSlot;
    ++this->evicted_;
    free_.push(slot);
  }

  std::uint32_t k_;
  std::unique_ptr<RandomSource> random_;
  std::unique_ptr<Prediction> prediction_;
  SlotSet unmarked_;
  SlotHeap<double> farthest_;  // the unmarked slots by prediction; empty without predictions
  std::vector<double> value_;
  PageMap<Slot> slot_of_{kNoSlot};
  std::uint32_t phase_ = 0;

 private:
  Derived& self() { return static_cast<Derived&>(*this); }

  Slot load(const PageRequest& request) {
    Slot slot;
    if (!free_.empty()) {
      slot = free_.top();
      free_.pop();
    } else if (page_of_.size() < k_) {
      slot = static_cast<Slot>(page_of_.size());
      page_of_.push_back(0);
      value_.push_back(0);
      unmarked_.resize(page_of_.size());
      farthest_.resize(page_of_.size());
    } else {
      if (unmarked_.empty() && self().opens_phase_on_miss()) open_phase();
      slot = self().choose(request);
      self().chosen(request, slot);
      this->evicted_page_ = page_of_[slot];
      slot_of_[page_of_[slot]] = kNoSlot;
      ++this->evicted_;
    }
    page_of_[slot] = request.page;
    slot_of_[request.page] = slot;
    ++this->admitted_;
    ++this->admitted_bytes_;
    return slot;
  }

  std::vector<Page> page_of_;
  std::priority_queue<Slot, std::vector<Slot>, std::greater<>> free_;  // lowest first
  PageMap<std::uint32_t> stale_in_{0};
};

/// H_n = 1 + 1/2 + ... + 1/n.
inline double harmonic(std::uint64_t n) {
  double sum = 0;
  for (std::uint64_t i = n; i > 0; --i) sum += 1.0 / static_cast<double>(i);
  return sum;
}

inline constexpr std::string_view kMarksRefusal =
    "it evicts by marks of its own phases, and every unmarked page may be guarded";

}  // namespace kvsim
