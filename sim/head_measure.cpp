// Adds up what is measured of one variant on one KV head.
#include "sim/head_measure.h"

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <memory>
#include <utility>

namespace kvsim {
namespace {

/// Counts of bins, dense over the positive normal floats: the index is a float's exponent and first seven bits of mantissa,
/// the very bits that make a bin of Distribution. Neighbours take turns at two tables and four bitmaps: values in one place
/// follow each other often, and each would wait for the one before. Empty between uses.
class DenseBins {
 public:
  void add(float value, std::size_t turn) {
    const std::uint32_t key = std::bit_cast<std::uint32_t>(value) >> kDropped;
    ++count_[turn % kTables][key];
    used_[turn % kBitmaps][key / 64] |= std::uint64_t{1} << key % 64;
  }
  /// Moves the counts of `normal` values to `bins`, ascending.
  void take(float least, float most, std::vector<std::pair<std::int32_t, std::uint64_t>>& bins) {
    const std::size_t first = (std::bit_cast<std::uint32_t>(least) >> kDropped) / 64;
    const std::size_t last = (std::bit_cast<std::uint32_t>(most) >> kDropped) / 64;
    found_.clear();
    for (std::size_t word = first; word <= last; ++word) {
      std::uint64_t used = 0;
      for (auto& bitmap : used_) used |= std::exchange(bitmap[word], 0);
      for (; used != 0; used &= used - 1) {
        const auto key = static_cast<std::uint32_t>(word * 64 + static_cast<std::size_t>(std::countr_zero(used)));
        std::uint64_t many = 0;
        for (auto& table : count_) many += std::exchange(table[key], 0u);
        found_.emplace_back(kBinOfKeyZero + static_cast<std::int32_t>(key), many);
      }
    }
    bins.insert(bins.end(), found_.begin(), found_.end());
  }

 private:
  static constexpr unsigned kDropped = 16;
  static constexpr std::size_t kKeys = std::size_t{1} << (31 - kDropped), kTables = 2, kBitmaps = 4;
  static constexpr std::int32_t kBinOfKeyZero = (1023 - 127) << 7;  // the key has the float's exponent, the bin the double's
  std::array<std::array<std::uint32_t, kKeys>, kTables> count_{};
  std::array<std::array<std::uint64_t, kKeys / 64>, kBitmaps> used_{};
  std::vector<std::pair<std::int32_t, std::uint64_t>> found_;
};

/// `count` values from `least` to `most`.
void include(Distribution& distribution, double least, double most, std::uint64_t count) {
  distribution.min = distribution.count == 0 ? least : std::min(distribution.min, least);
  distribution.max = distribution.count == 0 ? most : std::max(distribution.max, most);
  distribution.count += count;
}

}  // namespace

HeadMeasure::HeadMeasure(std::size_t budgets, std::size_t group, std::size_t steps, bool keep_steps)
    : group_(group), steps_(steps), distributions_(budgets * kStepMetrics), readable_sum_(budgets, 0.0),
      readable_most_(budgets, 0.0), resident_share_(budgets, 1.0) {
  if (keep_steps) step_sums_.assign(budgets * kStepMetrics * steps, 0.0f);
}

void HeadMeasure::add(StepMetric metric, std::size_t budget, std::span<const float> values, std::span<const std::uint32_t> steps) {
  Distribution& distribution = distributions_[place(metric, budget)];
  // Same result as Distribution::add one by one.
  const bool more = !distribution.bins.empty();
  constexpr float kLeastNormal = std::numeric_limits<float>::min();
  thread_local const auto kept = std::make_unique<DenseBins>();
  DenseBins& dense = *kept;
  float least = std::numeric_limits<float>::infinity(), most = 0.0f;
  std::uint64_t zeros = 0, normal = 0;
  double sum = distribution.sum;
  for (const float value : values) {
    if (value >= kLeastNormal) {
      least = std::min(least, value);
      most = std::max(most, value);
      sum += static_cast<double>(value);
      dense.add(value, normal++);
    } else if (value == 0.0f) {
      ++zeros;
    } else {  // NaN and denormals
      distribution.sum = sum;
      distribution.add(value);
      sum = distribution.sum;
    }
  }
  distribution.sum = sum;
  if (zeros > 0) {
    include(distribution, 0.0, 0.0, zeros);
    distribution.bins.emplace_back(0, zeros);
  }
  if (normal > 0) {
    include(distribution, static_cast<double>(least), static_cast<double>(most), normal);
    dense.take(least, most, distribution.bins);
  }
  if (more) distribution.finish();  // one entry per bin, however many chunks of steps there are
  if (step_sums_.empty()) return;
  float* sums = step_sums_.data() + place(metric, budget) * steps_;
  for (std::size_t i = 0; i < values.size(); ++i) sums[steps[i]] += values[i];
}

void HeadMeasure::add_readable(std::size_t budget, std::uint64_t tokens, std::uint32_t most) {
  readable_sum_[budget] += static_cast<double>(tokens);  // whole numbers below 2^53: exact in any order
  readable_most_[budget] = std::max(readable_most_[budget], static_cast<double>(most));
}

void HeadMeasure::finish() {
  for (Distribution& distribution : distributions_) distribution.finish();
  for (float& sum : step_sums_) sum /= static_cast<float>(group_);
}

double HeadMeasure::mean(StepMetric metric, std::size_t budget) const {
  const Distribution& d = distribution(metric, budget);
  return d.count == 0 ? std::numeric_limits<double>::quiet_NaN() : d.sum / static_cast<double>(d.count);
}

std::span<const float> HeadMeasure::steps(StepMetric metric, std::size_t budget) const {
  return std::span(step_sums_).subspan(place(metric, budget) * steps_, steps_);
}

}  // namespace kvsim
