// Column sums of token-major weights, and the slow exact path for kept sets with hardly any mass.
#include "kernels/replay.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/exponential.h"
#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sums.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Rows are dealt to 32 sums whatever the vector width, which are then added in order.
inline constexpr std::size_t kSums = 32;

void column_sums_path(MatrixView<const float> weights, std::size_t row_begin, std::size_t row_end,
                      std::span<double> sum) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  constexpr std::size_t kLanes = HWY_LANES(double);
  constexpr std::size_t kVecs = kSums / kLanes;
  const std::size_t whole = row_begin + (row_end - row_begin) / kSums * kSums;
  for (std::size_t token = 0; token < weights.rows; ++token) {
    const float* w = weights.row(token);
    hn::Vec<decltype(d)> lanes[kVecs];
    for (std::size_t i = 0; i < kVecs; ++i) lanes[i] = hn::Zero(d);
    for (std::size_t r = row_begin; r < whole; r += kSums) {
      for (std::size_t i = 0; i < kVecs; ++i) {
        lanes[i] = hn::Add(lanes[i], hn::PromoteTo(d, hn::LoadU(df, w + r + i * kLanes)));
      }
    }
    HWY_ALIGN double total[kSums];
    for (std::size_t i = 0; i < kVecs; ++i) hn::Store(lanes[i], d, total + i * kLanes);
    for (std::size_t r = whole; r < row_end; ++r) total[r - whole] += static_cast<double>(w[r]);
    for (std::size_t half = kSums / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) total[i] += total[i + half];
    }
    sum[token] = total[0];
  }
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvsim {

HWY_EXPORT(column_sums_path);

void column_sums(MatrixView<const float> weights, std::size_t row_begin, std::size_t row_end,
                 std::span<double> sum) {
  KVSIM_CHECK(row_begin <= row_end && row_end <= weights.stride, "rows {}..{} of a stride of {}", row_begin,
              row_end, weights.stride);
  KVSIM_CHECK(sum.size() >= weights.rows, "{} sums for {} tokens", sum.size(), weights.rows);
  HWY_DYNAMIC_DISPATCH(column_sums_path)(weights, row_begin, row_end, sum);
}

void subset_output(MatrixView<const float> keys, MatrixView<const float> values, std::span<const float> query,
                   const LogitRule& rule, std::span<const TokenIndex> held, std::span<double> output) {
  KVSIM_CHECK(query.size() == keys.cols && output.size() == values.cols, "query {} of {}, output {} of {}",
              query.size(), keys.cols, output.size(), values.cols);
  std::vector<double> logits(held.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < held.size(); ++i) {
    const float* key = keys.row(held[i]);
    double dot = 0.0;
    for (std::size_t c = 0; c < keys.cols; ++c)
      dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
    double logit = rule.scale * dot;
    if (rule.softcap > 0.0) logit = rule.softcap * tanh_plain(logit / rule.softcap);
    logits[i] = logit;
    if (i == 0 || logit > largest) largest = logit;
  }
  std::fill(output.begin(), output.end(), 0.0);
  double total = 0.0;
  for (std::size_t i = 0; i < held.size(); ++i) {
    const double weight = exp_plain(logits[i] - largest);
    const float* value = values.row(held[i]);
    total += weight;
    for (std::size_t c = 0; c < values.cols; ++c) output[c] += weight * static_cast<double>(value[c]);
  }
  if (total > 0.0) {
    for (double& value : output) value /= total;
  }
}

}  // namespace kvsim
#endif  // HWY_ONCE
