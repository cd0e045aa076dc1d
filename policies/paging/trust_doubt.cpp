// Trust&Doubt: marking that lets every new page trust the predicted cache for intervals that double after
// each doubt.
#include <algorithm>
#include <set>
#include <utility>

#include "policies/paging/lazy_follower.h"
#include "policies/paging/page_registry.h"
#include "policies/paging/predicted_state.h"
#include "policies/paging/request_loop.h"

namespace kvsim {
namespace {

/// Antoniadis et al., 2020. The simulated cache is `held_`; the real one follows it lazily.
class TrustDoubtCache final : public RequestLoop<TrustDoubtCache> {
 public:
  TrustDoubtCache(const CacheSetup& setup, std::uint64_t seed, std::unique_ptr<Prediction> prediction)
      : RequestLoop(setup),
        k_(setup.capacity),
        random_(setup.random(RandomPurpose::eviction, seed)),
        prediction_(std::move(prediction)),
        predicted_(k_),
        follower_(k_, 1) {}

  bool contains(Page page) const override { return follower_.contains(page); }
  void grow(Page limit) {
    predicted_.grow(limit);
    follower_.grow(limit);
    state_.grow(limit);
  }

  bool access(const PageRequest& request) {
    predicted_.request(request.page, prediction_->predict(request));
    simulate(request.page);
    if (follower_.contains(request.page)) {
      follower_.touch(request.page);
      return true;
    }
    evicted_page_ = follower_.load(0, request.page);
    evicted_ += evicted_page_ != kNoPage ? 1 : 0;
    ++admitted_;
    ++admitted_bytes_;
    return false;
  }

 private:
  struct PageState {
    bool held = false;
    bool ancient = false;
    bool unmarked = false;         // stale and not requested in this phase
    std::uint32_t arrived_in = 0;  // phase of the latest arrival
    std::uint32_t priority = 0;    // of stale pages
    std::uint64_t last_request = 0;
    std::size_t charged_by = kNobody;  // index into clean_
  };
  struct Clean {
    Page charge = kNoPage;
    bool trusted = true;
    std::uint64_t start = 0, length = 1;
  };
  static constexpr std::size_t kNobody = ~std::size_t{0};

  void simulate(Page q) {
    const bool first = state_[q].arrived_in != phase_;
    if (first && arrivals_ == k_) begin_phase();
    const bool arrives = state_[q].arrived_in != phase_;
    const bool was_stale = state_[q].unmarked;
    state_[q].last_request = ++clock_;
    if (arrives) {
      state_[q].arrived_in = phase_;
      arrived_.push_back(q);
      ++arrivals_;
    }
    if (was_stale) set_unmarked(q, false);
    if (held_count_ < k_) {
      if (!state_[q].held) load(q);
      clear_ancient(q);
    } else if (ancient_count_ > 0) {
      serve_ancient(q);
    } else {
      serve(q, arrives, was_stale);
    }
  }

  void serve_ancient(Page q) {
    if (!state_[q].held) {
      evict(least_recent(
          ancient_, [this](Page p) { return state_[p].ancient; }, true));
      load(q);
    }
    clear_ancient(q);
  }

  void serve(Page q, bool arrives, bool was_stale) {
    if (!state_[q].held) {
      evict(cached_stale_.empty() ? any_other(q) : cached_stale_.begin()->second);
      load(q);
    }
    if (arrives && !was_stale) {
      clean_.push_back({.charge = kNoPage, .trusted = true, .start = arrivals_ - 1, .length = 1});
      charge(clean_.size() - 1);
    }
    if (state_[q].charged_by != kNobody) {
      const std::size_t c = state_[q].charged_by;
      state_[q].charged_by = kNobody;
      clean_[c].trusted = false;
      charge(c);
    }
    if (arrives) end_intervals();
  }

  void charge(std::size_t c) {
    const auto free = [this](Page p) { return state_[p].charged_by == kNobody && !predicted_.contains(p); };
    Page best = least_recent(
        stale_, [&](Page p) { return state_[p].unmarked && free(p); }, false);
    const Page arrived = least_recent(arrived_, free, false);
    if (best == kNoPage || (arrived != kNoPage && state_[arrived].last_request < state_[best].last_request))
      best = arrived;
    clean_[c].charge = best;
    if (best != kNoPage) state_[best].charged_by = c;
  }

  void end_intervals() {
    for (Clean& c : clean_) {
      if (arrivals_ - c.start != c.length) continue;
      c.start = arrivals_;
      if (!c.trusted) {
        c.length *= 2;
        c.trusted = true;
      }
      if (c.charge == kNoPage || !state_[c.charge].held) continue;
      const Page back = highest_absent();
      if (back == kNoPage) continue;
      evict(c.charge);
      load(back);
    }
  }

  /// The absent unmarked stale page of the highest priority that no trusted charge names.
  Page highest_absent() const {
    for (auto it = absent_stale_.rbegin(); it != absent_stale_.rend(); ++it) {
      const std::size_t by = state_[it->second].charged_by;
      if (by == kNobody || !clean_[by].trusted) return it->second;
    }
    return kNoPage;
  }

  void begin_phase() {
    for (const Clean& c : clean_) {
      if (c.charge != kNoPage) state_[c.charge].charged_by = kNobody;
    }
    for (const Page p : stale_) set_unmarked(p, false);
    for (const Page p : ancient_) clear_ancient(p);
    clean_.clear();
    stale_.clear();
    ancient_.clear();
    arrived_.clear();
    arrivals_ = 0;
    for (const Page p : held_) {
      if (!state_[p].held) continue;
      if (state_[p].arrived_in == phase_) {
        stale_.push_back(p);
      } else {
        state_[p].ancient = true;
        ++ancient_count_;
        ancient_.push_back(p);
      }
    }
    ++phase_;
    for (std::size_t i = stale_.size(); i > 1; --i) {
      std::swap(stale_[i - 1], stale_[random_->below(static_cast<std::uint32_t>(i))]);
    }
    for (std::size_t i = 0; i < stale_.size(); ++i) {
      state_[stale_[i]].priority = static_cast<std::uint32_t>(i);
      set_unmarked(stale_[i], true);
    }
  }

  /// The least recently requested page that fits; among those outside the predicted cache first where asked.
  template <typename Fits>
  Page least_recent(const std::vector<Page>& pages, Fits fits, bool prefer_outside) const {
    Page best = kNoPage, outside = kNoPage;
    const auto older = [this](Page a, Page b) {
      return b == kNoPage || state_[a].last_request < state_[b].last_request;
    };
    for (const Page p : pages) {
      if (!fits(p)) continue;
      if (older(p, best)) best = p;
      if (prefer_outside && !predicted_.contains(p) && older(p, outside)) outside = p;
    }
    return outside != kNoPage ? outside : best;
  }
  Page any_other(Page q) const {
    return least_recent(
        held_, [&](Page p) { return state_[p].held && p != q; }, false);
  }

  void clear_ancient(Page p) {
    if (!state_[p].ancient) return;
    state_[p].ancient = false;
    --ancient_count_;
  }
  void set_unmarked(Page p, bool unmarked) {
    PageState& s = state_[p];
    if (s.unmarked == unmarked) return;
    s.unmarked = unmarked;
    std::set<std::pair<std::uint32_t, Page>>& where = s.held ? cached_stale_ : absent_stale_;
    if (unmarked) {
      where.insert({s.priority, p});
    } else {
      where.erase({s.priority, p});
    }
  }
  void set_held(Page p, bool held) {
    const bool unmarked = state_[p].unmarked;
    set_unmarked(p, false);
    state_[p].held = held;
    set_unmarked(p, unmarked);
  }
  void load(Page p) {
    set_held(p, true);
    ++held_count_;
    held_.push_back(p);
    follower_.loaded(0, p);
  }
  void evict(Page p) {
    set_held(p, false);
    clear_ancient(p);
    --held_count_;
    held_.erase(std::find(held_.begin(), held_.end(), p));
    follower_.evicted(0, p);
  }

  std::uint64_t k_;
  std::unique_ptr<RandomSource> random_;
  std::unique_ptr<Prediction> prediction_;
  PredictedState predicted_;
  LazyFollower follower_;
  PageMap<PageState> state_;
  std::vector<Page> held_, stale_, ancient_, arrived_;
  std::vector<Clean> clean_;
  std::set<std::pair<std::uint32_t, Page>> cached_stale_, absent_stale_;  // unmarked stale pages by priority
  std::uint64_t held_count_ = 0, ancient_count_ = 0, arrivals_ = 0, clock_ = 0;
  std::uint32_t phase_ = 1;
};

struct TrustDoubt final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "trust_doubt",
      .summary =
          "marking in which every new page trusts the predicted cache for intervals that double after a "
          "doubt; O(k) a miss",
      .reference = "Antoniadis et al., 2020 (Trust&Doubt), as in chledowski/ml_caching_with_guarantees",
      .guard_refusal = "it follows a predicted cache, which may hold exactly the unguarded pages",
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
  bool needs_future() const override { return predictor->traits().future; }
  std::string refusal(const CacheSetup& setup) const override {
    const std::string why = predictor.refusal(kTraits.name, setup);
    return why.empty() ? PagePolicy::refusal(setup) : why;
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<TrustDoubtCache>(setup, seed, predictor->start(setup));
  }
};

const RegisterPagePolicy<TrustDoubt> registered;

}  // namespace
}  // namespace kvsim
