// The curve in which every row has its own order: one row at a time, channels in the lanes.
#include "kernels/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/strip_stride.h"
#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/own_order.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

#include "kernels/cpu/product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

/// Channels of one register chunk, on every target: squared differences are summed in as many lanes, so that
/// bits do not depend on the vector width.
inline constexpr std::size_t kChannels = 64;
inline constexpr std::size_t kChannelVecs = kChannels / kFloatLanes;
inline constexpr std::size_t kSquareLanes = 16;

/// A weight and its token, as they follow in a row's own order.
struct Ranked {
  float weight;
  TokenIndex token;
};

/// One row's tokens in its own order.
struct OwnRow {
  std::vector<Ranked> order;
  std::size_t seen = 0;               // tokens that the row sees
  std::vector<std::uint32_t> counts;  // clipped to those
  std::vector<float> held;            // per count: kept weight
  std::vector<float> inverse;         // 1 / kept weight, or 0
  std::size_t row = 0;
};

/// Weights kept at every count, summed in runs like the outputs.
struct WeightSum {
  float total;
  float lost = 0.0f;
  float partial = 0.0f;
  HWY_INLINE void end_run() {
    const float wanted = partial - lost;
    const float next = total + wanted;
    lost = (next - total) - wanted;
    total = next;
    partial = 0.0f;
  }
};

void sum_weights(float tail, OwnRow& own) {
  WeightSum sum{tail};
  std::size_t done = 0;
  for (std::size_t s = 0; s < own.counts.size(); ++s) {
    for (; done < own.counts[s];) {
      sum.partial += own.order[done].weight;
      if (++done % kExactRun == 0) sum.end_run();
    }
    own.held[s] = sum.total + sum.partial;
    own.inverse[s] = own.held[s] > 0.0f ? 1.0f / own.held[s] : 0.0f;
  }
}

/// Adds the tokens order[begin .. end) to the sums, a whole run or a part of one.
template <bool kWhole>
HWY_INLINE void add_ranked(const CurveInput& in, const Ranked* HWY_RESTRICT order, std::size_t begin,
                           std::size_t end, std::size_t ahead_end, std::size_t column, std::size_t channels,
                           float* HWY_RESTRICT padded_values, FloatVec (&partial)[kChannelVecs]) {
  const FloatTag d;
  constexpr std::size_t kAhead = 16;  // tokens whose values are fetched early
  constexpr std::size_t kLine = 64 / sizeof(float);
  for (std::size_t t = begin; t < end; ++t) {
    if (t + kAhead < ahead_end) {
      const float* ahead = in.values.row(order[t + kAhead].token) + column;
      for (std::size_t i = 0; i < channels; i += kLine) __builtin_prefetch(ahead + i);
    }
    const float* value = in.values.row(order[t].token) + column;
    if (!kWhole) {
      std::copy_n(value, channels, padded_values);
      value = padded_values;
    }
    const FloatVec w = hn::Set(d, order[t].weight);
#pragma GCC unroll 64
    for (std::size_t i = 0; i < kChannelVecs; ++i) {
      partial[i] = fused(d, w, hn::LoadU(d, value + i * kFloatLanes), partial[i]);
    }
  }
}

/// difference[c] = held output - exact output at one snapshot; squares are added lane by lane.
HWY_INLINE void compare_channels(const FloatVec (&total)[kChannelVecs],
                                 const FloatVec (&partial)[kChannelVecs], float inverse,
                                 const float* HWY_RESTRICT exact, float* HWY_RESTRICT difference,
                                 float* HWY_RESTRICT squares) {
  const FloatTag d;
#pragma GCC unroll 64
  for (std::size_t i = 0; i < kChannelVecs; ++i) {
    const FloatVec held = hn::Mul(hn::Add(total[i], partial[i]), hn::Set(d, inverse));
    hn::Store(hn::Sub(held, hn::Load(d, exact + i * kFloatLanes)), d, difference + i * kFloatLanes);
  }
  for (std::size_t c = 0; c < kChannels; c += kSquareLanes) {
    for (std::size_t i = 0; i < kSquareLanes; i += kFloatLanes) {
      const FloatVec delta = hn::Load(d, difference + c + i);
      hn::Store(fused(d, delta, delta, hn::Load(d, squares + i)), d, squares + i);
    }
  }
}

/// squares[s][lane] += squared differences of the channels column .. column + kChannels - 1 (as many as there
/// are).
template <bool kWhole>
HWY_NOINLINE void channel_chunk(const CurveInput& in, const OwnRow& own, std::size_t column,
                                const CurveOutput& out, float* HWY_RESTRICT squares) {
  const FloatTag d;
  const std::size_t channels = std::min(kChannels, in.values.cols - column);
  HWY_ALIGN float exact[kChannels] = {};
  HWY_ALIGN float tail[kChannels] = {};
  HWY_ALIGN float padded_values[kChannels] = {};
  HWY_ALIGN float difference[kChannels];
  for (std::size_t c = 0; c < channels; ++c) {
    exact[c] = in.exact(column + c, own.row);
    tail[c] = in.tail_output(column + c, own.row);
  }
  FloatVec total[kChannelVecs], lost[kChannelVecs], partial[kChannelVecs];
#pragma GCC unroll 64
  for (std::size_t i = 0; i < kChannelVecs; ++i) {
    total[i] = hn::Load(d, tail + i * kFloatLanes);
    lost[i] = partial[i] = hn::Zero(d);
  }
  std::size_t done = 0;
  for (std::size_t s = 0; s < own.counts.size(); ++s) {
    while (done < own.counts[s]) {
      const std::size_t run_end = done - done % kExactRun + kExactRun;
      const std::size_t end = std::min<std::size_t>(run_end, own.counts[s]);
      add_ranked<kWhole>(in, own.order.data(), done, end, own.seen, column, channels, padded_values, partial);
      done = end;
      if (end != run_end) continue;
#pragma GCC unroll 64
      for (std::size_t i = 0; i < kChannelVecs; ++i) {
        add_compensated(partial[i], total[i], lost[i]);
        partial[i] = hn::Zero(d);
      }
    }
    compare_channels(total, partial, own.inverse[s], exact, difference, squares + s * kSquareLanes);
    if (out.delta == nullptr) continue;
    float* to = out.delta + s * out.delta_stride + column * in.exact.stride + own.row;
    for (std::size_t c = 0; c < channels; ++c) to[c * in.exact.stride] = difference[c];
  }
}

float lane_total(const float* lanes) {
  float sum[kSquareLanes];
  std::copy_n(lanes, kSquareLanes, sum);
  for (std::size_t half = kSquareLanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

void own_row_curve(const CurveInput& in, OwnRow& own, std::size_t column, const CurveOutput& out) {
  sum_weights(in.tail_weight[own.row], own);
  Matrix<float> squares(own.counts.size(), kSquareLanes);
  std::size_t c = 0;
  for (; c + kChannels <= in.values.cols; c += kChannels)
    channel_chunk<true>(in, own, c, out, squares.data());
  if (c < in.values.cols) channel_chunk<false>(in, own, c, out, squares.data());
  float norm = 0.0f;
  for (c = 0; c < in.values.cols; ++c) norm = std::fma(in.exact(c, own.row), in.exact(c, own.row), norm);
  norm = norm > 0.0f ? std::sqrt(norm) : 1.0f;
  for (std::size_t s = 0; s < own.counts.size(); ++s) {
    out.recall(s, column) = own.held[s];
    out.error(s, column) = own.held[s] < kRecallFloor ? std::numeric_limits<float>::quiet_NaN()
                                                      : std::sqrt(lane_total(squares.row(s))) / norm;
  }
}

/// Rows that are read out of the token-major matrices together; padding rows come along.
template <typename Rank>
struct OwnStrip {
  explicit OwnStrip(std::size_t tokens)
      : weights(kRowPad, strip_stride<float>(tokens)), ranks(kRowPad, strip_stride<Rank>(tokens)) {}
  void load(const CurveInput& in, MatrixView<const Rank> from, std::size_t first) {
    float* weight = weights.data();
    Rank* rank = ranks.data();
    const std::size_t weight_stride = weights.stride();
    const std::size_t rank_stride = ranks.stride();
    for (std::size_t t = 0; t < in.weights.rows; ++t) {
      const float* w = in.weights.row(t) + first;
      const Rank* k = from.row(t) + first;
      constexpr std::size_t kFetchAhead = 24;  // tokens: each stands in another line
      if (t + kFetchAhead < in.weights.rows) {
        __builtin_prefetch(in.weights.row(t + kFetchAhead) + first);
        __builtin_prefetch(from.row(t + kFetchAhead) + first);
      }
#pragma GCC unroll 16
      for (std::size_t r = 0; r < kRowPad; ++r) weight[r * weight_stride + t] = w[r];
#pragma GCC unroll 16
      for (std::size_t r = 0; r < kRowPad; ++r) rank[r * rank_stride + t] = k[r];
    }
  }
  /// Tokens of row r to their places; hidden ones to the end, where nobody reads.
  void order(std::size_t r, std::size_t tokens, OwnRow& own) const {
    const float* HWY_RESTRICT weight = weights.row(r);
    const Rank* HWY_RESTRICT rank = ranks.row(r);
    own.order.resize(tokens + 1);
    Ranked* HWY_RESTRICT order = own.order.data();
    std::size_t hidden = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::size_t place = rank[t];
      hidden += place > tokens ? 1 : 0;
      place = place > tokens ? tokens : place;
      asm volatile("" : "+r"(place));  // keeps the compiler from scatter instructions, which are slower here
      order[place] = {weight[t], static_cast<TokenIndex>(t)};
    }
    own.seen = tokens - hidden;
  }
  Matrix<float> weights;
  Matrix<Rank> ranks;
};

template <typename Rank>
void own_order_path(const CurveInput& in, MatrixView<const Rank> ranks, std::size_t row_begin,
                    std::size_t row_end, const CurveOutput& out) {
  OwnStrip<Rank> strip(in.weights.rows);
  OwnRow own;
  own.held.resize(in.counts.size());
  own.inverse.resize(in.counts.size());
  for (std::size_t first = row_begin; first < row_end; first += kRowPad) {
    const std::size_t rows = std::min(kRowPad, row_end - first);
    strip.load(in, ranks, first);
    for (std::size_t r = 0; r < rows; ++r) {
      strip.order(r, in.weights.rows, own);
      own.row = first + r;
      own.counts.assign(in.counts.begin(), in.counts.end());
      for (std::uint32_t& count : own.counts) count = std::min(count, static_cast<std::uint32_t>(own.seen));
      own_row_curve(in, own, own.row - row_begin, out);
    }
  }
}

void own_order_16(const CurveInput& in, MatrixView<const std::uint16_t> ranks, std::size_t row_begin,
                  std::size_t row_end, const CurveOutput& out) {
  own_order_path<std::uint16_t>(in, ranks, row_begin, row_end, out);
}
void own_order_32(const CurveInput& in, MatrixView<const std::uint32_t> ranks, std::size_t row_begin,
                  std::size_t row_end, const CurveOutput& out) {
  own_order_path<std::uint32_t>(in, ranks, row_begin, row_end, out);
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/curve_checks.h"

namespace kvsim {

HWY_EXPORT(own_order_16);
HWY_EXPORT(own_order_32);

template <typename Rank>
void own_order_curve(const CurveInput& in, MatrixView<const Rank> ranks, std::size_t row_begin,
                     std::size_t row_end, const CurveOutput& out) {
  check_curve(in, row_begin, row_end, out);
  KVSIM_CHECK(ranks.rows == in.weights.rows && row_end <= ranks.stride && ranks.stride % kRowPad == 0,
              "ranks are {} x {} for {} tokens", ranks.rows, ranks.stride, in.weights.rows);
  if constexpr (sizeof(Rank) == 2) {
    HWY_DYNAMIC_DISPATCH(own_order_16)(in, ranks, row_begin, row_end, out);
  } else {
    HWY_DYNAMIC_DISPATCH(own_order_32)(in, ranks, row_begin, row_end, out);
  }
}

template void own_order_curve(const CurveInput&, MatrixView<const std::uint16_t>, std::size_t, std::size_t,
                              const CurveOutput&);
template void own_order_curve(const CurveInput&, MatrixView<const std::uint32_t>, std::size_t, std::size_t,
                              const CurveOutput&);

}  // namespace kvsim
#endif  // HWY_ONCE
