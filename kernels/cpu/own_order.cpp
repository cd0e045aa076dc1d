// The curve in which every row has its own order: one row at a time, channels in the lanes.
#include "kernels/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

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

/// One row's tokens in its own order, with their weights.
struct OwnRow {
  std::vector<TokenIndex> order;
  std::vector<float> weight;
  std::vector<float> held;            // per count: kept weight
  std::vector<std::uint32_t> counts;  // clipped to what the row sees
  std::size_t row = 0;
};

/// Sums of the row's kept weights at every count, in blocks like those of the outputs.
void sum_weights(float tail, OwnRow& own) {
  float total = tail;
  float lost = 0.0f;
  float partial = 0.0f;
  std::size_t s = 0;
  for (std::size_t i = 0; s < own.counts.size(); ++i) {
    for (; s < own.counts.size() && own.counts[s] == i; ++s) own.held[s] = total + partial;
    if (i == own.order.size()) break;
    partial += own.weight[i];
    if ((i + 1) % kExactRun == 0) {
      const float wanted = partial - lost;
      const float next = total + wanted;
      lost = (next - total) - wanted;
      total = next;
      partial = 0.0f;
    }
  }
}

/// squares[s][lane] += squared differences of the channels column .. column + kChannels - 1 (as many as there
/// are).
void channel_chunk(const CurveInput& in, const OwnRow& own, std::size_t column,
                   float* HWY_RESTRICT padded_values, const CurveOutput& out, float* HWY_RESTRICT squares) {
  const FloatTag d;
  const std::size_t channels = std::min(kChannels, in.values.cols - column);
  HWY_ALIGN float exact[kChannels] = {};
  HWY_ALIGN float tail[kChannels] = {};
  for (std::size_t c = 0; c < channels; ++c) {
    exact[c] = in.exact(column + c, own.row);
    tail[c] = in.tail_output(column + c, own.row);
  }
  FloatVec total[kChannelVecs], lost[kChannelVecs], partial[kChannelVecs];
  for (std::size_t i = 0; i < kChannelVecs; ++i) {
    total[i] = hn::Load(d, tail + i * kFloatLanes);
    lost[i] = partial[i] = hn::Zero(d);
  }
  std::size_t done = 0;
  for (std::size_t s = 0; s < own.counts.size(); ++s) {
    for (; done < own.counts[s]; ++done) {
      const float* value = in.values.row(own.order[done]) + column;
      if (channels < kChannels) {
        std::copy_n(value, channels, padded_values);
        value = padded_values;
      }
      const FloatVec w = hn::Set(d, own.weight[done]);
      for (std::size_t i = 0; i < kChannelVecs; ++i) {
        partial[i] = fused(d, w, hn::LoadU(d, value + i * kFloatLanes), partial[i]);
      }
      if ((done + 1) % kExactRun == 0) {
        for (std::size_t i = 0; i < kChannelVecs; ++i) {
          add_compensated(partial[i], total[i], lost[i]);
          partial[i] = hn::Zero(d);
        }
      }
    }
    const FloatVec inverse = hn::Set(d, own.held[s] > 0.0f ? 1.0f / own.held[s] : 0.0f);
    HWY_ALIGN float difference[kChannels];
    for (std::size_t i = 0; i < kChannelVecs; ++i) {
      const FloatVec held = hn::Mul(hn::Add(total[i], partial[i]), inverse);
      const FloatVec delta = hn::Sub(held, hn::Load(d, exact + i * kFloatLanes));
      hn::Store(delta, d, difference + i * kFloatLanes);
    }
    float* at = squares + s * kSquareLanes;
    for (std::size_t c = 0; c < kChannels; c += kSquareLanes) {
      for (std::size_t i = 0; i < kSquareLanes; i += kFloatLanes) {
        const FloatVec delta = hn::Load(d, difference + c + i);
        hn::Store(fused(d, delta, delta, hn::Load(d, at + i)), d, at + i);
      }
    }
    if (out.delta != nullptr) {
      float* to = out.delta + s * out.delta_stride + column * in.exact.stride + own.row;
      for (std::size_t c = 0; c < channels; ++c) to[c * in.exact.stride] = difference[c];
    }
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
  HWY_ALIGN float padded_values[kChannels] = {};
  for (std::size_t c = 0; c < in.values.cols; c += kChannels) {
    channel_chunk(in, own, c, padded_values, out, squares.data());
  }
  float norm = 0.0f;
  for (std::size_t c = 0; c < in.values.cols; ++c)
    norm = std::fma(in.exact(c, own.row), in.exact(c, own.row), norm);
  norm = norm > 0.0f ? std::sqrt(norm) : 1.0f;
  for (std::size_t s = 0; s < own.counts.size(); ++s) {
    out.recall(s, column) = own.held[s];
    out.error(s, column) = own.held[s] < kRecallFloor ? std::numeric_limits<float>::quiet_NaN()
                                                      : std::sqrt(lane_total(squares.row(s))) / norm;
  }
}

template <typename Rank>
void own_order_path(const CurveInput& in, MatrixView<const Rank> ranks, std::size_t row_begin,
                    std::size_t row_end, const CurveOutput& out) {
  const std::size_t tokens = in.weights.rows;
  std::vector<OwnRow> strip(kRowPad);
  for (std::size_t first = row_begin; first < row_end; first += kRowPad) {
    const std::size_t rows = std::min(kRowPad, row_end - first);
    std::vector<std::size_t> seen(rows, 0);
    for (std::size_t r = 0; r < rows; ++r) {
      strip[r].order.resize(tokens);
      strip[r].weight.resize(tokens);
      strip[r].row = first + r;
    }
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t r = 0; r < rows; ++r) {
        const Rank rank = ranks(t, first + r);
        if (rank == std::numeric_limits<Rank>::max()) continue;
        strip[r].order[rank] = static_cast<TokenIndex>(t);
        strip[r].weight[rank] = in.weights(t, first + r);
        ++seen[r];
      }
    }
    for (std::size_t r = 0; r < rows; ++r) {
      OwnRow& own = strip[r];
      own.order.resize(seen[r]);
      own.weight.resize(seen[r]);
      own.counts.assign(in.counts.begin(), in.counts.end());
      own.held.assign(in.counts.size(), 0.0f);
      for (std::uint32_t& count : own.counts) count = std::min(count, static_cast<std::uint32_t>(seen[r]));
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
  KVSIM_CHECK(ranks.rows == in.weights.rows && row_end <= ranks.stride, "ranks are {} x {} for {} tokens",
              ranks.rows, ranks.stride, in.weights.rows);
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
