// What is added up of one variant on one KV head: distributions and means of the metrics that every step has.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sim/results.h"

namespace kvsim {

/// Metrics that exist for every (query head, step), in the order of all_metrics().
enum class StepMetric : std::uint8_t { output_error, attention_recall, query_consistency, miss_rate, miss_rate_50, miss_rate_99, logit_error };
inline constexpr std::size_t kStepMetrics = 7;

/// Sums of one variant on one KV head, collected chunk of steps after chunk of steps. Values are added step block by
/// step block, then by query head, then by step, so that the bits do not depend on how steps were cut into chunks.
class HeadMeasure {
 public:
  HeadMeasure() = default;
  /// `keep_steps`: also keep every step's mean over the query heads.
  HeadMeasure(std::size_t budgets, std::size_t group, std::size_t steps, bool keep_steps);

  /// Adds values in the order given; values[i] belongs to step steps[i]. NaN = undefined.
  void add(StepMetric metric, std::size_t budget, std::span<const float> values, std::span<const std::uint32_t> steps);
  /// Closes the bins; called once after the last step.
  void finish();

  const Distribution& distribution(StepMetric metric, std::size_t budget) const { return distributions_[place(metric, budget)]; }
  /// Mean over steps and query heads, NaN where nothing was defined.
  double mean(StepMetric metric, std::size_t budget) const;
  std::span<const float> steps(StepMetric metric, std::size_t budget) const;
  bool keeps_steps() const { return !step_sums_.empty(); }
  /// Tokens that steps could read, summed over heads and steps, and the most of one.
  void add_readable(std::size_t budget, std::uint64_t tokens, std::uint32_t most);
  /// Share of the kept entries' bytes that a transformation leaves, mean over the units of the head; 1 unless set.
  void set_resident_share(std::size_t budget, double share) { resident_share_[budget] = share; }
  double resident_share(std::size_t budget) const { return resident_share_[budget]; }
  double mean_readable(std::size_t budget) const { return readable_sum_[budget] / static_cast<double>(group_ * steps_); }
  double most_readable(std::size_t budget) const { return readable_most_[budget]; }

 private:
  std::size_t place(StepMetric metric, std::size_t budget) const {
    return budget * kStepMetrics + static_cast<std::size_t>(metric);
  }
  std::size_t group_ = 1, steps_ = 0;
  std::vector<Distribution> distributions_;
  std::vector<double> readable_sum_, readable_most_, resident_share_;
  std::vector<float> step_sums_;  // [budgets * metrics][steps], divided by the group in finish()
};

}  // namespace kvsim
