// Where page policies take random numbers from: Philox in runs, a script in tests.
#pragma once

#include <cstdint>

#include "kernels/philox.h"

namespace kvsim {

/// Separate streams for separate uses, so that noise and evictions never share numbers.
enum class RandomPurpose : std::uint8_t { eviction = 1, noise = 2, sampling = 3, combiner = 4 };

class RandomSource {
 public:
  virtual ~RandomSource() = default;
  /// Uniform in {0, ..., bound - 1}; bound > 0.
  virtual std::uint32_t below(std::uint32_t bound) = 0;
  /// Uniform in [0, 1).
  virtual double unit() = 0;
  /// True when below(n) means the n-th smallest slot of a set: independent of how sets are stored, for
  /// comparison with other programs. O(k) a draw.
  virtual bool ascending() const { return false; }
};

class PhiloxSource final : public RandomSource {
 public:
  PhiloxSource(std::uint64_t seed, std::uint64_t stream) : philox_(seed, stream) {}
  std::uint32_t below(std::uint32_t bound) override { return philox_.next_below(bound); }
  double unit() override { return philox_.next_double(); }

 private:
  Philox philox_;
};

}  // namespace kvsim
