// Distributions of metric values: fixed bins, exact joining, quantiles.
#include "sim/results.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/error.h"

namespace kvsim {
namespace {

// A bin holds the doubles of one sign that share exponent and the first seven bits of the mantissa, so it is
// at most 1/128 of its lower edge wide, and finding it takes no logarithm whose last bit could differ between
// machines.
constexpr int kDroppedBits = 52 - 7;
constexpr std::size_t kCompactFrom = 1024;

using Bins = std::vector<std::pair<std::int32_t, std::uint64_t>>;

void join_neighbours(Bins& bins) {
  std::size_t used = 0;
  for (const auto& bin : bins) {
    if (used > 0 && bins[used - 1].first == bin.first) {
      bins[used - 1].second += bin.second;
    } else {
      bins[used++] = bin;
    }
  }
  bins.resize(used);
}

void sort_and_join(Bins& bins) {
  const auto out_of_order = [](const auto& a, const auto& b) { return a.first >= b.first; };
  if (std::adjacent_find(bins.begin(), bins.end(), out_of_order) == bins.end()) return;
  std::sort(bins.begin(), bins.end());
  join_neighbours(bins);
}

}  // namespace

std::int32_t Distribution::bin_of(double value) {
  const double size = std::fabs(value);
  if (size < std::numeric_limits<double>::min()) return 0;
  const auto bin = static_cast<std::int32_t>(std::bit_cast<std::uint64_t>(size) >> kDroppedBits);
  return value < 0 ? -bin : bin;
}

double Distribution::bin_value(std::int32_t bin) {
  if (bin == 0) return 0.0;
  const auto size = static_cast<std::uint64_t>(bin < 0 ? -static_cast<std::int64_t>(bin) : bin);
  const double edge = std::bit_cast<double>(size << kDroppedBits);
  return bin < 0 ? -edge : edge;
}

void Distribution::add(double value) {
  if (std::isnan(value)) return;
  min = count == 0 ? value : std::min(min, value);
  max = count == 0 ? value : std::max(max, value);
  sum += value;
  ++count;
  const std::int32_t bin = bin_of(value);
  if (!bins.empty() && bins.back().first == bin) {
    ++bins.back().second;
    return;
  }
  // Joining whenever the list would have to grow keeps it within twice the number of distinct bins.
  if (bins.size() >= kCompactFrom && bins.size() == bins.capacity()) {
    sort_and_join(bins);
    if (bins.size() * 2 > bins.capacity()) bins.reserve(bins.capacity() * 2);
  }
  bins.emplace_back(bin, 1);
}

void Distribution::finish() {
  sort_and_join(bins);
  bins.shrink_to_fit();
}

void Distribution::merge(const Distribution& other) {
  if (other.count == 0) return;
  min = count == 0 ? other.min : std::min(min, other.min);
  max = count == 0 ? other.max : std::max(max, other.max);
  sum += other.sum;
  count += other.count;
  if (bins.empty()) {
    bins = other.bins;
    return;
  }
  thread_local Bins both;  // its memory serves merge after merge
  both.resize(bins.size() + other.bins.size());
  const auto* a = bins.data();
  const auto* b = other.bins.data();
  const auto* const a_end = a + bins.size();
  const auto* const b_end = b + other.bins.size();
  std::size_t used = 0;
  while (a != a_end && b != b_end) {
    // Without branches, which interleaved bins would mispredict.
    const bool take_a = a->first <= b->first;
    const bool take_b = b->first <= a->first;
    both[used++] = {take_a ? a->first : b->first, (take_a ? a->second : 0) + (take_b ? b->second : 0)};
    a += take_a;
    b += take_b;
  }
  for (; a != a_end; ++a) both[used++] = *a;
  for (; b != b_end; ++b) both[used++] = *b;
  bins.assign(both.begin(), both.begin() + static_cast<std::ptrdiff_t>(used));
}

double Distribution::quantile(double q) const {
  if (count == 0) return std::numeric_limits<double>::quiet_NaN();
  KVSIM_CHECK(q >= 0 && q <= 1, "quantile {}", q);
  if (q == 0) return min;
  if (q == 1) return max;
  // The smallest value that at least the share q does not exceed; the factor undoes the rounding of q * count
  // upwards.
  const double wanted = std::ceil(q * static_cast<double>(count) * (1 - 1e-14));
  const auto rank = std::clamp<std::uint64_t>(static_cast<std::uint64_t>(wanted), 1, count);
  std::uint64_t seen = 0;
  for (const auto& [bin, many] : bins) {
    seen += many;
    if (seen >= rank) return std::clamp(bin_value(bin), min, max);
  }
  throw InternalError("a distribution whose bins hold fewer values than its count");
}

}  // namespace kvsim
