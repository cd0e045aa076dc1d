// The product of weights and values that all outputs share: packed blocks of tokens, register tiles of rows x
// columns.
//
// A run of consecutive ranks is summed from zero in registers and then added to the running total (the
// master) with Kahan's compensation. A plain float sum would lose every weight below half a unit of a heavy
// one, which peaky attention is full of; this way only the rest of one run can be lost. Runs start at fixed
// ranks, so the bits do not depend on where snapshots are taken.

#if defined(KVSIM_KERNELS_CPU_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSIM_KERNELS_CPU_PRODUCT_INL_H_
#undef KVSIM_KERNELS_CPU_PRODUCT_INL_H_
#else
#define KVSIM_KERNELS_CPU_PRODUCT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/lanes-inl.h"
#include "kernels/replay.h"

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

using FloatTag = hn::ScalableTag<float>;
using FloatVec = hn::Vec<FloatTag>;

inline constexpr std::size_t kFloatLanes = HWY_LANES(float);
inline constexpr std::size_t kTokenBlock =
    128;  // tokens packed at once: 24 KiB of weights, in the first-level cache
inline constexpr std::size_t kCurveRun = 64;  // tokens summed from zero in a curve
inline constexpr std::size_t kExactRun = 16;  // and in exact outputs, which every error refers to
// 3 vectors x 8 columns fill 24 of AVX-512's 32 registers with sums, 3 x 4 fill 12 of AVX2's 16: with three
// weights and one broadcast value nothing spills, and each loaded vector serves eight (four) multiply-adds.
inline constexpr std::size_t kTileVecs = 3;
inline constexpr std::size_t kGroup = HWY_MAX_BYTES >= 64 ? 8 : 4;

/// Rows that a pass works on together.
struct RowTile {
  std::size_t first = 0;   // absolute row, row_begin + a multiple of kRowTile
  std::size_t rows = 0;    // real rows, at most kRowTile
  std::size_t padded = 0;  // rows rounded up to kRowPad
};

HWY_INLINE RowTile row_tile(std::size_t row, std::size_t row_end) {
  const std::size_t rows = std::min(kRowTile, row_end - row);
  return {row, rows, round_up(rows, kRowPad)};
}

/// Totals stand in the order in which registers hold them, so that the kernels' addresses are constants:
/// column groups, then strips of up to kTileVecs vectors, then the group's columns. This is the place of
/// (column, row of the tile).
HWY_INLINE std::size_t tile_place(std::size_t column, std::size_t row, std::size_t padded) {
  const std::size_t vecs = padded / kFloatLanes;
  const std::size_t vec = row / kFloatLanes;
  const std::size_t strip = vec / kTileVecs * kTileVecs;
  const std::size_t width = std::min(kTileVecs, vecs - strip);
  const std::size_t group = column / kGroup;
  return ((group * vecs + strip) * kGroup + column % kGroup * width + (vec - strip)) * kFloatLanes +
         row % kFloatLanes;
}

/// Where the tokens of a pass stand: order[i], or first + i where there is no order.
struct TokenList {
  const TokenIndex* order = nullptr;
  std::size_t first = 0;
  HWY_INLINE std::size_t operator[](std::size_t i) const { return order != nullptr ? order[i] : first + i; }
};

/// total += sum with Kahan's compensation: `lost` is what the last addition could not hold.
template <class V>
HWY_INLINE void add_compensated(V sum, V& total, V& lost) {
  const V wanted = hn::Sub(sum, lost);
  const V next = hn::Add(total, wanted);
  lost = hn::Sub(hn::Sub(next, total), wanted);
  total = next;
}

/// Copies the values of `count` tokens from `begin` on to [column group][token][kGroup], missing columns 0.
HWY_INLINE void pack_values(MatrixView<const float> values, TokenList tokens, std::size_t begin,
                            std::size_t count, float* HWY_RESTRICT packed) {
  const std::size_t whole = values.cols / kGroup;
  const std::size_t rest = values.cols % kGroup;
  const hn::CappedTag<float, kGroup> d;
  constexpr std::size_t kStep = std::min<std::size_t>(kGroup, HWY_LANES(float));
  for (std::size_t t = 0; t < count; ++t) {
    const float* from = values.row(tokens[begin + t]);
    float* to = packed + t * kGroup;
    for (std::size_t g = 0; g < whole; ++g, from += kGroup, to += kTokenBlock * kGroup) {
      for (std::size_t i = 0; i < kGroup; i += kStep) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
    }
    if (rest != 0) {
      std::fill(to, to + kGroup, 0.0f);
      std::copy(from, from + rest, to);
    }
  }
}

/// Running totals in register order, with what Kahan's additions could not hold.
struct Master {
  float* total = nullptr;
  float* lost = nullptr;
};

/// Snapshots inside one block of tokens. Per-row arrays are [snapshots][padded].
struct Snapshots {
  const std::uint32_t* stops = nullptr;  // tokens of this block before each snapshot, ascending
  std::size_t count = 0;
  std::size_t padded = 0;
  float* held = nullptr;          // kept weight
  float* inverse = nullptr;       // 1 / kept weight, or 0 where nothing is kept
  float* squares = nullptr;       // sum over columns of squared differences
  const float* exact = nullptr;   // exact outputs in register order
  float* delta = nullptr;         // at the tile's first row; nullptr: not asked for
  std::size_t delta_stride = 0;   // between snapshots
  std::size_t delta_rows = 0;     // between columns
  std::size_t delta_columns = 0;  // columns of the group that exist
};

/// One strip of rows over one block: copies the weights side by side, [token][kVecs vectors], and sums them
/// in the runs of the products. `row` is the strip's first row in the weights, `offset` its first row in the
/// tile.
template <std::size_t kVecs>
HWY_NOINLINE void pack_weights(MatrixView<const float> weights, TokenList tokens, std::size_t begin,
                               std::size_t count, std::size_t run, std::size_t row, std::size_t offset,
                               Master master, const Snapshots& at, float* HWY_RESTRICT packed) {
  const FloatTag d;
  FloatVec total[kVecs], lost[kVecs], sum[kVecs];
  for (std::size_t i = 0; i < kVecs; ++i) {
    total[i] = hn::Load(d, master.total + offset + i * kFloatLanes);
    lost[i] = hn::Load(d, master.lost + offset + i * kFloatLanes);
    sum[i] = hn::Zero(d);
  }
  std::size_t s = 0;
  const auto snapshots_until = [&](std::size_t t) HWY_ATTR {
    for (; s < at.count && at.stops[s] <= t; ++s) {
      for (std::size_t i = 0; i < kVecs; ++i) {
        const FloatVec held = hn::Add(total[i], sum[i]);
        const auto some = hn::Gt(held, hn::Zero(d));
        const FloatVec inverse = hn::Div(hn::Set(d, 1.0f), hn::IfThenElse(some, held, hn::Set(d, 1.0f)));
        const std::size_t place = s * at.padded + offset + i * kFloatLanes;
        hn::Store(held, d, at.held + place);
        hn::Store(hn::IfThenElseZero(some, inverse), d, at.inverse + place);
      }
    }
  };
  snapshots_until(0);
  for (std::size_t t = 0; t < count;) {
    const std::size_t end = std::min(count, t - t % run + run);
    const std::size_t stop = s < at.count ? std::min<std::size_t>(end, at.stops[s]) : end;
    for (; t < stop; ++t, packed += kVecs * kFloatLanes) {
      const float* from = weights.row(tokens[begin + t]) + row;
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) {
        const FloatVec w = hn::LoadU(d, from + i * kFloatLanes);
        hn::Store(w, d, packed + i * kFloatLanes);
        sum[i] = hn::Add(sum[i], w);
      }
    }
    snapshots_until(t);
    if (t != end) continue;
    for (std::size_t i = 0; i < kVecs; ++i) {
      add_compensated(sum[i], total[i], lost[i]);
      sum[i] = hn::Zero(d);
    }
  }
  for (std::size_t i = 0; i < kVecs; ++i) {
    hn::Store(total[i], d, master.total + offset + i * kFloatLanes);
    hn::Store(lost[i], d, master.lost + offset + i * kFloatLanes);
  }
}

template <std::size_t kVecs>
HWY_INLINE void add_tokens(const float* HWY_RESTRICT w, const float* HWY_RESTRICT v, std::size_t begin,
                           std::size_t end, FloatVec (&sum)[kGroup][kVecs]) {
  const FloatTag d;
  w += begin * kVecs * kFloatLanes;
  v += begin * kGroup;
  for (std::size_t t = begin; t < end; ++t, w += kVecs * kFloatLanes, v += kGroup) {
    FloatVec weight[kVecs];
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) weight[i] = hn::Load(d, w + i * kFloatLanes);
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kGroup; ++j) {
      const FloatVec value = hn::Set(d, v[j]);
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) sum[j][i] = fused(d, value, weight[i], sum[j][i]);
    }
  }
}

/// Compares total + sum with the exact outputs at snapshot `s`; `place` is the strip's in register order.
template <std::size_t kVecs>
HWY_INLINE void compare(const Snapshots& at, std::size_t s, std::size_t offset,
                        const float* HWY_RESTRICT total, const float* HWY_RESTRICT exact,
                        const FloatVec (&sum)[kGroup][kVecs]) {
  const FloatTag d;
  FloatVec inverse[kVecs], squares[kVecs];
  const std::size_t base = s * at.padded + offset;
#pragma GCC unroll 3
  for (std::size_t i = 0; i < kVecs; ++i) {
    inverse[i] = hn::Load(d, at.inverse + base + i * kFloatLanes);
    squares[i] = hn::Load(d, at.squares + base + i * kFloatLanes);
  }
#pragma GCC unroll 8
  for (std::size_t j = 0; j < kGroup; ++j) {
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) {
      const std::size_t place = (j * kVecs + i) * kFloatLanes;
      const FloatVec held = hn::Add(hn::Load(d, total + place), sum[j][i]);
      const FloatVec difference = hn::Sub(hn::Mul(held, inverse[i]), hn::Load(d, exact + place));
      squares[i] = fused(d, difference, difference, squares[i]);
    }
  }
#pragma GCC unroll 3
  for (std::size_t i = 0; i < kVecs; ++i) hn::Store(squares[i], d, at.squares + base + i * kFloatLanes);
}

/// Writes the differences that `compare` has summed up.
template <std::size_t kVecs>
HWY_NOINLINE void store_differences(const Snapshots& at, std::size_t s, std::size_t offset,
                                    const float* total, const float* exact,
                                    const FloatVec (&sum)[kGroup][kVecs]) {
  const FloatTag d;
  for (std::size_t j = 0; j < at.delta_columns; ++j) {
    for (std::size_t i = 0; i < kVecs; ++i) {
      const std::size_t place = (j * kVecs + i) * kFloatLanes;
      const FloatVec inverse = hn::Load(d, at.inverse + s * at.padded + offset + i * kFloatLanes);
      const FloatVec held = hn::Add(hn::Load(d, total + place), sum[j][i]);
      const FloatVec difference = hn::Sub(hn::Mul(held, inverse), hn::Load(d, exact + place));
      hn::StoreU(difference, d,
                 at.delta + s * at.delta_stride + j * at.delta_rows + offset + i * kFloatLanes);
    }
  }
}

/// One column group and one strip of rows over one block of packed tokens; sums start from zero at every
/// multiple of `run` tokens.
template <std::size_t kVecs, bool kDelta>
HWY_NOINLINE void group_pass(const float* HWY_RESTRICT w, const float* HWY_RESTRICT v, std::size_t tokens,
                             std::size_t run, std::size_t offset, Master master,
                             const float* HWY_RESTRICT exact, const Snapshots& at) {
  const FloatTag d;
  std::size_t s = 0;
  for (std::size_t begin = 0; begin == 0 || begin < tokens; begin += run) {
    const std::size_t end = std::min(begin + run, tokens);
    FloatVec sum[kGroup][kVecs];
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kGroup; ++j) {
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) sum[j][i] = hn::Zero(d);
    }
    std::size_t t = begin;
    for (; s < at.count && at.stops[s] <= end; ++s) {
      add_tokens<kVecs>(w, v, t, at.stops[s], sum);
      t = at.stops[s];
      compare<kVecs>(at, s, offset, master.total, exact, sum);
      if constexpr (kDelta) store_differences<kVecs>(at, s, offset, master.total, exact, sum);
    }
    add_tokens<kVecs>(w, v, t, end, sum);
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kGroup; ++j) {
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) {
        const std::size_t place = (j * kVecs + i) * kFloatLanes;
        FloatVec total = hn::Load(d, master.total + place);
        FloatVec lost = hn::Load(d, master.lost + place);
        add_compensated(sum[j][i], total, lost);
        hn::Store(total, d, master.total + place);
        hn::Store(lost, d, master.lost + place);
      }
    }
  }
}

/// Calls strip(std::integral_constant<kVecs>, first row of the strip in the tile) for every strip of a tile.
template <class Strip>
HWY_INLINE void for_strips(std::size_t padded, Strip strip) {
  const std::size_t vecs = padded / kFloatLanes;
  std::size_t done = 0;
  for (; done + kTileVecs <= vecs; done += kTileVecs) {
    strip(std::integral_constant<std::size_t, kTileVecs>(), done * kFloatLanes);
  }
  if (vecs - done == 2) strip(std::integral_constant<std::size_t, 2>(), done * kFloatLanes);
  if (vecs - done == 1) strip(std::integral_constant<std::size_t, 1>(), done * kFloatLanes);
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
