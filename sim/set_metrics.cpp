// Metrics of a kept set as a whole.
#include "sim/set_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/error.h"
#include "kernels/order.h"

namespace kvsim {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

/// Every member.
constexpr std::array kColumns{&SetMetrics::consistency,    &SetMetrics::jaccard,
                              &SetMetrics::mass_ratio,     &SetMetrics::free_consistency,
                              &SetMetrics::free_corrected, &SetMetrics::window_consistency,
                              &SetMetrics::evidence};
static_assert(sizeof(SetMetrics) == kColumns.size() * sizeof(std::vector<double>), "a member is no column");

/// Places in an order without some of its tokens: place[t] less those of them that stand before token t.
std::vector<std::uint32_t> places_without(std::span<const std::uint32_t> place,
                                          std::span<const TokenIndex> left_out) {
  std::vector<std::uint32_t> before(place.size() + 1, 0);  // before[p]: tokens left out at places below p
  for (const TokenIndex token : left_out) before[place[token] + 1] = 1;
  for (std::size_t p = 1; p < before.size(); ++p) before[p] += before[p - 1];
  std::vector<std::uint32_t> rest(place.size());
  for (std::size_t t = 0; t < place.size(); ++t) rest[t] = place[t] - before[place[t]];
  return rest;
}

/// Running sums of `value` along `order`: prefix[i] = sum over the first i tokens.
std::vector<double> prefix_sums(std::span<const TokenIndex> order, std::span<const float> value) {
  std::vector<double> prefix(order.size() + 1, 0.0);
  for (std::size_t i = 0; i < order.size(); ++i)
    prefix[i + 1] = prefix[i] + static_cast<double>(value[order[i]]);
  return prefix;
}

void free_metrics(const UnitSelection& unit, const OracleOrder& oracle, std::span<const TokenIndex> hindsight,
                  SetMetrics& out) {
  // An order begins with the protected tokens.
  const std::span<const TokenIndex> order = unit.order, guarded = order.first(unit.protected_count),
                                    own = order.subspan(unit.protected_count);
  std::vector<std::uint32_t> free_counts;
  for (const std::uint32_t count : unit.ascending)
    free_counts.push_back(
        count > unit.protected_count ? count - static_cast<std::uint32_t>(unit.protected_count) : 0);
  const std::vector<std::uint64_t> agree = overlaps(own, places_without(oracle.place, guarded), free_counts);
  std::vector<std::uint64_t> with_hindsight;
  if (!hindsight.empty())
    with_hindsight = overlaps(own, places_without(places_in(hindsight), guarded), free_counts);
  for (std::size_t b = 0; b < free_counts.size(); ++b) {
    const std::size_t at = unit.place[b];
    const double n = free_counts[at];
    if (n == 0) continue;
    const double expected = n / static_cast<double>(own.size());
    out.free_consistency[b] = static_cast<double>(agree[at]) / n;
    if (expected < 1) out.free_corrected[b] = (out.free_consistency[b] - expected) / (1 - expected);
    if (!hindsight.empty()) out.window_consistency[b] = static_cast<double>(with_hindsight[at]) / n;
  }
}

}  // namespace

OracleOrder::OracleOrder(std::vector<float> mean_attention)
    : mean(std::move(mean_attention)), order(mean.size()) {
  sort_descending(mean, order);
  place = places_in(order);
  mass = prefix_sums(order, mean);
}

SetMetrics::SetMetrics(std::size_t budgets) {
  for (const auto column : kColumns) (this->*column).assign(budgets, kUndefined);
}

void SetMetrics::add(const SetMetrics& other) {
  for (const auto column : kColumns)
    for (std::size_t i = 0; i < (this->*column).size(); ++i) (this->*column)[i] += (other.*column)[i];
}

void SetMetrics::divide(double n) {
  for (const auto column : kColumns)
    for (double& value : this->*column) value /= n;
}

void SetMetrics::place(const SetMetrics& other, std::span<const std::size_t> budgets) {
  for (const auto column : kColumns)
    for (std::size_t i = 0; i < budgets.size(); ++i) (this->*column)[budgets[i]] = (other.*column)[i];
}

std::vector<std::uint32_t> places_in(std::span<const TokenIndex> order) {
  std::vector<std::uint32_t> place(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = static_cast<std::uint32_t>(i);
  return place;
}

std::vector<std::uint64_t> overlaps(std::span<const TokenIndex> a, std::span<const std::uint32_t> place_in_b,
                                    std::span<const std::uint32_t> counts) {
  std::vector<std::uint32_t> joint(a.size(), 0);  // joint[i]: tokens that are in both sets from size i + 1 on
  for (std::size_t i = 0; i < a.size(); ++i) ++joint[std::max<std::size_t>(i, place_in_b[a[i]])];
  std::vector<std::uint64_t> result;
  std::uint64_t sum = 0;
  std::size_t size = 0;
  for (const std::uint32_t count : counts) {
    for (; size < count; ++size) sum += joint[size];
    result.push_back(sum);
  }
  return result;
}

SetMetrics set_metrics(const UnitSelection& unit, const OracleOrder& oracle,
                       std::span<const TokenIndex> hindsight,
                       std::span<const std::pair<std::uint32_t, std::uint32_t>> evidence) {
  SetMetrics out(unit.counts.size());
  const std::vector<std::uint64_t> agree = overlaps(unit.order, oracle.place, unit.ascending);
  const std::vector<double> own_mass = prefix_sums(unit.order, oracle.mean);
  std::vector<float> is_evidence(evidence.empty() ? 0 : unit.order.size(), 0.0f);
  double evidence_tokens = 0;
  for (const auto& [begin, end] : evidence) {
    KVSIM_CHECK(end <= unit.order.size(), "evidence up to token {} of {}", end, unit.order.size());
    for (std::uint32_t token = begin; token < end; ++token) {
      evidence_tokens += is_evidence[token] == 0.0f ? 1.0 : 0.0;
      is_evidence[token] = 1.0f;
    }
  }
  const std::vector<double> found =
      evidence.empty() ? std::vector<double>() : prefix_sums(unit.order, is_evidence);
  for (std::size_t b = 0; b < unit.counts.size(); ++b) {
    const std::uint32_t n = unit.counts[b];
    if (evidence_tokens > 0) out.evidence[b] = found[n] / evidence_tokens;
    if (n == 0) continue;
    const double overlap = static_cast<double>(agree[unit.place[b]]);
    out.consistency[b] = overlap / n;
    out.jaccard[b] = overlap / (2.0 * n - overlap);
    if (oracle.mass[n] > 0) out.mass_ratio[b] = own_mass[n] / oracle.mass[n];
  }
  free_metrics(unit, oracle, hindsight, out);
  return out;
}

}  // namespace kvsim
