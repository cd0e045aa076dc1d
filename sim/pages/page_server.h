// One cache serving one stream: splits it into groups and warm-up, and counts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "policies/paging/page_policy.h"
#include "sim/pages/page_stream.h"

namespace kvsim {

struct ServeOptions {
  bool by_bytes = false;
  std::uint64_t warmup = 0;  // requests at the start that are served but not counted
  std::uint64_t seed = 0;
  bool detail = false;
  std::function<std::span<const double>(const std::string& path)> numbers;
};

/// Counts of one (stream, policy, capacity), after the warm-up.
struct PageCounts {
  PageTally tally;
  std::uint64_t first_touches = 0;         // requests for pages never requested before: no cache has them
  std::uint64_t lookup_hits = 0;           // prefix grouping: resident when the group arrived
  std::uint64_t prefix_hits = 0;           // prefix grouping: leading ones of those
  std::uint64_t groups = 0, overfull = 0;  // sets: steps, and those with more pages than the cache holds
  bool has_guard = false;
  GuardCounters guard;

  /// Sums everything; Guard's counters too.
  void add(const PageCounts& other);
  double miss_ratio() const { return ratio(tally.misses, tally.requests); }
  double byte_miss_ratio() const { return ratio(tally.miss_bytes, tally.bytes); }
  /// Misses that fetch: all but the first touches of pages.
  std::uint64_t recalls() const { return tally.misses - first_touches; }

 private:
  static double ratio(std::uint64_t a, std::uint64_t b);
};

/// What a cache of `policy` over `stream` is started with; `stream` must outlive the cache.
CacheSetup setup_for(const PageStream& stream, std::uint64_t capacity, const ServeOptions& options);

/// Serves blocks one after the other. `starts` of a block are relative to it; blocks hold whole groups.
class PageServer {
 public:
  PageServer(const PagePolicy& policy, const CacheSetup& setup, Grouping grouping, std::uint64_t warmup);
  void serve(const RequestBlock& block, std::span<const std::uint32_t> starts);
  PageCounts finish();

 private:
  void serve_plain(const RequestBlock& block);
  void serve_prefix(const RequestBlock& group);
  void serve_set(const RequestBlock& set);
  PageTally& tally() { return served_ < warmup_ ? ignored_ : counts_.tally; }

  Grouping grouping_;
  std::uint64_t warmup_, capacity_;
  std::uint64_t served_ = 0, step_ = 0;
  std::unique_ptr<PageCache> cache_;
  PageCounts counts_;
  PageTally ignored_;
  std::vector<Page> set_pages_;
  std::vector<std::uint64_t> set_next_;
  std::vector<std::size_t> order_;
};

/// The whole stream through one policy at one capacity. Deterministic; safe to call from several threads.
PageCounts simulate_pages(const PageStream& stream, const PagePolicy& policy, std::uint64_t capacity,
                          const ServeOptions& options);

/// First touches after the warm-up: the same for every cache.
std::uint64_t count_first_touches(const PageStream& stream, std::uint64_t warmup);

}  // namespace kvsim
