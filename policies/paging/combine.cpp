// Combiners: two caches run beside each other as shadows, and the own cache lazily follows the better one.
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "policies/paging/lazy_follower.h"
#include "policies/paging/nested_policy.h"
#include "policies/paging/request_loop.h"

namespace kvsim {
namespace {

/// How the leader is chosen. `at_miss` is asked at an own miss on a full cache, `after_request` after every
/// request.
class Switch {
 public:
  virtual ~Switch() = default;
  virtual std::size_t at_miss(std::size_t leader, const std::uint64_t (&)[2]) { return leader; }
  virtual std::size_t after_request(std::size_t leader, const std::uint64_t (&)[2], const bool (&)[2]) {
    return leader;
  }
};

/// Follow the leader: to the first cheapest candidate, once the present one costs at least `ratio` times as
/// much.
class CheapestSwitch final : public Switch {
 public:
  explicit CheapestSwitch(double ratio) : ratio_(ratio) {}
  std::size_t at_miss(std::size_t leader, const std::uint64_t (&cost)[2]) override {
    const std::size_t best = cost[1] < cost[0] ? 1 : 0;
    return static_cast<double>(cost[leader]) >= ratio_ * static_cast<double>(cost[best]) ? best : leader;
  }

 private:
  double ratio_;
};

/// To the next candidate whenever the present one's cost passes a bound that grows by 1 + gamma.
class BoundSwitch final : public Switch {
 public:
  explicit BoundSwitch(double gamma) : growth_(1 + gamma) {}
  std::size_t after_request(std::size_t leader, const std::uint64_t (&cost)[2], const bool (&)[2]) override {
    while (static_cast<double>(cost[leader]) > bound_) {
      leader = 1 - leader;
      bound_ *= growth_;
    }
    return leader;
  }

 private:
  double growth_, bound_ = 1;
};

/// Blum and Burch: weights fall by beta per miss; the leader moves with the probability that its share lost.
class WeightedSwitch final : public Switch {
 public:
  WeightedSwitch(double beta, std::unique_ptr<RandomSource> random)
      : log_beta_(std::log(beta)), random_(std::move(random)) {}
  std::size_t at_miss(std::size_t leader, const std::uint64_t (&cost)[2]) override {
    // Shares from the difference of costs: weights themselves would underflow after some 70,000 misses.
    const double difference = static_cast<double>(cost[leader]) - static_cast<double>(cost[1 - leader]);
    const double share = 1.0 / (1.0 + std::exp(-log_beta_ * difference));
    const double before = leader == last_leader_ ? share_ : 1.0 - share_;
    last_leader_ = leader;
    share_ = share;
    if (share >= before || random_->unit() >= (before - share) / before) return leader;
    last_leader_ = 1 - leader;
    share_ = 1.0 - share;
    return 1 - leader;
  }

 private:
  double log_beta_;
  std::unique_ptr<RandomSource> random_;
  std::size_t last_leader_ = 0;
  double share_ = 0.5;
};

class CombineCache final : public RequestLoop<CombineCache> {
 public:
  CombineCache(const CacheSetup& setup, std::unique_ptr<PageCache> first, std::unique_ptr<PageCache> second,
               std::unique_ptr<Switch> rule)
      : RequestLoop(setup),
        shadow_{std::move(first), std::move(second)},
        switch_(std::move(rule)),
        follower_(setup.capacity, 2) {}

  bool contains(Page page) const override { return follower_.contains(page); }
  void grow(Page limit) {
    follower_.grow(limit);
    limit_ = limit;
  }
  bool access(const PageRequest& request) {
    const Page pages[] = {request.page};
    const std::uint64_t next[] = {request.next_use};
    RequestBlock block;
    block.first_time = request.time;
    block.pages = pages;
    block.next_use = next;
    block.page_limit = limit_;
    bool missed[2];
    for (std::size_t i = 0; i < 2; ++i) {
      PageTally tally;
      shadow_[i]->serve(block, tally);
      missed[i] = tally.misses > 0;
      cost_[i] += tally.misses;
      // A shadow that drops pages of its own will may not hold even the requested one.
      if (shadow_[i]->contains(request.page)) follower_.loaded(i, request.page);
      if (shadow_[i]->evicted_page() != kNoPage) follower_.evicted(i, shadow_[i]->evicted_page());
    }
    const bool hit = follower_.contains(request.page);
    if (hit) {
      follower_.touch(request.page);
    } else {
      if (follower_.full()) leader_ = switch_->at_miss(leader_, cost_);
      evicted_page_ = follower_.load(leader_, request.page);
      evicted_ += evicted_page_ != kNoPage ? 1 : 0;
      ++admitted_;
      ++admitted_bytes_;
    }
    leader_ = switch_->after_request(leader_, cost_, missed);
    return hit;
  }

 private:
  std::unique_ptr<PageCache> shadow_[2];
  std::unique_ptr<Switch> switch_;
  LazyFollower follower_;
  std::uint64_t cost_[2] = {0, 0};
  std::size_t leader_ = 0;
  Page limit_ = 0;
};

constexpr std::string_view kCombinerRefusal =
    "it follows another cache's content, which may hold exactly the unguarded pages";

/// What the three combiners share: their two candidates.
class Combiner : public PagePolicy {
 public:
  void fields(FieldVisitor& visitor) override {
    first_.field(visitor);
    second_.field(visitor);
    more_fields(visitor);
  }
  void prepare() override {
    first_.prepare();
    second_.prepare();
    for (const NestedPolicy* nested : {&first_, &second_}) {
      if ((*nested)->traits().name == "mark0") {
        throw UserError("{}: mark0 cannot be a candidate, it drops pages that nobody asked it to drop",
                        traits().name);
      }
    }
  }
  bool needs_future() const override { return first_->needs_future() || second_->needs_future(); }
  std::string refusal(const CacheSetup& setup) const override {
    for (const NestedPolicy* nested : {&first_, &second_}) {
      const std::string why = (**nested).refusal(setup);
      if (!why.empty()) return why;
    }
    return PagePolicy::refusal(setup);
  }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    return std::make_unique<CombineCache>(setup, first_->start(setup), second_->start(setup),
                                          make_switch(setup));
  }

 protected:
  virtual void more_fields(FieldVisitor& visitor) = 0;
  virtual std::unique_ptr<Switch> make_switch(const CacheSetup& setup) const = 0;

 private:
  NestedPolicy first_{"first", "blindoracle", "the candidate that leads at the start"};
  NestedPolicy second_{"second", "marker", "the other candidate"};
};

struct CombineDeterministic final : Combiner {
  static constexpr PageTraits kTraits{
      .name = "combine_det",
      .summary = "follows the candidate with the fewest misses so far",
      .reference = "Cache-Coliseum's CombineDeterministic (BlindOracle&Marker^D)",
      .guard_refusal = kCombinerRefusal,
      .unit_only = true,
      .randomised = true};
  double ratio = 1;
  const PageTraits& traits() const override { return kTraits; }
  void more_fields(FieldVisitor& visitor) override {
    visitor.number("ratio", ratio, 1.0, std::numeric_limits<double>::max(),
                   "leave a leader that costs this many times the best");
  }
  std::unique_ptr<Switch> make_switch(const CacheSetup&) const override {
    return std::make_unique<CheapestSwitch>(ratio);
  }
};

struct CombineRandom final : Combiner {
  static constexpr PageTraits kTraits{
      .name = "combine_rand",
      .summary = "follows a candidate drawn by weights that fall with its misses",
      .reference = "Blum and Burch, 2000; Cache-Coliseum's CombineRandom (BlindOracle&Marker^R)",
      .guard_refusal = kCombinerRefusal,
      .unit_only = true,
      .randomised = true};
  double beta = 0.99;
  std::uint32_t seed = 0;
  const PageTraits& traits() const override { return kTraits; }
  void more_fields(FieldVisitor& visitor) override {
    visitor.number("beta", beta, 0.01, 0.999999, "factor on a weight per miss");
    visitor.number("seed", seed, 0, 0xFFFFFFFFu, "added to the run's seed");
  }
  std::unique_ptr<Switch> make_switch(const CacheSetup& setup) const override {
    return std::make_unique<WeightedSwitch>(beta, setup.random(RandomPurpose::combiner, seed));
  }
};

struct RobustFollow final : Combiner {
  static constexpr PageTraits kTraits{
      .name = "robust_ftp",
      .summary =
          "follows one candidate until its cost passes a bound that grows by 1 + gamma, then the other",
      .reference =
          "Antoniadis et al., 2020 (RobustFtP); the state followed is that of BlindOracle on the predictions",
      .guard_refusal = kCombinerRefusal,
      .unit_only = true,
      .randomised = true};
  double gamma = 0.01;
  const PageTraits& traits() const override { return kTraits; }
  void more_fields(FieldVisitor& visitor) override {
    visitor.number("gamma", gamma, 1e-6, 1e6, "growth of the bound");
  }
  std::unique_ptr<Switch> make_switch(const CacheSetup&) const override {
    return std::make_unique<BoundSwitch>(gamma);
  }
};

const RegisterPagePolicy<CombineDeterministic> registered_det;
const RegisterPagePolicy<CombineRandom> registered_rand;
const RegisterPagePolicy<RobustFollow> registered_robust;

}  // namespace
}  // namespace kvsim
