// Whole miss-ratio curves: in one pass where a policy has the stack property, from spatial samples otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "policies/paging/page_policy.h"
#include "sim/pages/page_server.h"
#include "sim/pages/page_stream.h"

namespace kvsim {

/// misses[c] = misses at capacity c, c = 0 .. unique pages (0: every request). Pages of one size, one request
/// at a time.
struct StackCurve {
  std::vector<std::uint64_t> misses;
  std::uint64_t requests = 0;
  std::uint64_t at(std::uint64_t capacity) const {
    return misses[std::min<std::size_t>(static_cast<std::size_t>(capacity), misses.size() - 1)];
  }
};

/// "lru", "plfu" and "belady"; a UserError names them otherwise. LRU costs O(n log n); the others percolate
/// through the stack (Mattson et al., 1970), O(n * stack distance). Belady needs stream.next.
StackCurve stack_curve(const std::string& policy, const PageStream& stream, std::uint64_t warmup);

/// An estimate from samples (Waldspurger et al., SHARDS, FAST 2015, fixed rate, with the SHARDS-adj
/// correction): pages are taken by a hash, and a cache of capacity rate * c serves them. `groups` samples of
/// disjoint pages are run; `error` is the standard error of their mean.
struct SampledRatio {
  double miss_ratio = 0, error = 0;
  std::uint64_t requests = 0;  // served in all samples together
};
std::vector<SampledRatio> sampled_curve(const PagePolicy& policy, const PageStream& stream,
                                        const std::vector<std::uint64_t>& capacities, double rate,
                                        std::uint32_t groups, const ServeOptions& options);

/// Number of the sample that an object belongs to, or `groups` when to none.
std::uint32_t sample_group(std::uint64_t object, double rate, std::uint32_t groups, std::uint64_t seed);

}  // namespace kvsim
