// Classical page policies against slow references written from their definitions, and properties of all of
// them.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <list>

#include "kernels/error.h"
#include "tests/pages/page_run.h"

namespace kvsim::test {
namespace {

Sequence random_sequence(Philox& philox, std::size_t length, std::uint32_t universe) {
  Sequence s;
  for (std::size_t i = 0; i < length; ++i) {
    const bool popular = philox.next_below(2) == 0;
    s.pages.push_back(philox.next_below(popular ? std::max(1u, universe / 4) : universe));
  }
  return s;
}

std::uint64_t slow_sieve(const Sequence& s, std::size_t k) {
  std::deque<std::pair<Page, bool>> queue;  // newest first
  std::ptrdiff_t hand = -1;
  std::uint64_t misses = 0;
  for (const Page p : s.pages) {
    const auto at = std::find_if(queue.begin(), queue.end(), [p](const auto& e) { return e.first == p; });
    if (at != queue.end()) {
      at->second = true;
      continue;
    }
    ++misses;
    if (queue.size() == k) {
      if (hand < 0) hand = static_cast<std::ptrdiff_t>(queue.size()) - 1;
      while (queue[static_cast<std::size_t>(hand)].second) {
        queue[static_cast<std::size_t>(hand)].second = false;
        hand = hand == 0 ? static_cast<std::ptrdiff_t>(queue.size()) - 1 : hand - 1;
      }
      queue.erase(queue.begin() + hand);
      --hand;
    }
    queue.push_front({p, false});
    if (hand >= 0) ++hand;
  }
  return misses;
}

std::uint64_t slow_clock(const Sequence& s, std::size_t k) {
  std::list<std::pair<Page, bool>> queue;  // oldest first
  std::uint64_t misses = 0;
  for (const Page p : s.pages) {
    const auto at = std::find_if(queue.begin(), queue.end(), [p](const auto& e) { return e.first == p; });
    if (at != queue.end()) {
      at->second = true;
      continue;
    }
    ++misses;
    if (queue.size() == k) {
      while (queue.front().second) {
        queue.front().second = false;
        queue.splice(queue.end(), queue, queue.begin());
      }
      queue.pop_front();
    }
    queue.push_back({p, false});
  }
  return misses;
}

TEST(PagePolicies, SieveAndClockEqualTheirSlowForms) {
  Philox philox(11, 1);
  for (int round = 0; round < 300; ++round) {
    const Sequence s = random_sequence(philox, 200, 4 + philox.next_below(30));
    const std::uint64_t k = 1 + philox.next_below(12);
    EXPECT_EQ(misses("sieve", s, k), slow_sieve(s, k));
    EXPECT_EQ(misses("clock", s, k), slow_clock(s, k));
  }
}

TEST(PagePolicies, HandWorkedCounts) {
  // c = 4, one small slot and three main ones: 1 2 3 4 fill; 1 is hit twice; 5 moves 1 to main and drops 2 to
  // the ghosts (its uses: 0); 2 returns from the ghosts into main.
  const Sequence s = sequence_of("1 2 3 4 1 1 5 2 1 2");
  EXPECT_EQ(misses("s3_fifo", s, 4), 6u);
  // ARC, c = 2: 1 and 2 fill T1; 1 moves to T2; 3 drops 2 into B1; 2 is a hit in B1, so T1's target grows to
  // 1 and 1 leaves T2; then 1 misses.
  EXPECT_EQ(misses("arc", sequence_of("1 2 1 3 2 1"), 2), 5u);
  // LFU, c = 2: 2 (one use) leaves for 3, then 3 leaves for 2.
  EXPECT_EQ(misses("lfu", sequence_of("1 1 2 3 2 1"), 2), 4u);
}

TEST(PagePolicies, NoneBeatsBeladyAndAllMissEveryFirstTouch) {
  Philox philox(12, 1);
  for (int round = 0; round < 100; ++round) {
    const Sequence s = random_sequence(philox, 150, 3 + philox.next_below(40));
    const std::uint64_t k = 1 + philox.next_below(20);
    const std::uint64_t best = misses("belady", s, k);
    std::vector<Page> unique = s.pages;
    std::sort(unique.begin(), unique.end());
    unique.erase(std::unique(unique.begin(), unique.end()), unique.end());
    for (const PageTraits* traits : all_page_policies()) {
      if (traits->name == "follow_scores") continue;  // needs attention
      const Outcome o = run(*policy_of(std::string(traits->name)), s, setup_of(s, k));
      EXPECT_EQ(o.tally.requests, s.pages.size()) << traits->name;
      EXPECT_GE(o.tally.misses, best) << traits->name << " k=" << k;
      EXPECT_GE(o.tally.misses, unique.size()) << traits->name;
      EXPECT_LE(o.tally.admitted, o.tally.misses) << traits->name;
      EXPECT_LE(o.tally.admitted, o.tally.evicted + k) << traits->name;
      if (k >= unique.size() && traits->name != "tiny_lfu" && traits->name != "s3_fifo") {
        EXPECT_EQ(o.tally.misses, unique.size()) << traits->name;
      }
    }
  }
}

TEST(PagePolicies, BeladyEqualsDynamicProgramming) {
  Philox philox(13, 1);
  for (int round = 0; round < 400; ++round) {
    const Sequence s = random_sequence(philox, 30, 3 + philox.next_below(6));
    const std::uint64_t k = 1 + philox.next_below(5);
    EXPECT_EQ(misses("belady", s, k), fewest_misses(s, k));
  }
}

TEST(PagePolicies, EdgesOfLengthAndCapacity) {
  for (const PageTraits* traits : all_page_policies()) {
    if (traits->name == "follow_scores") continue;
    const std::string name(traits->name);
    EXPECT_EQ(misses(name, Sequence{}, 3), 0u) << name;
    EXPECT_EQ(misses(name, sequence_of("1"), 1), 1u) << name;
    // Mark0 with the exact label 0 keeps the page; all others have no reason to drop it either.
    EXPECT_EQ(misses(name, sequence_of("1 1 1 1 1"), 3), 1u) << name;
    EXPECT_EQ(misses(name, sequence_of("1 2 1 2 1 2"), 1), 6u) << name;
  }
}

TEST(PagePolicies, RepeatedRunsGiveTheSameBits) {
  Philox philox(14, 1);
  const Sequence s = random_sequence(philox, 5000, 300);
  for (const PageTraits* traits : all_page_policies()) {
    if (traits->name == "follow_scores") continue;
    const std::string name(traits->name);
    EXPECT_EQ(misses(name, s, 40, 7), misses(name, s, 40, 7)) << name;
    // A random choice that nobody can see is no choice.
    if (traits->randomised && name != "belady_size" && name != "guard") {
      bool differs = false;
      for (std::uint64_t seed = 0; seed < 8; ++seed)
        differs |= misses(name, s, 40, seed) != misses(name, s, 40, 7);
      if (name == "random" || name == "marker") {
        EXPECT_TRUE(differs) << name;
      }
    }
  }
}

TEST(PagePolicies, NamesOfPagesDoNotMatter) {
  Philox philox(15, 1);
  const Sequence s = random_sequence(philox, 2000, 60);
  Sequence renamed = s;
  for (Page& p : renamed.pages) p = (p * 37 + 11) % 101;
  for (const char* name : {"lru", "fifo", "clock", "sieve", "lfu", "s3_fifo", "arc", "lirs", "two_q",
                           "belady", "marker", "guard(base=blindoracle(predictor=popu))"}) {
    EXPECT_EQ(misses(name, s, 9), misses(name, renamed, 9)) << name;
  }
}

std::vector<std::uint64_t> sizes_of(const Sequence& s) {
  std::vector<std::uint64_t> out;
  for (const Page p : s.pages) out.push_back(1 + p * 7 % 40);
  return out;
}

TEST(PagePolicies, ByByteNothingExceedsTheCapacityAndLargeObjectsAreRefused) {
  Philox philox(16, 1);
  const Sequence s = random_sequence(philox, 3000, 80);
  const std::vector<std::uint64_t> sizes = sizes_of(s);
  const std::vector<std::uint32_t> next = s.next();
  std::vector<std::uint64_t> next_use;
  for (const std::uint32_t t : next) next_use.push_back(t == s.pages.size() ? kNeverAgain : t);
  std::uint64_t large = 0;
  for (const std::uint64_t size : sizes) large += size > 32 ? 1 : 0;
  for (const PageTraits* traits : all_page_policies()) {
    CacheSetup setup = setup_of(s, 32);
    setup.next = next;
    setup.by_bytes = true;
    const std::unique_ptr<PagePolicy> policy = policy_of(std::string(traits->name));
    if (traits->name == "follow_scores" || !policy->refusal(setup).empty()) continue;
    const std::unique_ptr<PageCache> cache = policy->start(setup);
    PageTally tally;
    const Page universe = s.universe();
    for (std::size_t t = 0; t < s.pages.size(); ++t) {
      RequestBlock block;
      block.first_time = t;
      block.pages = std::span(s.pages).subspan(t, 1);
      block.sizes = std::span(sizes).subspan(t, 1);
      block.next_use = std::span(next_use).subspan(t, 1);
      block.page_limit = universe;
      cache->serve(block, tally);
      std::uint64_t held = 0;
      for (Page p = 0; p < universe; ++p) held += cache->contains(p) ? 1 + p * 7 % 40 : 0;
      ASSERT_LE(held, 32u) << traits->name << " at " << t;
    }
    EXPECT_EQ(tally.oversized, large) << traits->name;
    EXPECT_GT(tally.requests - tally.misses, 0u) << traits->name;
  }
}

TEST(PagePolicies, EqualSizesByByteCountAsObjects) {
  Philox philox(17, 1);
  const Sequence s = random_sequence(philox, 3000, 80);
  const std::vector<std::uint64_t> sizes(s.pages.size(), 512);
  for (const char* name : {"lru", "fifo", "clock", "sieve", "lfu", "plfu", "gdsf", "s3_fifo", "arc", "two_q",
                           "guard(base=lru)", "guard(base=lfu,seed=3)"}) {
    const std::unique_ptr<PagePolicy> policy = policy_of(name);
    CacheSetup setup = setup_of(s, 20 * 512);
    setup.by_bytes = true;
    const std::unique_ptr<PageCache> cache = policy->start(setup);
    PageTally tally;
    RequestBlock block;
    block.pages = s.pages;
    block.sizes = sizes;
    block.page_limit = s.universe();
    cache->serve(block, tally);
    EXPECT_EQ(tally.misses, misses(name, s, 20)) << name;
  }
}

TEST(PageSpecs, BadOnesAreRefusedInOneLine) {
  for (const char* spec :
       {"lruu", "lru(x=1)", "guard(base=arc)", "guard(base=guard(base=lru))", "clock(bits=9)",
        "blindoracle(predictor=labels)", "follow_labels(predictor=oracle)", "blindoracle(predictor=oracel)",
        "blindoracle(predictor=oracle(noise=flip(0.5)))", "blindoracle(predictor=oracle(noise=normal(-1)))",
        "guard(base=lru,relax_times=3,relax_prob=0.5)", "blindoracle(predictor=file)",
        "combine_det(first=mark0,second=marker)"}) {
    EXPECT_THROW(policy_of(spec), UserError) << spec;
  }
}

TEST(PageSpecs, CanonicalFormReadsBackToItself) {
  for (const PageTraits* traits : all_page_policies()) {
    const std::unique_ptr<PagePolicy> policy = policy_of(std::string(traits->name));
    const std::string canonical = canonical_page_spec(*policy);
    EXPECT_EQ(canonical_page_spec(*policy_of(canonical)), canonical);
  }
  EXPECT_EQ(
      canonical_page_spec(*policy_of("guard(blindoracle(oracle(noise=lognormal(2.0))),seed=4)")),
      "guard(base=blindoracle(predictor=oracle(noise=lognormal(2.0),seed=0)),relax_times=1,relax_prob=0,"
      "follow_if_guarded=false,seed=4)");
}

}  // namespace
}  // namespace kvsim::test
