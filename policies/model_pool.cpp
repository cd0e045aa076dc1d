// One joint ranking over all heads of all recorded layers.
#include "policies/model_pool.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/error.h"
#include "kernels/order.h"

namespace kvsim {
namespace {

/// A unit as it stands in a summary.
struct SortedUnit {
  std::span<const float> score;
  std::uint32_t guarded = 0;
  std::uint32_t floor = 0;

  /// Tokens kept when all free tokens with score bits above `bits` are.
  std::uint32_t above(std::uint32_t bits) const {
    const auto end = std::partition_point(score.begin() + guarded, score.end(), [&](float s) { return ordered_bits(s) > bits; });
    return std::max(floor, static_cast<std::uint32_t>(end - score.begin()));
  }
  std::uint32_t places(std::uint32_t level) const { return std::max(floor, std::min(guarded, level)); }
};

template <typename Count>
std::uint64_t sum_over(const std::vector<SortedUnit>& units, Count count) {
  return std::accumulate(units.begin(), units.end(), std::uint64_t{0},
                         [&](std::uint64_t sum, const SortedUnit& unit) { return sum + count(unit); });
}

/// Summary of a layer: units, tokens, then for every unit its number of protected tokens and its scores. Counts are below
/// 2^24, so that floats hold them.
std::vector<SortedUnit> units_of(std::span<const float> summary, std::uint32_t floor) {
  const auto count = static_cast<std::size_t>(summary[0]), tokens = static_cast<std::size_t>(summary[1]);
  std::vector<SortedUnit> units;
  for (std::size_t u = 0; u < count; ++u) {
    const std::size_t at = 2 + u * (tokens + 1);
    units.push_back({summary.subspan(at + 1, tokens), static_cast<std::uint32_t>(summary[at]),
                     std::min(floor, static_cast<std::uint32_t>(tokens))});
  }
  return units;
}

/// Smallest number whose count of tokens over all units fits into `total`.
template <typename Count>
std::uint32_t smallest_that_fits(const std::vector<SortedUnit>& units, std::uint64_t total, Count count) {
  std::uint32_t low = 0, high = std::numeric_limits<std::uint32_t>::max();
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (sum_over(units, [&](const SortedUnit& u) { return count(u, middle); }) <= total) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// Adds what is left of the total to units whose count can still grow to `most[u]`, place by place.
void give_rest(std::vector<std::uint32_t>& counts, const std::vector<std::uint32_t>& most, std::uint64_t left) {
  std::vector<std::pair<std::uint32_t, std::size_t>> ties;  // place, unit
  for (std::size_t u = 0; u < counts.size(); ++u)
    for (std::uint32_t i = counts[u]; i < most[u]; ++i) ties.emplace_back(i, u);
  const auto last = ties.begin() + static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(left, ties.size()));
  std::nth_element(ties.begin(), last, ties.end());
  for (auto tie = ties.begin(); tie != last; ++tie) ++counts[tie->second];
}

std::vector<std::uint32_t> counts_of(const std::vector<SortedUnit>& units, std::uint64_t total) {
  std::vector<std::uint32_t> counts, most;
  if (sum_over(units, [](const SortedUnit& u) { return u.places(u.guarded); }) > total) {  // not even what is protected fits
    std::uint32_t level = 0;
    while (sum_over(units, [&](const SortedUnit& u) { return u.places(level + 1); }) <= total) ++level;
    for (const SortedUnit& unit : units) {
      counts.push_back(unit.places(level));
      most.push_back(unit.places(level + 1));
    }
  } else {
    const std::uint32_t cut = smallest_that_fits(units, total, [](const SortedUnit& u, std::uint32_t bits) { return u.above(bits); });
    for (const SortedUnit& unit : units) {
      counts.push_back(unit.above(cut));
      most.push_back(cut == 0 ? static_cast<std::uint32_t>(unit.score.size()) : unit.above(cut - 1));
    }
  }
  give_rest(counts, most, total - std::min(total, std::accumulate(counts.begin(), counts.end(), std::uint64_t{0})));
  return counts;
}

}  // namespace

std::vector<float> pool_summary(const LayerRanking& ranking) {
  constexpr std::size_t kExact = std::size_t{1} << 24;
  const auto& units = ranking.scores.units;
  const std::size_t tokens = units[0].score.size();
  KVSIM_CHECK(tokens < kExact && units.size() < kExact, "{} tokens of {} units in one summary", tokens, units.size());
  std::vector<float> summary{static_cast<float>(units.size()), static_cast<float>(tokens)};
  summary.reserve(2 + units.size() * (tokens + 1));
  for (std::size_t u = 0; u < units.size(); ++u) {
    summary.push_back(static_cast<float>(units[u].protected_tokens.size()));
    for (const TokenIndex token : ranking.order[u]) summary.push_back(units[u].score[token]);
  }
  return summary;
}

std::vector<std::uint32_t> model_pool_counts(std::span<const std::vector<float>> summaries, std::size_t place, std::uint64_t total,
                                             std::uint32_t floor) {
  KVSIM_CHECK(place < summaries.size(), "layer {} of {} summaries", place, summaries.size());
  std::vector<SortedUnit> all;
  std::size_t first = 0, own = 0;
  for (std::size_t l = 0; l < summaries.size(); ++l) {
    const std::vector<SortedUnit> units = units_of(summaries[l], floor);
    if (l == place) {
      first = all.size();
      own = units.size();
    }
    all.insert(all.end(), units.begin(), units.end());
  }
  const std::vector<std::uint32_t> counts = counts_of(all, total);
  const auto begin = counts.begin() + static_cast<std::ptrdiff_t>(first);
  return {begin, begin + static_cast<std::ptrdiff_t>(own)};
}

}  // namespace kvsim
