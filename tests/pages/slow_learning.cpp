// Learning-augmented policies in their plainest form.
#include "tests/pages/slow_learning.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "policies/paging/follower_robust.h"

namespace kvsim::test {
namespace {

using Pages = std::vector<Page>;

bool holds(const Pages& pages, Page p) { return std::find(pages.begin(), pages.end(), p) != pages.end(); }
void erase(Pages& pages, Page p) { pages.erase(std::find(pages.begin(), pages.end(), p)); }

/// "Evict the farthest predicted next use", by slots; ties to the lowest slot.
struct SlowPredictedState {
  std::size_t k;
  Pages pages{};
  std::vector<double> values{};
  void request(Page p, double value) {
    auto at = static_cast<std::size_t>(std::find(pages.begin(), pages.end(), p) - pages.begin());
    if (at == pages.size()) {
      if (pages.size() < k) {
        pages.push_back(p);
        values.push_back(value);
      } else {
        at = static_cast<std::size_t>(std::max_element(values.begin(), values.end()) - values.begin());
        pages[at] = p;
      }
    }
    values[at] = value;
  }
};

/// The real cache behind a simulated one: on a miss it evicts its least recently used page that the other
/// does not hold.
struct SlowFollower {
  std::size_t k;
  Pages by_use{};  // least recent first
  std::uint64_t misses = 0;
  void request(Page p, const Pages& followed) {
    if (holds(by_use, p)) {
      erase(by_use, p);
    } else {
      ++misses;
      if (by_use.size() == k)
        by_use.erase(std::find_if(by_use.begin(), by_use.end(), [&](Page q) { return !holds(followed, q); }));
    }
    by_use.push_back(p);
  }
};

/// Notes on Guard 2.5.
class SlowTrustDoubt {
 public:
  SlowTrustDoubt(std::size_t k, RandomSource& random) : k_(k), random_(random), predicted_{k}, follower_{k} {}
  void request(Page q, double prediction) {
    predicted_.request(q, prediction);
    simulate(q);
    follower_.request(q, cached_);
  }
  std::uint64_t misses() const { return follower_.misses; }

 private:
  struct Clean {
    Page charge;
    bool trusted;
    std::size_t start, length;
  };

  void simulate(Page q) {
    if (!holds(arrived_, q) && arrived_.size() == k_) begin_phase();
    const bool first = !holds(arrived_, q), stale = holds(stale_, q);
    if (first) arrived_.push_back(q);
    if (holds(by_request_, q)) erase(by_request_, q);
    by_request_.push_back(q);
    if (holds(unmarked_, q)) erase(unmarked_, q);
    const bool present = holds(cached_, q);
    if (cached_.size() < k_ || !ancient_.empty()) {
      if (!present && cached_.size() == k_) {
        Page victim = least_recent([&](Page p) { return holds(ancient_, p) && !holds(predicted_.pages, p); });
        if (victim == kNoPage) victim = least_recent([&](Page p) { return holds(ancient_, p); });
        erase(ancient_, victim);
        erase(cached_, victim);
      }
      if (!present) cached_.push_back(q);
      if (holds(ancient_, q)) erase(ancient_, q);
      return;
    }
    if (!present) {
      // unmarked_ is in ascending order of priority
      const Page victim =
          *std::find_if(unmarked_.begin(), unmarked_.end(), [&](Page p) { return holds(cached_, p); });
      erase(cached_, victim);
      cached_.push_back(q);
    }
    if (first && !stale) {
      clean_.push_back({kNoPage, true, arrived_.size() - 1, 1});
      charge(clean_.back());
    }
    for (Clean& c : clean_) {
      if (c.charge != q) continue;
      c.charge = kNoPage;
      charge(c);
      c.trusted = false;
    }
    if (first) end_intervals();
  }
  void end_intervals() {
    for (Clean& c : clean_) {
      if (arrived_.size() - c.start != c.length) continue;
      c.start = arrived_.size();
      if (!c.trusted) c.length *= 2;
      c.trusted = true;
      if (c.charge == kNoPage || !holds(cached_, c.charge)) continue;
      for (auto back = unmarked_.rbegin(); back != unmarked_.rend(); ++back) {
        const bool trusted = std::any_of(clean_.begin(), clean_.end(),
                                         [&](const Clean& d) { return d.trusted && d.charge == *back; });
        if (trusted || holds(cached_, *back)) continue;
        erase(cached_, c.charge);
        cached_.push_back(*back);
        break;
      }
    }
  }
  void charge(Clean& c) {
    c.charge = least_recent([&](Page p) {
      return (holds(unmarked_, p) || holds(arrived_, p)) && !holds(predicted_.pages, p) &&
             std::none_of(clean_.begin(), clean_.end(), [p](const Clean& d) { return d.charge == p; });
    });
  }
  template <typename Fits>
  Page least_recent(Fits fits) const {
    const auto it = std::find_if(by_request_.begin(), by_request_.end(), fits);
    return it == by_request_.end() ? kNoPage : *it;
  }
  void begin_phase() {
    stale_.clear();
    ancient_.clear();
    for (const Page p : cached_) (holds(arrived_, p) ? stale_ : ancient_).push_back(p);
    for (std::size_t i = stale_.size(); i > 1; --i)
      std::swap(stale_[i - 1], stale_[random_.below(static_cast<std::uint32_t>(i))]);
    unmarked_ = stale_;
    arrived_.clear();
    clean_.clear();
  }

  std::size_t k_;
  RandomSource& random_;
  SlowPredictedState predicted_;
  SlowFollower follower_;
  Pages cached_, arrived_, by_request_, stale_, ancient_, unmarked_;
  std::vector<Clean> clean_;
};

/// Notes on Guard 2.4.
class SlowFollowerRobust {
 public:
  SlowFollowerRobust(std::size_t k, RandomSource& random)
      : k_(k),
        random_(random),
        schedule_(robust_schedule(static_cast<std::uint32_t>(k))),
        predicted_{k},
        optimum_{k},
        follower_{k} {}
  void request(Page p, double prediction, double next_use) {
    const bool optimum_missed = !holds(optimum_.pages, p);
    optimum_.request(p, next_use);
    predicted_.request(p, prediction);
    if (!holds(s_, p)) miss(p, optimum_missed);
    if (holds(by_request_, p)) erase(by_request_, p);
    by_request_.push_back(p);
    follower_.request(p, s_);
  }
  std::uint64_t misses() const { return follower_.misses; }

 private:
  void miss(Page p, bool optimum_missed) {
    if (s_.size() < k_) {
      s_.push_back(p);
      p_ = predicted_.pages;
      return;
    }
    if (skip_ == 0) {
      ++f_;
      b_ += optimum_missed ? 1 : 0;
      const bool predicted = holds(p_, p);
      if (!predicted && f_ <= b_) p_ = predicted_.pages;
      if (predicted || f_ <= b_) return replace_outside(p);
      f_ = b_ = 0;
      skip_ = k_;
      old_.clear();
      for (auto q = by_request_.rbegin(); q != by_request_.rend() && old_.size() < k_; ++q)
        if (*q != p) old_.push_back(*q);
      s_ = old_;
      unmarked_ = old_;
      marked_.clear();
      clean_.clear();
      reload_.clear();
      if (holds(s_, p)) return;
    }
    if (!holds(marked_, p)) {
      const std::size_t i = k_ - --skip_;
      if (holds(unmarked_, p)) erase(unmarked_, p);
      marked_.push_back(p);
      if (!holds(old_, p)) clean_.push_back(p);
      const auto is_in = [i](const std::vector<std::uint32_t>& list) {
        return std::find(list.begin(), list.end(), i) != list.end();
      };
      if (is_in(schedule_.queries)) p_ = predicted_.pages;
      if (is_in(schedule_.windows)) {
        reload_.clear();
        for (const Page q : unmarked_)
          if (holds(p_, q) && !holds(s_, q)) reload_.push_back(q);
      }
      if (holds(reload_, p) || holds(clean_, p)) return replace_outside(p);
    }
    replace(p, [this](Page q) { return holds(unmarked_, q); });
  }
  void replace_outside(Page p) {
    replace(p, [this](Page q) { return !holds(p_, q); });
  }
  /// A uniform one of those that fit leaves; of all pages when none fits.
  template <typename Fits>
  void replace(Page p, Fits fits) {
    Pages candidates;
    for (const Page q : s_)
      if (fits(q)) candidates.push_back(q);
    if (candidates.empty()) candidates = s_;
    const Page victim = candidates[random_.below(static_cast<std::uint32_t>(candidates.size()))];
    *std::find(s_.begin(), s_.end(), victim) = p;
  }

  std::size_t k_;
  RandomSource& random_;
  RobustSchedule schedule_;
  SlowPredictedState predicted_, optimum_;
  SlowFollower follower_;
  Pages s_, p_, by_request_, old_, unmarked_, marked_, clean_, reload_;
  std::size_t f_ = 0, b_ = 0, skip_ = 0;
};

}  // namespace

std::uint64_t slow_mark_predict(const Sequence& sequence, std::size_t k, RandomSource& random) {
  struct Place {
    Page page;
    bool marked, label;
  };
  std::vector<Place> cache;
  std::uint64_t misses = 0;
  for (std::size_t t = 0; t < sequence.pages.size(); ++t) {
    const Place now{sequence.pages[t], true, sequence.numbers[t] >= 0.5};
    const auto at =
        std::find_if(cache.begin(), cache.end(), [&](const Place& p) { return p.page == now.page; });
    if (at != cache.end()) {
      *at = now;
      continue;
    }
    ++misses;
    if (cache.size() < k) {
      cache.push_back(now);
      continue;
    }
    if (std::all_of(cache.begin(), cache.end(), [](const Place& p) { return p.marked; }))
      for (Place& p : cache) p.marked = false;
    std::vector<std::size_t> labelled, unmarked;
    for (std::size_t i = 0; i < k; ++i) {
      if (cache[i].marked) continue;
      unmarked.push_back(i);
      if (cache[i].label) labelled.push_back(i);
    }
    const std::vector<std::size_t>& from = labelled.empty() ? unmarked : labelled;
    cache[from[random.below(static_cast<std::uint32_t>(from.size()))]] = now;
  }
  return misses;
}

std::uint64_t slow_trust_doubt(const Sequence& sequence, std::size_t k, RandomSource& random) {
  SlowTrustDoubt cache(k, random);
  for (std::size_t t = 0; t < sequence.pages.size(); ++t)
    cache.request(sequence.pages[t], sequence.numbers[t]);
  return cache.misses();
}

std::uint64_t slow_follower_robust(const Sequence& sequence, std::size_t k, RandomSource& random) {
  SlowFollowerRobust cache(k, random);
  const std::vector<double> next_use = sequence.next_use();
  for (std::size_t t = 0; t < sequence.pages.size(); ++t)
    cache.request(sequence.pages[t], sequence.numbers[t], next_use[t]);
  return cache.misses();
}

std::vector<double> slow_pleco(const Sequence& sequence) {
  const auto weight = [](std::size_t j) {
    const double x = static_cast<double>(j);
    return std::pow(x + 10.0, -1.8) * std::exp(-x / 670.0);
  };
  std::vector<double> out;
  double total = 0;
  for (std::size_t t = 1; t <= sequence.pages.size(); ++t) {
    total += weight(t);
    double sum = 0;
    for (std::size_t i = 1; i <= t; ++i) {
      if (sequence.pages[i - 1] == sequence.pages[t - 1]) sum += weight(t - i + 1);
    }
    out.push_back(total / sum + static_cast<double>(t) - 1.0);
  }
  return out;
}

}  // namespace kvsim::test
