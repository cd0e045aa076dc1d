// What a page policy is: the rule that a cache of pages follows while it serves a sequence of requests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/view.h"
#include "policies/paging/random_source.h"
#include "policies/spec.h"

namespace kvsim {

/// A page (KV block, cached object): dense numbers in the order of first appearance in its stream.
using Page = std::uint32_t;
/// A place of a cache, from 0.
using Slot = std::uint32_t;

inline constexpr Slot kNoSlot = 0xFFFFFFFFu;
inline constexpr Page kNoPage = 0xFFFFFFFFu;
/// `next_use` of a page that is never requested again.
inline constexpr std::uint64_t kNeverAgain = ~0ull;

/// One request. Time counts the requests of the stream from 0; where a step asks for a set of pages, it
/// counts steps.
struct PageRequest {
  Page page = 0;
  std::uint64_t size = 1;  // objects: 1; by byte: bytes
  std::uint64_t time = 0;
  std::uint64_t next_use = kNeverAgain;  // meaningful only where the stream knows its future
};

/// A run of consecutive requests, as arrays.
struct RequestBlock {
  std::uint64_t first_time = 0;
  bool one_time = false;  // all requests stand at first_time: the set of one step
  std::span<const Page> pages;
  std::span<const std::uint64_t> sizes;     // empty: 1 each
  std::span<const std::uint64_t> next_use;  // empty: unknown
  Page page_limit = 0;                      // all pages so far are below it

  std::size_t count() const { return pages.size(); }
  PageRequest at(std::size_t i) const {
    return {pages[i], sizes.empty() ? 1 : sizes[i], one_time ? first_time : first_time + i,
            next_use.empty() ? kNeverAgain : next_use[i]};
  }
  RequestBlock part(std::size_t begin, std::size_t count) const;
};

/// What serving cost. Sums only: tallies of parts add up.
struct PageTally {
  std::uint64_t requests = 0, misses = 0;
  std::uint64_t bytes = 0, miss_bytes = 0;         // sizes of the requests
  std::uint64_t admitted = 0, admitted_bytes = 0;  // loaded into the cache: the admission traffic
  std::uint64_t evicted = 0;
  std::uint64_t oversized = 0;  // requests for objects larger than the cache: misses, never cached
  std::uint64_t streamed = 0;   // pages of sets larger than the cache, used without being cached
};

/// One phase of Guard, as detail output shows it.
struct GuardPhase {
  std::uint64_t begin = 0;  // time of the miss that opened it
  std::uint64_t misses = 0, errors = 0, guards = 0;
};
/// Guard's counters: phases opened, re-misses of pages evicted in the phase, those
/// that were acted upon, and victims by who named them.
struct GuardCounters {
  std::uint64_t phases = 0, errors = 0, guards = 0, random_evictions = 0, base_evictions = 0;
  std::vector<GuardPhase> detail;  // only when asked for
};

/// Attention mass of every page at every query, for predictors that read scores. Pages that do not exist yet
/// have mass 0.
struct AttentionScores {
  MatrixView<const float> mass;       // [prompt queries, then steps; pages]
  MatrixView<const float> lookahead;  // [pseudo steps, pages] or empty
  std::size_t first_step = 0;         // row of the first step
};

/// Everything a cache is told at its start.
struct CacheSetup {
  std::uint64_t capacity = 0;  // objects, or bytes when by_bytes; > 0
  bool by_bytes = false;
  std::uint64_t seed = 0;               // of the run
  std::uint64_t stream_key = 0;         // stands for (trace, layer, head); keys random choices
  std::uint64_t requests = 0;           // of the whole stream, or steps where steps are the time; 0 = unknown
  bool knows_future = false;            // PageRequest::next_use is filled
  bool in_sets = false;                 // requests come as the sets of steps
  std::span<const Page> pages;          // the whole stream where it is held in memory
  std::span<const std::uint32_t> next;  // its next uses (index, or the number of requests when never)
  const AttentionScores* attention = nullptr;
  bool detail = false;  // keep GuardCounters::detail
  /// A user's numbers, one per request (predictor `file`). Throws UserError.
  std::function<std::span<const double>(const std::string& path)> numbers;
  /// Where random numbers come from; Philox when empty. Tests script it.
  std::function<std::unique_ptr<RandomSource>(RandomPurpose, std::uint64_t seed)> random_override;

  std::unique_ptr<RandomSource> random(RandomPurpose purpose, std::uint64_t policy_seed) const;
};

/// A cache that serves one stream at one capacity. Independent of all others; not for concurrent use.
class PageCache {
 public:
  virtual ~PageCache() = default;
  /// Serves the requests one after the other.
  virtual void serve(const RequestBlock& block, PageTally& tally) = 0;
  /// Serves the set of one step, which must fit. Hits first, then misses, ascending page ids. A cache that
  /// can pin keeps the whole set resident until the step ends; the default cannot, and pays one more miss for
  /// every page of the set that it dropped before the end of the step.
  virtual void serve_step(const RequestBlock& set, PageTally& tally);
  virtual bool contains(Page page) const = 0;
  /// The page that the last call of serve evicted last; kNoPage when none. For those who follow another
  /// cache.
  virtual Page evicted_page() const { return kNoPage; }
  /// Null for caches without Guard.
  virtual const GuardCounters* guard_counters() const { return nullptr; }
};

/// How a cache chooses a victim, separated from the cache so that Guard can stand between. Slots are told as
/// they fill and empty; hidden slots (guarded or pinned) may not be named.
class VictimRule {
 public:
  virtual ~VictimRule() = default;
  virtual void resize(std::size_t slots) = 0;
  /// Before a request is looked up: for rules that rescore all residents.
  virtual void before(const PageRequest&) {}
  virtual void load(Slot slot, const PageRequest& request) = 0;
  virtual void hit(Slot slot, const PageRequest& request) = 0;
  virtual void unload(Slot slot) = 0;
  /// A visible slot; at least one exists. The caller evicts what was named, unless it is asked not to.
  virtual Slot victim(const PageRequest& incoming) = 0;
  virtual void hide(Slot slot) = 0;
  virtual void show(Slot slot) = 0;
};

/// Static facts of a page policy.
struct PageTraits {
  std::string_view name = {};
  std::string_view summary = {};
  std::string_view reference = {};
  bool guardable = false;               // can name a victim among any unguarded pages
  std::string_view guard_refusal = {};  // otherwise: why not
  bool future = false;                  // needs next uses, whatever its parameters
  bool stack = false;      // the pages held at k are among those held at k + 1: whole curves in one pass
  bool unit_only = false;  // defined for objects of one size
  bool randomised = false;
};

/// A page policy with bound parameters; makes caches.
class PagePolicy {
 public:
  virtual ~PagePolicy() = default;
  virtual const PageTraits& traits() const = 0;
  virtual void fields(FieldVisitor&) {}
  /// After binding: checks combinations, binds nested policies and predictors. Throws UserError.
  virtual void prepare() {}
  /// True when this binding reads next uses (a predictor may, where the policy itself does not).
  virtual bool needs_future() const { return traits().future; }
  /// Empty, or why this binding cannot serve such a stream.
  virtual std::string refusal(const CacheSetup& setup) const;
  virtual std::unique_ptr<PageCache> start(const CacheSetup& setup) const = 0;
  /// For guardable policies: the bare rule.
  virtual std::unique_ptr<VictimRule> rule(const CacheSetup&) const { return nullptr; }
};

}  // namespace kvsim
