// Classical caches in the words of their papers.
#include "tests/pages/slow_classics.h"

#include <algorithm>
#include <cmath>
#include <list>

namespace kvsim::test {
namespace {

/// Front = most recent.
using Queue = std::list<Page>;

bool in(const Queue& q, Page p) { return std::find(q.begin(), q.end(), p) != q.end(); }
bool take(Queue& q, Page p) {
  const auto at = std::find(q.begin(), q.end(), p);
  if (at == q.end()) return false;
  q.erase(at);
  return true;
}
Page pop_last(Queue& q) {
  const Page p = q.back();
  q.pop_back();
  return p;
}
std::size_t share(std::size_t c, double part) {
  return std::max<std::size_t>(1, static_cast<std::size_t>(static_cast<double>(c) * part));
}

class Arc final : public SlowCache {
 public:
  explicit Arc(std::size_t c) : c_(c) {}
  bool request(Page x, std::uint64_t) override {
    if (take(t1_, x) || take(t2_, x)) {  // case I
      t2_.push_front(x);
      return true;
    }
    const auto b1 = static_cast<double>(b1_.size()), b2 = static_cast<double>(b2_.size());
    if (in(b1_, x)) {  // case II
      p_ = std::min(static_cast<double>(c_), p_ + (b1 >= b2 ? 1.0 : b2 / b1));
      replace(false);
      take(b1_, x);
      t2_.push_front(x);
    } else if (in(b2_, x)) {  // case III
      p_ = std::max(0.0, p_ - (b2 >= b1 ? 1.0 : b1 / b2));
      replace(true);
      take(b2_, x);
      t2_.push_front(x);
    } else {  // case IV
      if (t1_.size() + b1_.size() == c_) {
        if (t1_.size() < c_) {
          b1_.pop_back();
          replace(false);
        } else {
          t1_.pop_back();
        }
      } else if (const std::size_t all = t1_.size() + t2_.size() + b1_.size() + b2_.size(); all >= c_) {
        if (all == 2 * c_) b2_.pop_back();
        replace(false);
      }
      t1_.push_front(x);
    }
    return false;
  }

 private:
  void replace(bool in_b2) {
    const auto t1 = static_cast<double>(t1_.size());
    if (!t1_.empty() && ((in_b2 && t1 == p_) || t1 > p_ || t2_.empty())) {
      b1_.push_front(pop_last(t1_));
    } else {
      b2_.push_front(pop_last(t2_));
    }
  }
  std::size_t c_;
  double p_ = 0;
  Queue t1_, t2_, b1_, b2_;
};

class Lirs final : public SlowCache {
 public:
  explicit Lirs(std::size_t c) : c_(c), hirs_(share(c, 0.01)) {}
  bool request(Page x, std::uint64_t) override {
    if (in(lir_, x)) {
      to_top(x);
      prune();
      return true;
    }
    const bool hit = in(q_, x), in_stack = in(s_, x);
    if (!hit && lir_.size() + q_.size() == c_) q_.pop_back();
    if (hit || lir_.size() == c_ - hirs_) {
      if (in_stack) {
        take(q_, x);
        lir_.push_front(x);
        to_top(x);
        prune();
        const Page bottom = pop_last(s_);
        take(lir_, bottom);
        q_.push_front(bottom);
        prune();
      } else {
        take(q_, x);
        q_.push_front(x);
        to_top(x);
        limit();
      }
    } else {  // the first pages become LIR until there are enough
      lir_.push_front(x);
      to_top(x);
    }
    return hit;
  }

 private:
  void to_top(Page x) {
    take(s_, x);
    s_.push_front(x);
  }
  void prune() {
    while (!in(lir_, s_.back())) s_.pop_back();
  }
  void limit() {
    while (s_.size() > 2 * c_) {
      const auto absent = [this](Page p) { return !in(lir_, p) && !in(q_, p); };
      const auto oldest = std::find_if(s_.rbegin(), s_.rend(), absent);
      if (oldest == s_.rend()) return;
      s_.erase(std::next(oldest).base());
    }
  }
  std::size_t c_, hirs_;
  Queue s_, q_, lir_;
};

class TwoQ final : public SlowCache {
 public:
  explicit TwoQ(std::size_t c) : c_(c), kin_(share(c, 0.25)), kout_(share(c, 0.5)) {}
  bool request(Page x, std::uint64_t) override {
    if (take(am_, x)) {
      am_.push_front(x);
      return true;
    }
    if (in(a1in_, x)) return true;
    const bool returns = take(a1out_, x);
    if (a1in_.size() + am_.size() == c_) {
      if (a1in_.size() > kin_ || am_.empty()) {
        a1out_.push_front(pop_last(a1in_));
        if (a1out_.size() > kout_) a1out_.pop_back();
      } else {
        am_.pop_back();
      }
    }
    (returns ? am_ : a1in_).push_front(x);
    return false;
  }

 private:
  std::size_t c_, kin_, kout_;
  Queue a1in_, a1out_, am_;
};

/// Four rows of counters by page number and row; the least of a page's four grows.
class SlowSketch {
 public:
  explicit SlowSketch(std::size_t pages) {
    while (width_ < 4 * pages) width_ *= 2;
  }
  std::uint32_t estimate(Page p) {
    std::uint32_t least = 255;
    for (std::uint64_t row = 0; row < 4; ++row) least = std::min(least, counters_[place(p, row)]);
    return least;
  }
  void add(Page p) {
    const std::uint32_t least = estimate(p);
    if (least == 255) return;
    for (std::uint64_t row = 0; row < 4; ++row)
      if (std::uint32_t& c = counters_[place(p, row)]; c == least) ++c;
  }
  void halve() {
    for (auto& [at, count] : counters_) count /= 2;
  }

 private:
  std::pair<std::uint64_t, std::uint64_t> place(Page p, std::uint64_t row) const {
    return {row, stream_of(p, row) % width_};
  }
  std::uint64_t width_ = 64;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint32_t> counters_;
};

class TinyLfu final : public SlowCache {
 public:
  explicit TinyLfu(std::size_t c) : window_size_(share(c, 0.01)), main_size_(c - window_size_), sketch_(c) {}
  bool request(Page x, std::uint64_t) override {
    if (take(window_, x)) {
      window_.push_front(x);
      return true;
    }
    if (take(protected_, x) || take(probation_, x)) {
      sketch_.add(x);
      if (++hits_ % (32 * main_size_) == 0) sketch_.halve();
      protected_.push_front(x);
      if (protected_.size() > main_size_ - main_size_ / 5) probation_.push_front(pop_last(protected_));
      return true;
    }
    sketch_.add(x);
    window_.push_front(x);
    if (window_.size() <= window_size_) return false;
    const Page candidate = pop_last(window_);
    sketch_.add(candidate);
    if (main_size_ == 0) return false;
    if (probation_.size() + protected_.size() == main_size_) {
      Queue& from = probation_.empty() ? protected_ : probation_;
      if (sketch_.estimate(candidate) <= sketch_.estimate(from.back())) return false;
      from.pop_back();
    }
    probation_.push_front(candidate);
    return false;
  }

 private:
  std::size_t window_size_, main_size_;
  SlowSketch sketch_;
  Queue window_, probation_, protected_;
  std::uint64_t hits_ = 0;
};

class Lecar final : public SlowCache {
 public:
  Lecar(std::size_t c, std::function<double()> chance) : c_(c), chance_(std::move(chance)) {}
  bool request(Page x, std::uint64_t) override {
    ++now_;
    const auto cached =
        std::find_if(cache_.begin(), cache_.end(), [x](const Entry& e) { return e.page == x; });
    if (cached != cache_.end()) {
      ++cached->uses;
      cached->last = now_;
      return true;
    }
    Entry entry{x, 1, now_, 0};
    for (std::size_t expert : {0u, 1u}) {  // UPDATEWEIGHT comes before the eviction
      std::list<Entry>& past = history_[expert];
      const auto at = std::find_if(past.begin(), past.end(), [x](const Entry& e) { return e.page == x; });
      if (at == past.end()) continue;
      const double age = static_cast<double>(now_ - at->evicted);
      const double regret = std::pow(0.005, age / static_cast<double>(c_));
      weight_[expert] *= std::exp(-0.45 * regret);
      const double sum = weight_[0] + weight_[1];
      weight_[0] /= sum;
      weight_[1] /= sum;
      entry.uses = at->uses + 1;
      past.erase(at);
    }
    if (cache_.size() == c_) evict();
    cache_.push_back(entry);
    return false;
  }

 private:
  struct Entry {
    Page page;
    std::uint64_t uses, last, evicted;
  };
  void evict() {
    const auto lru = std::min_element(cache_.begin(), cache_.end(),
                                      [](const Entry& a, const Entry& b) { return a.last < b.last; });
    const auto lfu = std::min_element(cache_.begin(), cache_.end(), [](const Entry& a, const Entry& b) {
      return a.uses != b.uses ? a.uses < b.uses : a.last < b.last;
    });
    const std::size_t expert = chance_() < weight_[0] ? 0 : 1;
    // A victim of both teaches nothing about either: it enters no history.
    if (lru != lfu) {
      Entry gone = expert == 0 ? *lru : *lfu;
      gone.evicted = now_;
      history_[expert].push_front(gone);
      if (history_[expert].size() > std::max<std::size_t>(1, c_ / 2)) history_[expert].pop_back();
    }
    cache_.erase(expert == 0 ? lru : lfu);
  }
  std::size_t c_;
  std::function<double()> chance_;
  std::list<Entry> cache_, history_[2];
  double weight_[2] = {0.5, 0.5};
  std::uint64_t now_ = 0;
};

class S3Fifo final : public SlowCache {
 public:
  explicit S3Fifo(std::size_t c)
      : c_(c), main_size_(std::max<std::size_t>(1, c - share(c, 0.1))), ghost_size_(share(c, 0.9)) {}
  bool request(Page x, std::uint64_t) override {
    if (in(small_, x) || in(main_, x)) {
      uses_[x] = std::min(uses_[x] + 1, 3);
      return true;
    }
    const bool returns = take(ghost_, x);
    while (small_.size() + main_.size() == c_) {
      if (main_.size() > main_size_ || small_.empty()) {
        evict_main();
      } else {
        evict_small();
      }
    }
    (returns ? main_ : small_).push_front(x);
    uses_[x] = 0;
    return false;
  }

 private:
  void evict_small() {
    while (!small_.empty()) {
      const Page t = pop_last(small_);
      if (uses_[t] < 2) {
        ghost_.push_front(t);
        if (ghost_.size() > ghost_size_) ghost_.pop_back();
        return;
      }
      uses_[t] = 0;
      main_.push_front(t);
    }
  }
  void evict_main() {
    for (;;) {
      const Page t = pop_last(main_);
      if (uses_[t] == 0) return;
      --uses_[t];
      main_.push_front(t);
    }
  }
  std::size_t c_, main_size_, ghost_size_;
  Queue small_, main_, ghost_;
  std::map<Page, int> uses_;
};

class Sieve final : public SlowCache {
 public:
  explicit Sieve(std::size_t c) : c_(c) {}
  bool request(Page x, std::uint64_t) override {
    if (in(queue_, x)) {
      visited_[x] = true;
      return true;
    }
    if (queue_.size() == c_) {
      auto o = hand_ == kNoPage ? std::prev(queue_.end()) : std::find(queue_.begin(), queue_.end(), hand_);
      while (visited_[*o]) {
        visited_[*o] = false;
        o = o == queue_.begin() ? std::prev(queue_.end()) : std::prev(o);
      }
      hand_ = o == queue_.begin() ? kNoPage : *std::prev(o);
      queue_.erase(o);
    }
    queue_.push_front(x);
    visited_[x] = false;
    return false;
  }

 private:
  std::size_t c_;
  Queue queue_;
  std::map<Page, bool> visited_;
  Page hand_ = kNoPage;
};

class Gdsf final : public SlowCache {
 public:
  explicit Gdsf(std::uint64_t bytes) : bytes_(bytes) {}
  bool request(Page x, std::uint64_t size) override {
    ++now_;
    const bool hit = cache_.contains(x);
    if (!hit) {
      if (size > bytes_) return false;
      while (used() + size > bytes_) {
        const auto victim = std::min_element(cache_.begin(), cache_.end(), [](const auto& a, const auto& b) {
          return a.second.key != b.second.key ? a.second.key < b.second.key : a.second.last < b.second.last;
        });
        clock_ = victim->second.key;
        cache_.erase(victim);
      }
      cache_[x] = {0, 0, size, 0};
    }
    Entry& e = cache_[x];
    ++e.uses;
    e.last = now_;
    e.key = clock_ + static_cast<double>(e.uses) / static_cast<double>(e.size);
    return hit;
  }

 private:
  struct Entry {
    double key;
    std::uint64_t uses, size, last;
  };
  std::uint64_t used() const {
    std::uint64_t sum = 0;
    for (const auto& [page, e] : cache_) sum += e.size;
    return sum;
  }
  std::uint64_t bytes_, now_ = 0;
  double clock_ = 0;
  std::map<Page, Entry> cache_;
};

}  // namespace

std::unique_ptr<SlowCache> slow_arc(std::size_t c) { return std::make_unique<Arc>(c); }
std::unique_ptr<SlowCache> slow_lirs(std::size_t c) { return std::make_unique<Lirs>(c); }
std::unique_ptr<SlowCache> slow_two_q(std::size_t c) { return std::make_unique<TwoQ>(c); }
std::unique_ptr<SlowCache> slow_tiny_lfu(std::size_t c) { return std::make_unique<TinyLfu>(c); }
std::unique_ptr<SlowCache> slow_lecar(std::size_t c, std::function<double()> chance) {
  return std::make_unique<Lecar>(c, std::move(chance));
}
std::unique_ptr<SlowCache> slow_s3_fifo(std::size_t c) { return std::make_unique<S3Fifo>(c); }
std::unique_ptr<SlowCache> slow_sieve(std::size_t c) { return std::make_unique<Sieve>(c); }
std::unique_ptr<SlowCache> slow_gdsf(std::uint64_t bytes) { return std::make_unique<Gdsf>(bytes); }

}  // namespace kvsim::test
