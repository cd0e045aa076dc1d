// One cache serving one stream.
#include "sim/pages/page_server.h"

#include <algorithm>
#include <limits>

#include "kernels/error.h"

namespace kvsim {
namespace {

/// Requests handed over at a time: their next uses are widened into a buffer that stays in the processor's
/// cache.
constexpr std::size_t kBlock = 4096;

}  // namespace

double PageCounts::ratio(std::uint64_t a, std::uint64_t b) {
  return b == 0 ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(a) / static_cast<double>(b);
}

void PageCounts::add(const PageCounts& other) {
  tally.requests += other.tally.requests;
  tally.misses += other.tally.misses;
  tally.bytes += other.tally.bytes;
  tally.miss_bytes += other.tally.miss_bytes;
  tally.admitted += other.tally.admitted;
  tally.admitted_bytes += other.tally.admitted_bytes;
  tally.evicted += other.tally.evicted;
  tally.oversized += other.tally.oversized;
  tally.streamed += other.tally.streamed;
  first_touches += other.first_touches;
  lookup_hits += other.lookup_hits;
  prefix_hits += other.prefix_hits;
  groups += other.groups;
  overfull += other.overfull;
  has_guard |= other.has_guard;
  guard.phases += other.guard.phases;
  guard.errors += other.guard.errors;
  guard.guards += other.guard.guards;
  guard.random_evictions += other.guard.random_evictions;
  guard.base_evictions += other.guard.base_evictions;
}

CacheSetup setup_for(const PageStream& stream, std::uint64_t capacity, const ServeOptions& options) {
  CacheSetup setup;
  setup.capacity = capacity;
  setup.by_bytes = options.by_bytes;
  setup.seed = options.seed;
  setup.stream_key = stream.key;
  setup.requests = stream.time_steps();
  setup.knows_future = !stream.next.empty() || stream.pages.empty();
  setup.in_sets = stream.grouping == Grouping::sets;
  setup.pages = stream.pages;
  setup.next = stream.next;
  setup.detail = options.detail;
  setup.numbers = options.numbers;
  return setup;
}

PageServer::PageServer(const PagePolicy& policy, const CacheSetup& setup, Grouping grouping,
                       std::uint64_t warmup)
    : grouping_(grouping), warmup_(warmup), capacity_(setup.capacity) {
  const std::string why = policy.refusal(setup);
  if (!why.empty()) throw UserError("{}", why);
  cache_ = policy.start(setup);
}

void PageServer::serve(const RequestBlock& block, std::span<const std::uint32_t> starts) {
  if (grouping_ == Grouping::none) {
    serve_plain(block);
    return;
  }
  for (std::size_t g = 0; g < starts.size(); ++g) {
    const std::size_t end = g + 1 < starts.size() ? starts[g + 1] : block.count();
    const RequestBlock group = block.part(starts[g], end - starts[g]);
    if (grouping_ == Grouping::prefix) {
      serve_prefix(group);
    } else {
      serve_set(group);
    }
  }
}

void PageServer::serve_plain(const RequestBlock& block) {
  std::size_t done = 0;
  if (served_ < warmup_) {
    done = static_cast<std::size_t>(std::min<std::uint64_t>(warmup_ - served_, block.count()));
    cache_->serve(block.part(0, done), ignored_);
  }
  if (done < block.count()) cache_->serve(block.part(done, block.count() - done), counts_.tally);
  served_ += block.count();
}

void PageServer::serve_prefix(const RequestBlock& group) {
  std::uint64_t leading = 0, any = 0;
  for (std::size_t i = 0; i < group.count(); ++i) {
    const bool resident = cache_->contains(group.pages[i]);
    if (resident && leading == i) ++leading;
    any += resident ? 1 : 0;
  }
  if (served_ >= warmup_) {
    counts_.prefix_hits += leading;
    counts_.lookup_hits += any;
    ++counts_.groups;
  }
  cache_->serve(group, tally());
  served_ += group.count();
}

void PageServer::serve_set(const RequestBlock& set) {
  const auto held = static_cast<std::size_t>(std::min<std::uint64_t>(capacity_, set.count()));
  order_.resize(held);
  for (std::size_t i = 0; i < held; ++i) order_[i] = i;
  std::sort(order_.begin(), order_.end(),
            [&](std::size_t a, std::size_t b) { return set.pages[a] < set.pages[b]; });
  set_pages_.clear();
  set_next_.clear();
  for (const std::size_t i : order_) {
    set_pages_.push_back(set.pages[i]);
    if (!set.next_use.empty()) set_next_.push_back(set.next_use[i]);
  }
  RequestBlock step;
  step.first_time = step_++;
  step.one_time = true;
  step.pages = set_pages_;
  step.next_use = set_next_;
  step.page_limit = set.page_limit;
  PageTally& t = tally();
  cache_->serve_step(step, t);
  const std::uint64_t streamed = set.count() - held;
  t.requests += streamed;
  t.misses += streamed;
  t.bytes += streamed;
  t.miss_bytes += streamed;
  t.streamed += streamed;
  if (served_ >= warmup_) {
    ++counts_.groups;
    counts_.overfull += streamed > 0 ? 1 : 0;
  }
  served_ += set.count();
}

PageCounts PageServer::finish() {
  if (cache_->guard_counters() != nullptr) {
    counts_.has_guard = true;
    counts_.guard = *cache_->guard_counters();
  }
  return std::move(counts_);
}

PageCounts simulate_pages(const PageStream& stream, const PagePolicy& policy, std::uint64_t capacity,
                          const ServeOptions& options) {
  CacheSetup setup = setup_for(stream, capacity, options);
  const AttentionScores scores{stream.mass.view(), stream.lookahead.view(), stream.first_step};
  if (!stream.mass.empty()) setup.attention = &scores;
  PageServer server(policy, setup, stream.grouping, options.warmup);

  const bool future = !stream.next.empty();
  std::vector<std::uint32_t> step_of;  // of every request, where sets are served
  if (future && stream.grouping == Grouping::sets) {
    step_of.resize(stream.requests());
    for (std::size_t g = 0; g < stream.groups(); ++g) {
      const auto [begin, end] = stream.group(g);
      std::fill(step_of.begin() + static_cast<std::ptrdiff_t>(begin),
                step_of.begin() + static_cast<std::ptrdiff_t>(end), static_cast<std::uint32_t>(g));
    }
  }
  std::vector<std::uint64_t> next_use;
  const auto block_of = [&](std::size_t begin, std::size_t end) {
    RequestBlock block;
    block.first_time = begin;
    block.pages = std::span(stream.pages).subspan(begin, end - begin);
    if (!stream.sizes.empty() && options.by_bytes)
      block.sizes = std::span(stream.sizes).subspan(begin, end - begin);
    block.page_limit = stream.unique;
    if (future && policy.needs_future()) {
      next_use.resize(end - begin);
      for (std::size_t i = begin; i < end; ++i) {
        const std::uint32_t at = stream.next[i];
        next_use[i - begin] = at == stream.requests() ? kNeverAgain : step_of.empty() ? at : step_of[at];
      }
      block.next_use = next_use;
    }
    return block;
  };
  if (stream.grouping == Grouping::none) {
    for (std::size_t begin = 0; begin < stream.requests(); begin += kBlock) {
      server.serve(block_of(begin, std::min(begin + kBlock, stream.requests())), {});
    }
  } else {
    constexpr std::uint32_t kOne[] = {0};
    for (std::size_t g = 0; g < stream.groups(); ++g) {
      const auto [begin, end] = stream.group(g);
      server.serve(block_of(begin, end), kOne);
    }
  }
  PageCounts counts = server.finish();
  counts.first_touches = count_first_touches(stream, options.warmup);
  return counts;
}

std::uint64_t count_first_touches(const PageStream& stream, std::uint64_t warmup) {
  // Pages are numbered by first appearance, so a first touch is a request for the lowest page not seen so
  // far.
  Page seen = 0;
  std::uint64_t count = 0;
  for (std::size_t t = 0; t < stream.requests(); ++t) {
    if (stream.pages[t] < seen) continue;
    ++seen;
    count += t >= warmup ? 1 : 0;
  }
  return count;
}

}  // namespace kvsim
