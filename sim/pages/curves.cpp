// Stack distances and spatial samples.
#include "sim/pages/curves.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"

namespace kvsim {
namespace {

/// Histogram of stack distances -> misses at every capacity.
StackCurve curve_of(const std::vector<std::uint64_t>& distances, std::uint64_t requests, Page unique) {
  StackCurve out;
  out.requests = requests;
  out.misses.resize(std::size_t{unique} + 1);
  std::uint64_t misses = requests;
  for (std::size_t c = 0; c <= unique; ++c) {
    if (c < distances.size()) misses -= distances[c];
    out.misses[c] = misses;
  }
  return out;
}

/// Sums over a prefix of times in which a page has its latest request there (Bennett and Kruskal, 1975).
class Fenwick {
 public:
  explicit Fenwick(std::size_t n) : sum_(n + 1, 0) {}
  void add(std::size_t i, std::int32_t by) {
    for (++i; i < sum_.size(); i += i & (~i + 1)) sum_[i] += by;
  }
  std::int64_t before(std::size_t i) const {
    std::int64_t total = 0;
    for (; i > 0; i -= i & (~i + 1)) total += sum_[i];
    return total;
  }

 private:
  std::vector<std::int32_t> sum_;
};

StackCurve lru_curve(const PageStream& stream, std::uint64_t warmup) {
  const std::size_t n = stream.requests();
  Fenwick latest(n);
  std::vector<std::size_t> last(stream.unique, n);
  std::vector<std::uint64_t> distances(std::size_t{stream.unique} + 1, 0);
  std::int64_t live = 0;
  for (std::size_t t = 0; t < n; ++t) {
    std::size_t& at = last[stream.pages[t]];
    if (at != n) {
      if (t >= warmup) ++distances[static_cast<std::size_t>(live - latest.before(at))];
      latest.add(at, -1);
    } else {
      ++live;
    }
    latest.add(t, 1);
    at = t;
  }
  return curve_of(distances, n - std::min<std::uint64_t>(warmup, n), stream.unique);
}

/// Mattson's priority stack. `wins(a, b)` says that page a stays above page b.
template <typename Wins, typename Touch>
StackCurve priority_curve(const PageStream& stream, std::uint64_t warmup, Wins wins, Touch touch) {
  std::vector<Page> stack;
  std::vector<bool> known(stream.unique, false);
  std::vector<std::uint64_t> distances(std::size_t{stream.unique} + 1, 0);
  for (std::size_t t = 0; t < stream.requests(); ++t) {
    const Page page = stream.pages[t];
    Page carried = page;
    bool found = false;
    std::size_t depth = 0;
    for (; depth < stack.size(); ++depth) {
      const Page here = stack[depth];
      if (here == page) {
        stack[depth] = carried;
        found = true;
        break;
      }
      // The requested page takes the top, whatever its priority.
      if (depth == 0 || wins(carried, here)) std::swap(stack[depth], carried);
    }
    if (!found) stack.push_back(carried);
    if (found && t >= warmup && known[page]) ++distances[depth + 1];
    known[page] = true;
    touch(page, t);
  }
  const std::uint64_t n = stream.requests();
  return curve_of(distances, n - std::min<std::uint64_t>(warmup, n), stream.unique);
}

}  // namespace

StackCurve stack_curve(const std::string& policy, const PageStream& stream, std::uint64_t warmup) {
  if (policy == "lru") return lru_curve(stream, warmup);
  if (policy == "belady") {
    KVSIM_CHECK(stream.next.size() == stream.requests(), "next uses are missing");
    std::vector<std::uint32_t> next(stream.unique, 0);
    return priority_curve(
        stream, warmup, [&](Page a, Page b) { return next[a] < next[b] || (next[a] == next[b] && a < b); },
        [&](Page page, std::size_t t) { next[page] = stream.next[t]; });
  }
  if (policy == "plfu") {
    std::vector<std::pair<std::uint64_t, std::size_t>> uses(stream.unique, {0, 0});
    return priority_curve(
        stream, warmup, [&](Page a, Page b) { return uses[a] > uses[b]; },
        [&](Page page, std::size_t t) {
          uses[page] = {uses[page].first + 1, t};
        });
  }
  throw UserError(
      "{} does not have the stack property: whole curves come from lru, plfu and belady; sample it "
      "(--sample) or "
      "give a list of capacities",
      policy);
}

std::uint32_t sample_group(std::uint64_t object, double rate, std::uint32_t groups, std::uint64_t seed) {
  const double u = static_cast<double>(stream_of(object, seed) >> 11) * 0x1.0p-53;
  const double g = u / rate;
  return g < groups ? static_cast<std::uint32_t>(g) : groups;
}

std::vector<SampledRatio> sampled_curve(const PagePolicy& policy, const PageStream& stream,
                                        const std::vector<std::uint64_t>& capacities, double rate,
                                        std::uint32_t groups, const ServeOptions& options) {
  if (!(rate > 0) || rate * groups > 1.0) {
    throw UserError("--sample {} does not fit: {} disjoint samples need a rate in (0, {}]", rate, groups,
                    1.0 / groups);
  }
  std::vector<PageStream> samples(groups);
  std::vector<std::vector<std::uint64_t>> sizes(groups);
  std::vector<Page> page_in(stream.unique, kNoPage);
  std::vector<std::uint64_t> warm(groups, 0);
  for (std::size_t t = 0; t < stream.requests(); ++t) {
    const Page page = stream.pages[t];
    const std::uint32_t g = sample_group(page, rate, groups, options.seed);
    if (g == groups) continue;
    PageStream& sample = samples[g];
    if (page_in[page] == kNoPage) page_in[page] = sample.unique++;
    sample.pages.push_back(page_in[page]);
    if (!stream.sizes.empty()) sample.sizes.push_back(stream.sizes[t]);
    warm[g] += t < options.warmup ? 1 : 0;
  }
  for (PageStream& sample : samples) {
    sample.key = stream.key;
    if (policy.needs_future()) sample.find_next();
  }
  std::vector<SampledRatio> out;
  const double expected =
      static_cast<double>(stream.requests() - std::min<std::uint64_t>(options.warmup, stream.requests())) *
      rate;
  for (const std::uint64_t capacity : capacities) {
    SampledRatio point;
    double sum = 0, squares = 0;
    for (std::uint32_t g = 0; g < groups; ++g) {
      ServeOptions own = options;
      own.warmup = warm[g];
      const auto scaled = static_cast<std::uint64_t>(std::llround(rate * static_cast<double>(capacity)));
      const PageCounts counts = simulate_pages(samples[g], policy, std::max<std::uint64_t>(1, scaled), own);
      // SHARDS-adj: requests that the sample has too few or too many of are counted as hits at the smallest
      // distance.
      const double ratio = static_cast<double>(counts.tally.misses) / std::max(1.0, expected);
      sum += std::min(1.0, ratio);
      squares += std::min(1.0, ratio) * std::min(1.0, ratio);
      point.requests += counts.tally.requests;
    }
    const double mean = sum / groups;
    point.miss_ratio = mean;
    point.error =
        groups > 1 ? std::sqrt(std::max(0.0, squares / groups - mean * mean) / (groups - 1)) : std::nan("");
    out.push_back(point);
  }
  return out;
}

}  // namespace kvsim
