// Joins many distributions in one table of bins.
#include "sim/distribution_sum.h"

#include <algorithm>
#include <bit>

namespace kvsim {

void DistributionSum::add(const Distribution& other) {
  if (other.count == 0) return;
  add_exact(other.count, other.sum, other.min, other.max);
  for (const auto& [bin, many] : other.bins) add_bin(bin, many);
}

void DistributionSum::add_exact(std::uint64_t count, double sum, double min, double max) {
  exact_.min = exact_.count == 0 ? min : std::min(exact_.min, min);
  exact_.max = exact_.count == 0 ? max : std::max(exact_.max, max);
  exact_.sum += sum;
  exact_.count += count;
}

void DistributionSum::add_other(std::int32_t bin, std::uint64_t many) {
  if (bin == 0) {
    zeros_ += many;
  } else {
    others_.emplace_back(bin, many);
  }
}

void DistributionSum::take_word(std::size_t word, Distribution& all) {
  for (; used_[word] != 0; used_[word] &= used_[word] - 1) {
    const std::size_t place = word * 64 + static_cast<std::size_t>(std::countr_zero(used_[word]));
    all.bins.emplace_back(kFirstBin + static_cast<std::int32_t>(place), std::exchange(count_[place], 0));
  }
}

Distribution DistributionSum::take() {
  Distribution all = std::exchange(exact_, {});
  all.bins.reserve(distinct_ + others_.size() + 1);
  distinct_ = 0;
  if (zeros_ > 0) all.bins.emplace_back(0, std::exchange(zeros_, 0));
  for (std::size_t i = 0; i < used_words_.size(); ++i) {
    for (; used_words_[i] != 0; used_words_[i] &= used_words_[i] - 1)
      take_word(i * 64 + static_cast<std::size_t>(std::countr_zero(used_words_[i])), all);
  }
  if (others_.empty()) return all;
  all.bins.insert(all.bins.end(), others_.begin(), others_.end());
  others_.clear();
  all.finish();  // sorts and joins
  return all;
}

}  // namespace kvsim
