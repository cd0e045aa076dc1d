// Classical page policies against slow references written from their papers, request for request.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/pages/slow_classics.h"

namespace kvsim::test {
namespace {

struct Trace {
  std::vector<Page> pages;
  std::vector<std::uint64_t> sizes;
};

/// Mixtures of skewed requests, loops, scans and drift: queues and ghosts of every kind come into use.
Trace random_trace(Philox& philox, std::size_t capacity) {
  Trace out;
  const std::uint32_t c = static_cast<std::uint32_t>(capacity);
  const std::uint32_t universe = 2 + philox.next_below(4 * c + 4), length = 20 + philox.next_below(600);
  const std::uint32_t loop = 1 + philox.next_below(2 * c + 2), kinds = 1 + philox.next_below(15);
  std::uint32_t kind = 0, scan = 0;
  for (std::uint32_t t = 0; t < length; ++t) {
    if (philox.next_below(24) == 0) kind = philox.next_below(4);
    std::uint32_t p = philox.next_below(universe);
    switch ((kinds >> kind & 1u) != 0 ? kind : 4) {
      case 0:
        p = std::min({p, philox.next_below(universe), philox.next_below(universe)});
        break;
      case 1:
        p = t % loop;
        break;
      case 2:
        p = scan++ % (2 * universe);
        break;
      case 3:
        p = (p / 4 + t / 30) % universe;
        break;
      default:
        break;
    }
    out.pages.push_back(p);
    out.sizes.push_back(1 + p * 7 % 13);
  }
  return out;
}

/// Chance from an Lcg, for the policy and for its reference alike.
class UnitSource final : public RandomSource {
 public:
  explicit UnitSource(std::uint32_t seed) : lcg_(seed) {}
  std::uint32_t below(std::uint32_t bound) override { return lcg_.draw() % bound; }
  double unit() override { return lcg_.draw() / 32768.0; }

 private:
  Lcg lcg_;
};

void expect_equal(const std::string& spec, const std::function<std::unique_ptr<SlowCache>(std::size_t)>& make,
                  std::size_t least = 1, bool by_bytes = false) {
  Philox philox(51, 1);
  const std::unique_ptr<PagePolicy> policy = policy_of(spec);
  std::uint64_t hits = 0, misses = 0;
  for (std::uint32_t round = 0; round < 2000; ++round) {
    const std::size_t capacity = least + philox.next_below(round % 10 == 0 ? 200 : 24);
    const Trace trace = random_trace(philox, capacity);
    CacheSetup setup;
    setup.capacity = capacity;
    setup.by_bytes = by_bytes;
    setup.requests = trace.pages.size();
    setup.random_override = [](RandomPurpose, std::uint64_t) { return std::make_unique<UnitSource>(7); };
    const std::unique_ptr<PageCache> cache = policy->start(setup);
    const std::unique_ptr<SlowCache> slow = make(capacity);
    for (std::size_t t = 0; t < trace.pages.size(); ++t) {
      RequestBlock block;
      block.first_time = t;
      block.pages = std::span(trace.pages).subspan(t, 1);
      if (by_bytes) block.sizes = std::span(trace.sizes).subspan(t, 1);
      block.page_limit = trace.pages[t] + 1;
      PageTally tally;
      cache->serve(block, tally);
      const bool hit = slow->request(trace.pages[t], by_bytes ? trace.sizes[t] : 1);
      ASSERT_EQ(tally.misses == 0, hit)
          << spec << " capacity " << capacity << " round " << round << " request " << t;
      ++(hit ? hits : misses);
    }
  }
  EXPECT_GT(hits, 100'000u) << "the traces must exercise both";
  EXPECT_GT(misses, 100'000u);
}

TEST(Classics, Arc) { expect_equal("arc", slow_arc); }
TEST(Classics, Lirs) { expect_equal("lirs", slow_lirs, 2); }
TEST(Classics, TwoQ) { expect_equal("two_q", slow_two_q); }
TEST(Classics, TinyLfu) { expect_equal("tiny_lfu", slow_tiny_lfu); }
TEST(Classics, S3Fifo) { expect_equal("s3_fifo", slow_s3_fifo); }
TEST(Classics, Sieve) { expect_equal("sieve", slow_sieve); }
TEST(Classics, GdsfOfOneSize) { expect_equal("gdsf", slow_gdsf); }
TEST(Classics, GdsfByByte) { expect_equal("gdsf", slow_gdsf, 13, true); }
TEST(Classics, Lecar) {
  expect_equal("lecar", [](std::size_t c) {
    const auto random = std::make_shared<UnitSource>(7);
    return slow_lecar(c, [random] { return random->unit(); });
  });
}

}  // namespace
}  // namespace kvsim::test
