// Intervals by resampling traces.
#include "analysis/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/philox.h"

namespace kvsim {
namespace {

// "boot" in ASCII: keeps these draws apart from every other use of the seed.
constexpr std::uint64_t kPurpose = 0x626F6F74;

/// The value at share q of a sorted list, between neighbours linearly.
double point(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

const std::vector<std::uint32_t>& Bootstrap::draws(std::size_t values) {
  auto& found = draws_[values];
  if (!found.empty()) return found;
  Philox random(seed_, stream_of(kPurpose, values));
  found.resize(resamples_ * values);
  for (std::uint32_t& draw : found) draw = random.next_below(static_cast<std::uint32_t>(values));
  return found;
}

Estimate Bootstrap::mean(std::span<const double> values) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  Estimate estimate{kNone, kNone, kNone, values.size()};
  if (values.empty()) return estimate;
  const auto n = static_cast<double>(values.size());
  double sum = 0;
  for (const double value : values) sum += value;
  estimate.mean = sum / n;
  if (values.size() < 2) return estimate;
  const auto& drawn = draws(values.size());
  std::vector<double> means(resamples_);
  for (std::size_t r = 0; r < resamples_; ++r) {
    double total = 0;
    for (std::size_t i = 0; i < values.size(); ++i) total += values[drawn[r * values.size() + i]];
    means[r] = total / n;
  }
  std::sort(means.begin(), means.end());
  estimate.low = point(means, 0.025);
  estimate.high = point(means, 0.975);
  return estimate;
}

}  // namespace kvsim
