// Intervals by resampling traces.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace kvsim {

/// A mean with its 95% interval; both ends NaN where there is no interval (fewer than two values).
struct Estimate {
  double mean = 0, low = 0, high = 0;
  std::size_t count = 0;
};

/// Percentile bootstrap (Efron, 1979) of the mean: the 2.5% and 97.5% points of the means of `resamples`
/// samples drawn with replacement. Draws depend on (seed, number of values) only, so that equal inputs give
/// equal intervals and cells of one report are resampled alike.
class Bootstrap {
 public:
  explicit Bootstrap(std::uint64_t seed, std::uint32_t resamples = 2000)
      : seed_(seed), resamples_(resamples) {}
  Estimate mean(std::span<const double> values);
  std::uint32_t resamples() const { return resamples_; }

 private:
  const std::vector<std::uint32_t>& draws(std::size_t values);

  std::uint64_t seed_;
  std::uint32_t resamples_;
  std::map<std::size_t, std::vector<std::uint32_t>> draws_;  // per number of values: [resamples][values]
};

}  // namespace kvsim
