// Defaults of page policies and caches.
#include "policies/paging/page_policy.h"

#include <fmt/format.h>

namespace kvsim {

RequestBlock RequestBlock::part(std::size_t begin, std::size_t count) const {
  RequestBlock out = *this;
  if (!one_time) out.first_time += begin;
  out.pages = pages.subspan(begin, count);
  if (!sizes.empty()) out.sizes = sizes.subspan(begin, count);
  if (!next_use.empty()) out.next_use = next_use.subspan(begin, count);
  return out;
}

std::unique_ptr<RandomSource> CacheSetup::random(RandomPurpose purpose, std::uint64_t policy_seed) const {
  if (random_override) return random_override(purpose, policy_seed);
  return std::make_unique<PhiloxSource>(stream_of(seed, policy_seed), stream_of(stream_key, purpose));
}

void PageCache::serve_step(const RequestBlock& set, PageTally& tally) {
  std::vector<std::size_t> absent;
  for (std::size_t i = 0; i < set.count(); ++i) {
    if (!contains(set.pages[i])) {
      absent.push_back(i);
    } else {
      serve(set.part(i, 1), tally);
    }
  }
  for (const std::size_t i : absent) serve(set.part(i, 1), tally);
  for (std::size_t i = 0; i < set.count(); ++i) {
    if (contains(set.pages[i])) continue;
    ++tally.misses;
    tally.miss_bytes += set.at(i).size;
  }
}

std::string PagePolicy::refusal(const CacheSetup& setup) const {
  const PageTraits& t = traits();
  if (needs_future() && !setup.knows_future) {
    return fmt::format(
        "{} needs to know the future, and this input is read as a stream without it: hold it in memory, "
        "or give a format that carries next accesses (oracleGeneral)",
        t.name);
  }
  if (t.unit_only && setup.by_bytes)
    return fmt::format("{} is defined for pages of one size, not by byte", t.name);
  return {};
}

}  // namespace kvsim
