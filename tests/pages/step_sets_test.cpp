// Sets of pages per step (notes on Guard 7.3): its golden numbers, and the optimum by dynamic programming
// over sets.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "policies/paging/slot_cache.h"
#include "policies/paging/slot_heap.h"
#include "sim/pages/page_server.h"
#include "tests/pages/page_run.h"

namespace kvsim::test {
namespace {

using Key = std::function<double(const PageRequest&)>;

/// Evicts the largest key. Ties are broken inside the keys, as the reference's prototype breaks them.
class KeyRule final : public VictimRule {
 public:
  explicit KeyRule(Key key) : key_(std::move(key)) {}
  void resize(std::size_t slots) override { heap_.resize(slots); }
  void load(Slot slot, const PageRequest& r) override { heap_.insert(slot, key_(r)); }
  void hit(Slot slot, const PageRequest& r) override { heap_.update(slot, key_(r)); }
  void unload(Slot slot) override { heap_.remove(slot); }
  Slot victim(const PageRequest&) override { return heap_.top(); }
  void hide(Slot slot) override { heap_.hide(slot); }
  void show(Slot slot) override { heap_.show(slot); }

 private:
  Key key_;
  SlotHeap<double> heap_;
};

struct KeyPolicy final : PagePolicy {
  static constexpr PageTraits kTraits{.name = "key", .future = true};
  Key key;
  bool guarded = false;
  KeyPolicy(Key k, bool g) : key(std::move(k)), guarded(g) {}
  const PageTraits& traits() const override { return kTraits; }
  std::unique_ptr<PageCache> start(const CacheSetup& setup) const override {
    if (guarded) return std::make_unique<SlotCache<KeyRule, true>>(setup, KeyRule(key), GuardOptions{});
    return std::make_unique<SlotCache<KeyRule>>(setup, KeyRule(key));
  }
};

constexpr double kNeverStep = 1e6;
double next_step(const PageRequest& r) {
  return r.next_use == kNeverAgain ? kNeverStep : static_cast<double>(r.next_use);
}
// Base ties: the larger id is evicted first.
double exact(const PageRequest& r) { return next_step(r) + 1e-4 * r.page; }
double inverted(const PageRequest& r) { return -next_step(r) + 1e-4 * r.page; }
// Step-LRU: the lower id leaves first.
double lru(const PageRequest& r) { return -static_cast<double>(r.time) - 1e-4 * r.page; }

PageStream stream_of_sets(const std::vector<std::vector<Page>>& steps) {
  PageStream stream;
  stream.grouping = Grouping::sets;
  for (const auto& set : steps) {
    stream.starts.push_back(static_cast<std::uint32_t>(stream.pages.size()));
    for (const Page p : set) {
      stream.pages.push_back(p);
      stream.unique = std::max(stream.unique, p + 1);
    }
  }
  stream.find_next();
  return stream;
}

std::uint64_t cost(const PageStream& stream, const Key& key, bool guarded, std::uint64_t k,
                   std::uint64_t seed = 0, GuardCounters* counters = nullptr) {
  ServeOptions options;
  options.seed = seed;
  const PageCounts counts = simulate_pages(stream, KeyPolicy(key, guarded), k, options);
  if (counters != nullptr) *counters = counts.guard;
  return counts.tally.misses;
}

/// Fewest misses when all of a step's set must be resident at once, over all states. Small universes.
std::uint64_t fewest(const std::vector<std::vector<Page>>& steps, std::size_t k) {
  std::map<std::uint32_t, std::uint64_t> states{{0, 0}};
  for (const auto& set : steps) {
    std::uint32_t wanted = 0;
    for (const Page p : set) wanted |= 1u << p;
    std::map<std::uint32_t, std::uint64_t> after;
    for (const auto& [state, paid] : states) {
      const std::uint64_t misses = paid + static_cast<std::uint64_t>(__builtin_popcount(wanted & ~state));
      // Any subset of what was held may stay, as far as it fits beside the set.
      const std::uint32_t others = state & ~wanted;
      for (std::uint32_t keep = others;; keep = (keep - 1) & others) {
        const std::uint32_t next = keep | wanted;
        if (static_cast<std::size_t>(__builtin_popcount(next)) <= k) {
          const auto [it, added] = after.emplace(next, misses);
          if (!added) it->second = std::min(it->second, misses);
        }
        if (keep == 0) break;
      }
    }
    states = std::move(after);
  }
  std::uint64_t best = ~0ull;
  for (const auto& [state, paid] : states) best = std::min(best, paid);
  return best;
}

TEST(StepSets, GoldenOfNineSteps) {
  // notes on Guard 7.3.
  const std::vector<std::vector<Page>> steps{{0, 1}, {2, 3}, {0, 4}, {1, 2}, {3, 4},
                                             {0, 1}, {4, 5}, {0, 2}, {1, 3}};
  const PageStream s = stream_of_sets(steps);
  EXPECT_EQ(fewest(steps, 2), 18u);
  EXPECT_EQ(cost(s, exact, false, 2), 18u);
  EXPECT_EQ(fewest(steps, 3), 12u);
  EXPECT_EQ(cost(s, exact, false, 3), 12u);
  EXPECT_EQ(cost(s, exact, true, 3), 12u);
  EXPECT_EQ(cost(s, lru, false, 3), 16u);
  EXPECT_EQ(cost(s, inverted, false, 3), 18u);
  EXPECT_EQ(cost(s, inverted, true, 3), 18u);
  EXPECT_EQ(fewest(steps, 4), 9u);
  EXPECT_EQ(cost(s, exact, true, 4), 9u);
  EXPECT_EQ(cost(s, lru, false, 4), 12u);
  EXPECT_EQ(cost(s, inverted, false, 4), 14u);
  EXPECT_EQ(cost(s, inverted, true, 4), 13u);
  // The registered policies serve the same optimum.
  for (const char* spec : {"belady", "guard(base=belady)", "guard(base=blindoracle)"}) {
    EXPECT_EQ(simulate_pages(s, *policy_of(spec), 3, {}).tally.misses, 12u) << spec;
  }
}

TEST(StepSets, GoldenOfThreeHundredSteps) {
  // notes on Guard 7.3: the LCG of G4 with seed 2024.
  Lcg lcg(2024);
  std::vector<std::vector<Page>> steps;
  std::uint64_t sum = 0, requests = 0;
  for (int i = 0; i < 300; ++i) {
    const std::size_t size = 4 + lcg.draw() % 5;
    std::set<Page> set;
    while (set.size() < size) {
      const std::uint32_t a = lcg.draw(), b = lcg.draw();
      set.insert(b % 3 == 0 ? a % 8 : a % 40);
    }
    steps.emplace_back(set.begin(), set.end());
    requests += set.size();
    for (const Page p : set) sum += p;
  }
  EXPECT_EQ(requests, 1788u);
  EXPECT_EQ(sum, 26725u);
  EXPECT_EQ(steps[0], (std::vector<Page>{1, 6, 8, 9, 25, 37}));
  const PageStream s = stream_of_sets(steps);
  struct Row {
    std::uint64_t k, optimum, inverted;
    double guarded;  // mean of 100 seeds
  };
  for (const Row& row : {Row{8, 1123, 1396, 1393}, Row{12, 749, 1395, 1358}, Row{16, 545, 1395, 1308},
                         Row{24, 286, 1388, 934}}) {
    SCOPED_TRACE(row.k);
    GuardCounters counters;
    EXPECT_EQ(cost(s, exact, false, row.k), row.optimum);
    EXPECT_EQ(cost(s, exact, true, row.k, 0, &counters), row.optimum);
    EXPECT_EQ(counters.errors, 0u);
    EXPECT_EQ(cost(s, inverted, false, row.k), row.inverted);
    double mean = 0, squares = 0;
    for (std::uint64_t seed = 0; seed < 100; ++seed) {
      const auto misses = static_cast<double>(cost(s, inverted, true, row.k, seed));
      mean += misses / 100;
      squares += misses * misses / 100;
    }
    const double error = std::sqrt(std::max(0.0, squares - mean * mean) / 100);
    // Two means of 100 seeds each, the reference's rounded to a whole number.
    EXPECT_NEAR(mean, row.guarded, 0.5 + 5 * std::sqrt(2.0) * error);
  }
}

TEST(StepSets, BeladyEqualsDynamicProgrammingAndGuardNeverActsOnExactPredictions) {
  Philox philox(31, 1);
  for (int round = 0; round < 400; ++round) {
    const std::uint32_t universe = 4 + philox.next_below(5);
    const std::size_t k = 2 + philox.next_below(4);
    std::vector<std::vector<Page>> steps;
    for (int i = 0; i < 12; ++i) {
      std::set<Page> set;
      const std::size_t size = 1 + philox.next_below(static_cast<std::uint32_t>(k));
      while (set.size() < std::min<std::size_t>(size, universe)) set.insert(philox.next_below(universe));
      steps.emplace_back(set.begin(), set.end());
    }
    const PageStream s = stream_of_sets(steps);
    const std::uint64_t best = fewest(steps, k);
    ASSERT_EQ(simulate_pages(s, *policy_of("belady"), k, {}).tally.misses, best);
    const PageCounts guarded = simulate_pages(s, *policy_of("guard(base=belady)"), k, {});
    ASSERT_EQ(guarded.tally.misses, best);
    ASSERT_EQ(guarded.guard.errors, 0u);
    for (const PageTraits* traits : all_page_policies()) {
      const auto policy = policy_of(std::string(traits->name));
      if (!policy->refusal(setup_for(s, k, {})).empty()) continue;
      ASSERT_GE(simulate_pages(s, *policy, k, {}).tally.misses, best) << traits->name;
    }
  }
}

TEST(StepSets, StrictGuardStaysWithinItsBoundInTheMean) {
  Philox philox(32, 1);
  for (int round = 0; round < 40; ++round) {
    const std::size_t k = 3 + philox.next_below(6);
    std::vector<std::vector<Page>> steps;
    for (int i = 0; i < 60; ++i) {
      std::set<Page> set;
      const std::size_t size = 1 + philox.next_below(static_cast<std::uint32_t>(k));
      while (set.size() < size) set.insert(philox.next_below(static_cast<std::uint32_t>(k) + 3));
      steps.emplace_back(set.begin(), set.end());
    }
    const PageStream s = stream_of_sets(steps);
    double mean = 0;
    for (std::uint64_t seed = 0; seed < 30; ++seed)
      mean += static_cast<double>(cost(s, inverted, true, k, seed)) / 30;
    ASSERT_LE(mean, guard_bound(k) * static_cast<double>(cost(s, exact, false, k)));
  }
}

TEST(StepSets, LargerThanTheCacheIsStreamedAndChargedToEverybody) {
  const PageStream s = stream_of_sets({{3, 1, 2}, {1, 2}, {3, 0, 1, 2}});
  const PageCounts counts = simulate_pages(s, *policy_of("lru"), 2, {});
  // Step 0 holds 3 and 1 (the most wanted), streams 2; step 1 loads 2; step 2 holds 3 and 0, streams 1 and 2.
  EXPECT_EQ(counts.tally.streamed, 3u);
  EXPECT_EQ(counts.overfull, 2u);
  EXPECT_EQ(counts.tally.misses, 2u + 1 + 1 + 2 + 2);
  EXPECT_EQ(counts.tally.requests, 9u);
}

}  // namespace
}  // namespace kvsim::test
