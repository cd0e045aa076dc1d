// Running page policies on small sequences: misses with scripted chance, and exact distributions over all of
// it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "policies/paging/page_policy.h"
#include "policies/paging/page_registry.h"

namespace kvsim::test {

/// A sequence of pages with all that a cache may ask of it. Predictions named in a spec as file(path="p") are
/// `numbers`.
struct Sequence {
  std::vector<Page> pages;
  std::vector<double> numbers;

  std::vector<std::uint32_t> next() const;  // index of the next request; pages.size() = never
  std::vector<double> next_use() const;     // the same, never = pages.size() + 1
  Page universe() const;
};

/// "a b c" or "12 7 12": one page per word, numbered by first appearance.
Sequence sequence_of(const std::string& words, const std::string& numbers = "");
std::vector<double> numbers_of(const std::string& words);

/// The glibc-like generator of notes on Guard G4: x <- 1103515245 x + 12345 mod 2^31, output x >> 16.
class Lcg {
 public:
  explicit Lcg(std::uint32_t seed) : x_(seed) {}
  std::uint32_t draw() {
    x_ = (1103515245u * x_ + 12345u) & 0x7fffffffu;
    return x_ >> 16;
  }

 private:
  std::uint32_t x_;
};

/// Chance by (draw mod n)-th smallest, from an Lcg.
class LcgSource final : public RandomSource {
 public:
  explicit LcgSource(std::uint32_t seed) : lcg_(seed) {}
  std::uint32_t below(std::uint32_t bound) override { return lcg_.draw() % bound; }
  double unit() override { return 0.5; }
  bool ascending() const override { return true; }

 private:
  Lcg lcg_;
};

std::unique_ptr<PagePolicy> policy_of(const std::string& spec);

/// A setup over the sequence, which must outlive it.
CacheSetup setup_of(const Sequence& sequence, std::uint64_t capacity, std::uint64_t seed = 1);

struct Outcome {
  PageTally tally;
  GuardCounters guard;
};
Outcome run(const PagePolicy& policy, const Sequence& sequence, const CacheSetup& setup);
/// Misses of one run with Philox.
std::uint64_t misses(const std::string& spec, const Sequence& sequence, std::uint64_t capacity,
                     std::uint64_t seed = 1);

/// Probability of every number of misses, by going through all random choices. For short sequences.
std::map<std::uint64_t, double> distribution(const std::string& spec, const Sequence& sequence,
                                             std::uint64_t capacity);
double mean(const std::map<std::uint64_t, double>& distribution);

/// Fewest misses by dynamic programming over all cache states: independent of every cache of ours. Universe
/// <= 12.
std::uint64_t fewest_misses(const Sequence& sequence, std::uint64_t capacity);

/// 2 H_{k-1} + 2.
double guard_bound(std::uint64_t capacity);

}  // namespace kvsim::test
