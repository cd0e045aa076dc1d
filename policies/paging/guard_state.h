// Guard's own state: phases, the unrequested old pages, guarded slots and evicted pages, each O(1) a request.
#pragma once

#include <vector>

#include "policies/paging/page_map.h"
#include "policies/paging/slot_set.h"

namespace kvsim {

/// Guard's parameters, as in its authors' code. The defaults are the strict form, the one that the theorem
/// speaks of.
struct GuardOptions {
  std::uint32_t relax_times = 1;  // the first relax_times - 1 detected errors of a phase are left to the base
  double relax_prob = 0.0;        // a detected error is left to the base with this probability
  bool follow_if_guarded = false;  // guard the page, but let the base name the victim
  std::uint64_t seed = 0;
};

/// U = unrequested old slots, G = guarded slots, E = pages evicted in this phase. The slots of G are hidden
/// from the base by the cache; E is kept by stamps, so opening a phase clears nothing.
class GuardState {
 public:
  GuardState(const CacheSetup& setup, const GuardOptions& options)
      : options_(options),
        random_(setup.random(RandomPurpose::eviction, options.seed)),
        detail_(setup.detail) {}

  void grow_pages(Page limit) { evicted_in_.grow(limit); }
  void grow_slots(std::size_t slots) { unrequested_.resize(slots); }

  /// A request for the page in `slot`, or a page newly put there.
  void requested(Slot slot) { unrequested_.remove(slot); }

  bool phase_is_over() const { return unrequested_.empty(); }
  void open_phase(std::uint64_t time) {
    ++phase_;
    ++counters_.phases;
    errors_in_phase_ = 0;
    guarded_.clear();
    unrequested_.fill();
    if (detail_) counters_.detail.push_back({.begin = time});
  }

  /// Asked once per victim, after phase_is_over() was dealt with: is this the re-miss of a page evicted in
  /// this phase, and one that Guard acts upon?
  bool is_error(Page page) {
    if (evicted_in_[page] != phase_) return false;
    ++counters_.errors;
    ++errors_in_phase_;
    if (detail_) ++counters_.detail.back().errors;
    if (errors_in_phase_ < options_.relax_times) return false;
    if (options_.relax_prob > 0 && random_->unit() <= options_.relax_prob) return false;
    ++counters_.guards;
    if (detail_) ++counters_.detail.back().guards;
    return true;
  }
  bool draws(bool guard) const { return guard && !options_.follow_if_guarded; }
  Slot draw() { return unrequested_.draw(*random_); }
  void evicted(Slot slot, Page page, bool guard) {
    evicted_in_[page] = phase_;
    unrequested_.remove(slot);
    ++(draws(guard) ? counters_.random_evictions : counters_.base_evictions);
  }
  void protect(Slot slot) { guarded_.push_back(slot); }
  void count_miss() {
    if (detail_ && phase_ > 0) ++counters_.detail.back().misses;
  }

  const std::vector<Slot>& guarded() const { return guarded_; }
  const SlotSet& unrequested() const { return unrequested_; }
  std::uint32_t phase() const { return phase_; }
  bool was_evicted(Page page) const { return phase_ > 0 && evicted_in_.find(page) == phase_; }
  const GuardCounters& counters() const { return counters_; }

 private:
  GuardOptions options_;
  std::unique_ptr<RandomSource> random_;
  bool detail_;
  SlotSet unrequested_;
  std::vector<Slot> guarded_;
  PageMap<std::uint32_t> evicted_in_{0};
  std::uint32_t phase_ = 0;
  std::uint64_t errors_in_phase_ = 0;
  GuardCounters counters_;
};

}  // namespace kvsim
