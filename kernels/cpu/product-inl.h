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
#include <cstring>

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

/// Rows of one register-tile column: row_begin + a multiple of kRowTile, padded to kRowPad.
struct RowTile {
  std::size_t first = 0;   // absolute row
  std::size_t rows = 0;    // real rows, at most kRowTile
  std::size_t padded = 0;  // rows rounded up to kRowPad
};

HWY_INLINE RowTile row_tile(std::size_t row, std::size_t row_end) {
  const std::size_t rows = std::min(kRowTile, row_end - row);
  return {row, rows, round_up(rows, kRowPad)};
}

/// Where the tokens of a pass stand: order[i], or first + i where there is no order.
struct TokenList {
  const TokenIndex* order = nullptr;
  std::size_t first = 0;
  HWY_INLINE std::size_t operator[](std::size_t i) const { return order != nullptr ? order[i] : first + i; }
};

/// Copies the values of `count` tokens from `begin` on to [column group][token][kGroup], missing columns 0.
HWY_INLINE void pack_values(MatrixView<const float> values, TokenList tokens, std::size_t begin,
                            std::size_t count, float* HWY_RESTRICT packed) {
  const std::size_t whole = values.cols / kGroup;
  const std::size_t rest = values.cols % kGroup;
  for (std::size_t t = 0; t < count; ++t) {
    const float* from = values.row(tokens[begin + t]);
    float* to = packed + t * kGroup;
    for (std::size_t g = 0; g < whole; ++g, from += kGroup, to += kTokenBlock * kGroup) {
      std::memcpy(to, from, kGroup * sizeof(float));
    }
    if (rest != 0) {
      std::fill(to, to + kGroup, 0.0f);
      std::copy(from, from + rest, to);
    }
  }
}

/// What a group pass reads and writes at its snapshots; all arrays have the tile's padded rows as their
/// stride.
struct Snapshots {
  const std::uint32_t* stops = nullptr;  // tokens of this block before each snapshot, ascending
  std::size_t count = 0;
  const float* inverse = nullptr;  // [count][padded]: 1 / kept weight
  float* squares = nullptr;        // [count][padded]: sum over columns of squared differences
  const float* exact = nullptr;    // [kGroup][padded]
  float* delta = nullptr;          // [count] x delta_stride, columns delta_rows apart; nullptr: not asked for
  std::size_t delta_stride = 0;
  std::size_t delta_rows = 0;
  std::size_t delta_columns = 0;
};

template <std::size_t kVecs>
HWY_INLINE void add_tokens(const float* HWY_RESTRICT w, std::size_t stride, const float* HWY_RESTRICT v,
                           std::size_t begin, std::size_t end, FloatVec (&sum)[kGroup][kVecs]) {
  const FloatTag d;
  w += begin * stride;
  v += begin * kGroup;
  for (std::size_t t = begin; t < end; ++t, w += stride, v += kGroup) {
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

/// Compares master + sum with the exact outputs: snapshot `s` of `at`, rows from `offset` of the tile.
template <std::size_t kVecs>
HWY_INLINE void compare(const Snapshots& at, std::size_t s, std::size_t offset, std::size_t stride,
                        const float* HWY_RESTRICT master, const FloatVec (&sum)[kGroup][kVecs]) {
  const FloatTag d;
  FloatVec inverse[kVecs];
  FloatVec squares[kVecs];
  const std::size_t base = s * stride + offset;
#pragma GCC unroll 3
  for (std::size_t i = 0; i < kVecs; ++i) {
    inverse[i] = hn::Load(d, at.inverse + base + i * kFloatLanes);
    squares[i] = hn::Load(d, at.squares + base + i * kFloatLanes);
  }
#pragma GCC unroll 8
  for (std::size_t j = 0; j < kGroup; ++j) {
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) {
      const std::size_t at_row = j * stride + offset + i * kFloatLanes;
      const FloatVec held = hn::Add(hn::Load(d, master + at_row), sum[j][i]);
      const FloatVec exact = hn::Load(d, at.exact + at_row);
      const FloatVec difference = hn::Sub(hn::Mul(held, inverse[i]), exact);
      squares[i] = fused(d, difference, difference, squares[i]);
      if (at.delta != nullptr && j < at.delta_columns) {
        hn::StoreU(difference, d,
                   at.delta + s * at.delta_stride + j * at.delta_rows + offset + i * kFloatLanes);
      }
    }
  }
#pragma GCC unroll 3
  for (std::size_t i = 0; i < kVecs; ++i) hn::Store(squares[i], d, at.squares + base + i * kFloatLanes);
}

/// total += sum with Kahan's compensation: `lost` is what the last addition could not hold.
template <class V>
HWY_INLINE void add_compensated(V sum, V& total, V& lost) {
  const V wanted = hn::Sub(sum, lost);
  const V next = hn::Add(total, wanted);
  lost = hn::Sub(hn::Sub(next, total), wanted);
  total = next;
}

/// Running totals of one column group: [kGroup][padded] each.
struct Master {
  float* total = nullptr;
  float* lost = nullptr;
};

/// One column group over one block of packed tokens, kVecs vectors of rows from `offset` of the tile; sums
/// start from zero at every multiple of `run` tokens.
template <std::size_t kVecs>
HWY_NOINLINE void group_pass(const float* HWY_RESTRICT w, std::size_t stride, std::size_t offset,
                             const float* HWY_RESTRICT v, std::size_t tokens, std::size_t run, Master master,
                             const Snapshots& at) {
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
      add_tokens<kVecs>(w + offset, stride, v, t, at.stops[s], sum);
      t = at.stops[s];
      compare<kVecs>(at, s, offset, stride, master.total, sum);
    }
    add_tokens<kVecs>(w + offset, stride, v, t, end, sum);
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kGroup; ++j) {
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) {
        const std::size_t place = j * stride + offset + i * kFloatLanes;
        FloatVec total = hn::Load(d, master.total + place);
        FloatVec lost = hn::Load(d, master.lost + place);
        add_compensated(sum[j][i], total, lost);
        hn::Store(total, d, master.total + place);
        hn::Store(lost, d, master.lost + place);
      }
    }
  }
}

/// group_pass over all rows of a tile.
HWY_INLINE void tile_pass(const float* w, std::size_t padded, const float* v, std::size_t tokens,
                          std::size_t run, Master master, const Snapshots& at) {
  const std::size_t vecs = padded / kFloatLanes;
  std::size_t done = 0;
  for (; done + kTileVecs <= vecs; done += kTileVecs) {
    group_pass<kTileVecs>(w, padded, done * kFloatLanes, v, tokens, run, master, at);
  }
  if (vecs - done == 2) group_pass<2>(w, padded, done * kFloatLanes, v, tokens, run, master, at);
  if (vecs - done == 1) group_pass<1>(w, padded, done * kFloatLanes, v, tokens, run, master, at);
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
