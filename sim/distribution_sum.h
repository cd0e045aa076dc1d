// Joins many distributions in one table of bins.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "sim/results.h"

namespace kvsim {

/// Same result as Distribution::merge one after the other, at a cost that does not grow with the bins joined
/// so far: bins of positive normal floats are counted in a table, others, which hardly occur, in a list.
/// Empty between uses.
class DistributionSum {
 public:
  void add(const Distribution& other);
  /// The same piece by piece: what is exact of a distribution of `count` > 0 values, then its bins.
  void add_exact(std::uint64_t count, double sum, double min, double max);
  void add_bin(std::int32_t bin, std::uint64_t many) {
    const auto place = static_cast<std::uint32_t>(bin - kFirstBin);
    if (place >= kBins) return add_other(bin, many);
    distinct_ += count_[place] == 0 ? 1 : 0;
    count_[place] += many;
    used_[place / 64] |= std::uint64_t{1} << place % 64;
    used_words_[place / 4096] |= std::uint64_t{1} << place / 64 % 64;
  }
  /// The sum of what was added; afterwards nothing is.
  Distribution take();

 private:
  static constexpr std::int32_t kFirstBin = (1023 - 126) << 7;  // of the smallest normal float
  static constexpr std::uint32_t kBins = 254 << 7;

  void add_other(std::int32_t bin, std::uint64_t many);
  void take_word(std::size_t word, Distribution& all);

  Distribution exact_;  // count, sum, extremes
  std::uint64_t zeros_ = 0;
  std::vector<std::pair<std::int32_t, std::uint64_t>> others_;
  std::vector<std::uint64_t> count_ = std::vector<std::uint64_t>(kBins, 0);
  std::vector<std::uint64_t> used_ = std::vector<std::uint64_t>(kBins / 64, 0);  // bins that count
  std::array<std::uint64_t, kBins / 4096 + 1> used_words_{};  // words of used_ that are not 0
  std::size_t distinct_ = 0;
};

}  // namespace kvsim
