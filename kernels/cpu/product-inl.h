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

/// Where a strip's weights of one block stand, and what is fetched meanwhile. The first column group reads
/// them in the matrix, all over the place, and leaves them side by side, [token][kVecs vectors], for the
/// others: its multiply-adds hide the walk.
struct StripSource {
  const float* weights = nullptr;        // in the matrix, at the strip's first row
  const std::size_t* offsets = nullptr;  // from there to the tokens of the block
  float* packed = nullptr;
  // Lines of what will be read next, three per token: every 2^ahead_shift tokens those of one more.
  const float* ahead = nullptr;
  const std::size_t* ahead_offsets = nullptr;
  unsigned ahead_shift = 0;
};

/// Adds tokens begin .. end - 1 of the block to the sums; the first column group sums the weights themselves
/// too.
template <std::size_t kVecs, bool kFirst>
HWY_INLINE void add_tokens(const StripSource& source, const float* HWY_RESTRICT v, std::size_t begin,
                           std::size_t end, FloatVec (&sum)[kGroup][kVecs], FloatVec (&weight_sum)[kVecs]) {
  const FloatTag d;
  float* HWY_RESTRICT packed = source.packed + begin * kVecs * kFloatLanes;
  v += begin * kGroup;
  const std::size_t ahead_mask = (std::size_t{1} << source.ahead_shift) - 1;
  for (std::size_t t = begin; t < end; ++t, packed += kVecs * kFloatLanes, v += kGroup) {
    if ((t & ahead_mask) == 0) {
      constexpr std::size_t kLine = 64 / sizeof(float);
      const float* line = source.ahead + source.ahead_offsets[t >> source.ahead_shift];
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kRowTile / kLine; ++i) __builtin_prefetch(line + i * kLine, 0, 2);
    }
    FloatVec weight[kVecs];
    const float* from = kFirst ? source.weights + source.offsets[t] : packed;
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) {
      weight[i] = hn::LoadU(d, from + i * kFloatLanes);
      if constexpr (kFirst) {
        hn::Store(weight[i], d, packed + i * kFloatLanes);
        weight_sum[i] = hn::Add(weight_sum[i], weight[i]);
      }
    }
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kGroup; ++j) {
      const FloatVec value = hn::Set(d, v[j]);
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) sum[j][i] = fused(d, value, weight[i], sum[j][i]);
    }
  }
}

/// The kept weight of a strip at snapshot `s`, and its inverse.
template <std::size_t kVecs>
HWY_INLINE void store_held(const Snapshots& at, std::size_t s, std::size_t offset,
                           const float* HWY_RESTRICT total, const FloatVec (&sum)[kVecs]) {
  const FloatTag d;
  for (std::size_t i = 0; i < kVecs; ++i) {
    const FloatVec held = hn::Add(hn::Load(d, total + i * kFloatLanes), sum[i]);
    const auto some = hn::Gt(held, hn::Zero(d));
    const FloatVec inverse = hn::Div(hn::Set(d, 1.0f), hn::IfThenElse(some, held, hn::Set(d, 1.0f)));
    const std::size_t place = s * at.padded + offset + i * kFloatLanes;
    hn::Store(held, d, at.held + place);
    hn::Store(hn::IfThenElseZero(some, inverse), d, at.inverse + place);
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

/// Ends a run: the sums go into the master, kCount vectors side by side.
template <std::size_t kCount>
HWY_INLINE void add_run(const FloatVec* HWY_RESTRICT sum, Master master) {
  const FloatTag d;
#pragma GCC unroll 24
  for (std::size_t i = 0; i < kCount; ++i) {
    FloatVec total = hn::Load(d, master.total + i * kFloatLanes);
    FloatVec lost = hn::Load(d, master.lost + i * kFloatLanes);
    add_compensated(sum[i], total, lost);
    hn::Store(total, d, master.total + i * kFloatLanes);
    hn::Store(lost, d, master.lost + i * kFloatLanes);
  }
}

/// One column group and one strip of rows over one block of tokens; sums start from zero at every multiple of
/// `run` tokens. `offset` is the strip's first row in the tile. The first group also keeps the sums of the
/// weights, in the same runs.
template <std::size_t kVecs, bool kFirst, bool kDelta>
HWY_NOINLINE void group_pass(const StripSource& source, const float* HWY_RESTRICT v, std::size_t tokens,
                             std::size_t run, std::size_t offset, Master master, Master weight_master,
                             const float* HWY_RESTRICT exact, const Snapshots& at) {
  const FloatTag d;
  std::size_t s = 0;
  for (std::size_t begin = 0; begin == 0 || begin < tokens; begin += run) {
    const std::size_t end = std::min(begin + run, tokens);
    FloatVec sum[kGroup][kVecs], weight_sum[kVecs];
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) {
      weight_sum[i] = hn::Zero(d);
#pragma GCC unroll 8
      for (std::size_t j = 0; j < kGroup; ++j) sum[j][i] = hn::Zero(d);
    }
    std::size_t t = begin;
    for (; s < at.count && at.stops[s] <= end; ++s) {
      add_tokens<kVecs, kFirst>(source, v, t, at.stops[s], sum, weight_sum);
      t = at.stops[s];
      if constexpr (kFirst) store_held<kVecs>(at, s, offset, weight_master.total, weight_sum);
      compare<kVecs>(at, s, offset, master.total, exact, sum);
      if constexpr (kDelta) store_differences<kVecs>(at, s, offset, master.total, exact, sum);
    }
    add_tokens<kVecs, kFirst>(source, v, t, end, sum, weight_sum);
    if constexpr (kFirst) add_run<kVecs>(weight_sum, weight_master);
    add_run<kGroup * kVecs>(&sum[0][0], master);
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
