// Trust&Doubt: marking that lets every new page trust the predicted cache for intervals that double after
// each doubt.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "kernels/error.h"
#include "policies/paging/lazy_follower.h"
#include "policies/paging/page_registry.h"
#include "policies/paging/predicted_state.h"
#include "policies/paging/request_loop.h"

namespace kvsim {
namespace {

/// Antoniadis et al., 2020. The simulated cache is `held`; the real one follows it lazily.
///
/// What a step asks for (the least recent chargeable page, the lowest cached stale page, ...) is kept in
/// ordered sets, and a page is moved between them when something about it changes (`refile`), so every
/// request costs O(log k), amortised over the k arrivals of a phase.
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
    const Page gone = predicted_.request(request.page, prediction_->predict(request));
    refile(request.page);
    if (gone != kNoPage) refile(gone);
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
  /// Ordered sets of pages. The first two order by priority, the others by last request.
  enum File : std::uint8_t {
    kCachedStale,       // unmarked and held
    kReloadable,        // unmarked, absent, and no trusted charge
    kAncientOutside,    // ancient and not in the predicted cache
    kAncientPredicted,  // ancient and in it
    kChargeable,        // unmarked or arrived in this phase, not predicted, not charged
    kFiles
  };
  struct PageState {
    bool held = false;
    bool ancient = false;
    bool unmarked = false;         // stale and not requested in this phase
    std::uint32_t arrived_in = 0;  // phase of the latest arrival
    std::uint32_t priority = 0;    // of stale pages
    std::uint32_t filed = 0;       // bit f: in files_[f]
    std::uint64_t last_request = 0, loaded = 0;
    std::size_t place = 0;             // in held_
    std::size_t charged_by = kNobody;  // index into clean_
  };
  /// A page that came new in this phase, and the page it charges. Its intervals last `length` arrivals from
  /// `start`.
  struct Clean {
    Page charge = kNoPage;
    bool trusted = true;
    std::uint64_t start = 0;
    std::uint32_t exponent = 0;  // length = 2^exponent
    std::uint64_t length() const { return std::uint64_t{1} << exponent; }
  };
  using Order = std::set<std::pair<std::uint64_t, Page>>;
  static constexpr std::size_t kNobody = ~std::size_t{0};

  void simulate(Page q) {
    if (state_[q].arrived_in != phase_ && arrivals_ == k_) begin_phase();
    PageState& s = state_[q];
    const bool arrives = s.arrived_in != phase_;
    const bool was_stale = s.unmarked;
    const bool ancient_left = ancient_count_ > 0;
    ancient_count_ -= s.ancient ? 1 : 0;
    s.ancient = s.unmarked = false;
    refile(q);  // q is in the predicted cache: from now on no set orders it by its last request
    s.last_request = ++clock_;
    if (arrives) {
      s.arrived_in = phase_;
      ++arrivals_;
    }
    if (held_.size() < k_ || ancient_left) {
      if (!s.held) {
        if (held_.size() == k_)
          evict(first_of(files_[kAncientOutside].empty() ? kAncientPredicted : kAncientOutside));
        load(q);
      }
    } else {
      serve(q, arrives, was_stale);
    }
  }

  void serve(Page q, bool arrives, bool was_stale) {
    if (!state_[q].held) {
      // Without ancient pages everything held is unmarked or arrived in this phase, and at most k pages
      // arrive.
      if (files_[kCachedStale].empty()) throw InternalError("trust_doubt: no unmarked stale page to evict");
      evict(first_of(kCachedStale));
      load(q);
    }
    if (arrives && !was_stale) {
      clean_.push_back({.charge = kNoPage, .trusted = true, .start = arrivals_ - 1});
      charge(clean_.size() - 1);
    }
    if (state_[q].charged_by != kNobody) {
      const std::size_t c = state_[q].charged_by;
      state_[q].charged_by = kNobody;
      doubt(c);
      charge(c);
      refile(q);
    }
    if (arrives) end_intervals();
  }

  void charge(std::size_t c) {
    const Page best = files_[kChargeable].empty() ? kNoPage : first_of(kChargeable);
    clean_[c].charge = best;
    if (best == kNoPage) return;
    state_[best].charged_by = c;
    refile(best);
    if (clean_[c].trusted) watch(c);
  }

  // Intervals. A trusted charge that is absent stays absent until it is requested, which ends the trust; the
  // end of its intervals changes nothing, and `start` catches up when it is needed. So only these are looked
  // at when an arrival ends intervals: the untrusted, once each, and the trusted with a held charge, of which
  // every one that is served becomes absent.

  /// Trusted charges that are held, by (exponent, start mod length): intervals of one set end together.
  std::set<std::size_t>& watched(const Clean& c) {
    const std::size_t at = c.length() - 1 + c.start % c.length();
    if (watched_.size() <= at) watched_.resize(at + 1);
    return watched_[at];
  }
  void watch(std::size_t c) {
    if (state_[clean_[c].charge].held) watched(clean_[c]).insert(c);
  }
  void doubt(std::size_t c) {
    Clean& clean = clean_[c];
    if (!clean.trusted) return;
    watched(clean).erase(c);
    clean.trusted = false;
    clean.start += (ended_ - clean.start) / clean.length() * clean.length();
    doubted_[clean.start + clean.length()].push_back(c);
  }

  /// Serves the clean pages whose interval ends with this arrival, in the order of their arrival.
  void end_intervals() {
    ended_ = arrivals_;
    std::vector<std::size_t> doubted;
    if (const auto due = doubted_.find(arrivals_); due != doubted_.end()) {
      doubted = std::move(due->second);
      doubted_.erase(due);
      std::sort(doubted.begin(), doubted.end());
    }
    for (std::size_t next = 0;;) {
      const std::size_t doubting = next < doubted.size() ? doubted[next] : kNobody;
      const std::size_t watching = files_[kReloadable].empty() ? kNobody : first_watched();
      if (doubting == watching) return;  // neither is left
      if (doubting < watching) {
        ++next;
        trust_again(doubting);
      } else {
        watched(clean_[watching]).erase(watching);
        swap_back(watching);
      }
    }
  }
  /// The first watched clean page whose interval ends now.
  std::size_t first_watched() const {
    std::size_t best = kNobody;
    for (std::uint64_t length = 1; length <= watched_.size(); length *= 2) {
      const std::size_t at = length - 1 + arrivals_ % length;
      if (at < watched_.size() && !watched_[at].empty()) best = std::min(best, *watched_[at].begin());
    }
    return best;
  }
  void trust_again(std::size_t c) {
    Clean& clean = clean_[c];
    clean.start = arrivals_;
    ++clean.exponent;
    clean.trusted = true;
    if (clean.charge == kNoPage) return;
    refile(clean.charge);
    if (!state_[clean.charge].held) return;
    if (files_[kReloadable].empty()) {
      watch(c);
    } else {
      swap_back(c);
    }
  }
  /// The charge leaves; the absent unmarked stale page of the highest priority that no trusted charge names
  /// comes back.
  void swap_back(std::size_t c) {
    const Page back = files_[kReloadable].rbegin()->second;
    evict(clean_[c].charge);
    load(back);
  }

  void begin_phase() {
    std::vector<Page> stale;
    for (const Page p : held_) {
      if (state_[p].arrived_in == phase_) stale.push_back(p);
    }
    std::sort(stale.begin(), stale.end(),
              [this](Page a, Page b) { return state_[a].loaded < state_[b].loaded; });
    for (std::size_t i = stale.size(); i > 1; --i) {
      std::swap(stale[i - 1], stale[random_->below(static_cast<std::uint32_t>(i))]);
    }
    ++phase_;
    arrivals_ = ended_ = 0;
    forget_phase();
    for (const Page p : held_) state_[p].ancient = true;
    for (std::size_t i = 0; i < stale.size(); ++i) {
      PageState& s = state_[stale[i]];
      s.ancient = false;
      s.unmarked = true;
      s.priority = static_cast<std::uint32_t>(i);
    }
    ancient_count_ = held_.size() - stale.size();
    for (const Page p : held_) refile(p);
  }
  void forget_phase() {
    for (const Clean& c : clean_) {
      if (c.charge == kNoPage) continue;
      state_[c.charge].charged_by = kNobody;
      state_[c.charge].unmarked = false;  // an absent trusted charge is in no set
    }
    clean_.clear();
    watched_.clear();
    doubted_.clear();
    for (Order& file : files_) {
      for (const auto& [key, p] : file) {
        state_[p].filed = 0;
        state_[p].unmarked = state_[p].ancient = false;
      }
      file.clear();
    }
  }

  Page first_of(File file) const { return files_[file].begin()->second; }
  /// Moves the page to the sets where it belongs. To be called whenever something about it has changed.
  void refile(Page p) {
    PageState& s = state_[p];
    const bool charged = s.charged_by != kNobody;
    const bool predicted = predicted_.contains(p);
    const bool trusted = charged && clean_[s.charged_by].trusted;
    put(p, kCachedStale, s.unmarked && s.held);
    put(p, kReloadable, s.unmarked && !s.held && !trusted);
    put(p, kAncientOutside, s.ancient && !predicted);
    put(p, kAncientPredicted, s.ancient && predicted);
    put(p, kChargeable, (s.unmarked || s.arrived_in == phase_) && !predicted && !charged);
  }
  void put(Page p, File file, bool wanted) {
    PageState& s = state_[p];
    const std::uint32_t bit = 1u << file;
    if (((s.filed & bit) != 0) == wanted) return;
    s.filed ^= bit;
    const std::pair<std::uint64_t, Page> key{file <= kReloadable ? s.priority : s.last_request, p};
    if (wanted) {
      files_[file].insert(key);
    } else {
      files_[file].erase(key);
    }
  }
  void load(Page p) {
    PageState& s = state_[p];
    s.held = true;
    s.loaded = ++loads_;
    s.place = held_.size();
    held_.push_back(p);
    refile(p);
    follower_.loaded(0, p);
  }
  void evict(Page p) {
    PageState& s = state_[p];
    if (s.charged_by != kNobody && clean_[s.charged_by].trusted)
      watched(clean_[s.charged_by]).erase(s.charged_by);
    s.held = false;
    ancient_count_ -= s.ancient ? 1 : 0;
    s.ancient = false;
    held_[s.place] = held_.back();
    state_[held_[s.place]].place = s.place;
    held_.pop_back();
    refile(p);
    follower_.evicted(0, p);
  }

  std::uint64_t k_;
  std::unique_ptr<RandomSource> random_;
  std::unique_ptr<Prediction> prediction_;
  PredictedState predicted_;
  LazyFollower follower_;
  PageMap<PageState> state_;
  std::vector<Page> held_;
  std::array<Order, kFiles> files_;
  std::vector<Clean> clean_;
  std::vector<std::set<std::size_t>> watched_;
  std::map<std::uint64_t, std::vector<std::size_t>> doubted_;  // by the arrival that ends their interval
  std::uint64_t ancient_count_ = 0, arrivals_ = 0, clock_ = 0, loads_ = 0;
  std::uint64_t ended_ = 0;  // the latest arrival at which intervals were ended
  std::uint32_t phase_ = 1;
};

struct TrustDoubt final : PagePolicy {
  static constexpr PageTraits kTraits{
      .name = "trust_doubt",
      .summary =
          "marking in which every new page trusts the predicted cache for intervals that double after a "
          "doubt",
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
