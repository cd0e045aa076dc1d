// Exact attention weights: double logits in register tiles, and a softmax whose reference moves block by
// block.
//
// A block of tokens is exponentiated against the row's maximum so far, in double, so that only (logit -
// maximum) meets float; the last pass multiplies every block by exp(its maximum - final maximum) / sum.
#include "kernels/replay.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

#include "kernels/cpu/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

using DoubleTag = hn::ScalableTag<double>;
using DoubleVec = hn::Vec<DoubleTag>;

inline constexpr std::size_t kDoubleLanes = HWY_LANES(double);
inline constexpr std::size_t kKeyBlock = 128;
inline constexpr std::size_t kKeyGroup = HWY_MAX_BYTES >= 64 ? 8 : 4;
inline constexpr std::size_t kLogitVecs = 3;  // the register tile of product-inl.h, in double
inline constexpr double kHidden = -1e300;     // logit of a key that a query does not see
inline constexpr double kNothingSeen = -1e290;

/// Everything about a tile of rows; per-row arrays are `padded` long.
struct LogitTile {
  LogitTile(std::size_t head_dim, std::size_t padded_rows, std::size_t blocks)
      : padded(padded_rows),
        queries(head_dim, padded),
        keys(kKeyBlock, head_dim),
        logits(kKeyBlock, padded),
        reference(blocks, padded),
        first(1, padded),
        last(1, padded),
        largest(1, padded),
        sum(1, padded) {}

  std::size_t padded;
  Matrix<double> queries;       // [head_dim, padded]
  Matrix<double> keys;          // [kKeyBlock, head_dim]
  Matrix<double> logits;        // [kKeyBlock, padded]
  Matrix<double> reference;     // [blocks, padded]: the maximum that each block was exponentiated against
  Matrix<double> first, last;   // visible keys first .. last (a padding row sees none)
  Matrix<double> largest, sum;  // maximum and sum of exponentials so far
  double all_first = 0.0;       // keys all_first .. all_last are seen by every row,
  double all_last = -1.0;
  double any_first = 0.0;  // keys outside any_first .. any_last by none
  double any_last = -1.0;
};

void load_rows(MatrixView<const float> queries, std::span<const TokenIndex> position, std::uint32_t window,
               std::size_t row, std::size_t rows, LogitTile& tile) {
  tile.all_last = tile.any_first = std::numeric_limits<double>::max();
  for (std::size_t r = 0; r < tile.padded; ++r) {
    double first = 1.0;
    double last = 0.0;
    if (r < rows) {
      last = static_cast<double>(position[row + r]);
      first = window == 0 ? 0.0 : std::max(0.0, last + 1.0 - static_cast<double>(window));
      for (std::size_t c = 0; c < queries.cols; ++c)
        tile.queries(c, r) = static_cast<double>(queries(row + r, c));
      tile.all_first = std::max(tile.all_first, first);
      tile.all_last = std::min(tile.all_last, last);
      tile.any_first = std::min(tile.any_first, first);
      tile.any_last = std::max(tile.any_last, last);
    }
    tile.first(0, r) = first;
    tile.last(0, r) = last;
    tile.largest(0, r) = kNothingSeen;
  }
  if (rows < tile.padded) tile.all_last = -1.0;  // padding rows are masked in every block
}

template <std::size_t kVecs>
HWY_INLINE void dot_tile(const double* HWY_RESTRICT keys, std::size_t head_dim,
                         const double* HWY_RESTRICT queries, std::size_t stride,
                         double* HWY_RESTRICT logits) {
  const DoubleTag d;
  DoubleVec sum[kKeyGroup][kVecs];
#pragma GCC unroll 8
  for (std::size_t j = 0; j < kKeyGroup; ++j) {
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) sum[j][i] = hn::Zero(d);
  }
  for (std::size_t c = 0; c < head_dim; ++c) {
    DoubleVec query[kVecs];
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) query[i] = hn::Load(d, queries + c * stride + i * kDoubleLanes);
#pragma GCC unroll 8
    for (std::size_t j = 0; j < kKeyGroup; ++j) {
      const DoubleVec key = hn::Set(d, keys[j * head_dim + c]);
#pragma GCC unroll 3
      for (std::size_t i = 0; i < kVecs; ++i) sum[j][i] = fused(d, key, query[i], sum[j][i]);
    }
  }
#pragma GCC unroll 8
  for (std::size_t j = 0; j < kKeyGroup; ++j) {
#pragma GCC unroll 3
    for (std::size_t i = 0; i < kVecs; ++i) hn::Store(sum[j][i], d, logits + j * stride + i * kDoubleLanes);
  }
}

/// Dot products of a block of keys with the tile's rows; a last group that is not full reads zero keys.
void dot_block(MatrixView<const float> keys, std::size_t begin, std::size_t count, LogitTile& tile) {
  const std::size_t d = keys.cols;
  for (std::size_t t = 0; t < count; ++t) {
    const float* from = keys.row(begin + t);
    double* to = tile.keys.data() + t * d;
    for (std::size_t c = 0; c < d; ++c) to[c] = static_cast<double>(from[c]);
  }
  const std::size_t vecs = tile.padded / kDoubleLanes;
  for (std::size_t t = 0; t < count; t += kKeyGroup) {
    const double* group = tile.keys.data() + t * d;
    std::size_t v = 0;
    for (; v + kLogitVecs <= vecs; v += kLogitVecs) {
      dot_tile<kLogitVecs>(group, d, tile.queries.data() + v * kDoubleLanes, tile.padded,
                           tile.logits.row(t) + v * kDoubleLanes);
    }
    for (; v < vecs; ++v) {
      dot_tile<1>(group, d, tile.queries.data() + v * kDoubleLanes, tile.padded,
                  tile.logits.row(t) + v * kDoubleLanes);
    }
  }
}

/// Scale, soft cap and mask; raises the rows' maxima.
void shape_logits(const LogitRule& rule, std::size_t begin, std::size_t count, LogitTile& tile) {
  const DoubleTag d;
  const bool seen_by_all = static_cast<double>(begin) >= tile.all_first &&
                           static_cast<double>(begin + count) <= tile.all_last + 1.0;
  const DoubleVec scale = hn::Set(d, rule.scale);
  const DoubleVec cap = hn::Set(d, rule.softcap > 0.0 ? rule.softcap : 1.0);
  for (std::size_t i = 0; i < tile.padded; i += kDoubleLanes) {
    const DoubleVec first = hn::Load(d, tile.first.data() + i);
    const DoubleVec last = hn::Load(d, tile.last.data() + i);
    DoubleVec largest = hn::Load(d, tile.largest.data() + i);
    for (std::size_t t = 0; t < count; ++t) {
      double* at = tile.logits.row(t) + i;
      DoubleVec logit = hn::Mul(scale, hn::Load(d, at));
      if (rule.softcap > 0.0) logit = hn::Mul(cap, tanh_double(d, hn::Div(logit, cap)));
      if (!seen_by_all) {
        const DoubleVec token = hn::Set(d, static_cast<double>(begin + t));
        const auto seen = hn::And(hn::Ge(token, first), hn::Le(token, last));
        logit = hn::IfThenElse(seen, logit, hn::Set(d, kHidden));
      }
      largest = hn::Max(largest, logit);
      hn::Store(logit, d, at);
    }
    hn::Store(largest, d, tile.largest.data() + i);
  }
}

/// Exponentials of a block against the maxima so far; `before` are the maxima before this block.
void exponentiate(std::size_t begin, std::size_t count, std::size_t row, const double* before,
                  LogitTile& tile, MatrixView<float> weights) {
  const DoubleTag d;
  const hn::Rebind<float, DoubleTag> df;
  for (std::size_t i = 0; i < tile.padded; i += kDoubleLanes) {
    const DoubleVec largest = hn::Load(d, tile.largest.data() + i);
    DoubleVec block = hn::Zero(d);
    for (std::size_t t = 0; t < count; ++t) {
      const auto e = exp_float(d, hn::Sub(hn::Load(d, tile.logits.row(t) + i), largest));
      hn::StoreU(e, df, weights.row(begin + t) + row + i);
      block = hn::Add(block, hn::PromoteTo(d, e));
    }
    const DoubleVec shrink = exp_double(d, hn::Sub(hn::Load(d, before + i), largest));
    const DoubleVec sum = hn::Add(hn::Mul(hn::Load(d, tile.sum.data() + i), shrink), block);
    hn::Store(sum, d, tile.sum.data() + i);
  }
}

/// What a block is multiplied by, [padded]: exp(its reference - final maximum) / sum, and 0 where nothing was
/// seen.
void block_factors(const double* reference, const LogitTile& tile, float* factors) {
  const DoubleTag d;
  const hn::Rebind<float, DoubleTag> df;
  for (std::size_t i = 0; i < tile.padded; i += kDoubleLanes) {
    const DoubleVec sum = hn::Load(d, tile.sum.data() + i);
    const DoubleVec power =
        exp_double(d, hn::Sub(hn::Load(d, reference + i), hn::Load(d, tile.largest.data() + i)));
    const auto nothing = hn::Eq(sum, hn::Zero(d));
    const DoubleVec share = hn::Div(power, hn::IfThenElse(nothing, hn::Set(d, 1.0), sum));
    // Below 1e-30 the product with a float exponential may leave the normal range on the way; it is hardly
    // there anyway.
    hn::Store(hn::DemoteTo(df, hn::IfThenZeroElse(nothing, hn::Max(share, hn::Set(d, 0.0)))), df,
              factors + i);
  }
}

/// Multiplies a block by its factors; what falls below the normal floats becomes 0.
void normalise(std::size_t begin, std::size_t count, std::size_t row, const double* reference,
               const LogitTile& tile, MatrixView<float> weights) {
  const hn::CappedTag<float, kRowPad> d;
  constexpr std::size_t kLanes = std::min<std::size_t>(kRowPad, HWY_LANES(float));
  HWY_ALIGN float factors[kRowTile];
  block_factors(reference, tile, factors);
  const auto smallest = hn::Set(d, std::numeric_limits<float>::min());
  for (std::size_t t = 0; t < count; ++t) {
    float* at = weights.row(begin + t) + row;
    for (std::size_t i = 0; i < tile.padded; i += kLanes) {
      const auto w = hn::Mul(hn::LoadU(d, at + i), hn::Load(d, factors + i));
      hn::StoreU(hn::IfThenZeroElse(hn::Lt(w, smallest), w), d, at + i);
    }
  }
}

void weights_tile(MatrixView<const float> keys, MatrixView<const float> queries,
                  std::span<const TokenIndex> position, const LogitRule& rule, std::size_t row,
                  std::size_t rows, MatrixView<float> weights) {
  const std::size_t blocks = (keys.rows + kKeyBlock - 1) / kKeyBlock;
  LogitTile tile(keys.cols, round_up(rows, kRowPad), blocks);
  load_rows(queries, position, rule.window, row, rows, tile);
  const auto seen = [&](std::size_t begin, std::size_t count) {
    return static_cast<double>(begin + count) > tile.any_first && static_cast<double>(begin) <= tile.any_last;
  };
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t begin = b * kKeyBlock;
    const std::size_t count = std::min(kKeyBlock, keys.rows - begin);
    if (!seen(begin, count)) {
      for (std::size_t t = 0; t < count; ++t) std::fill_n(weights.row(begin + t) + row, tile.padded, 0.0f);
      continue;
    }
    HWY_ALIGN double before[kRowTile];
    std::copy_n(tile.largest.data(), tile.padded, before);
    dot_block(keys, begin, count, tile);
    shape_logits(rule, begin, count, tile);
    std::copy_n(tile.largest.data(), tile.padded, tile.reference.row(b));
    exponentiate(begin, count, row, before, tile, weights);
  }
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t begin = b * kKeyBlock;
    const std::size_t count = std::min(kKeyBlock, keys.rows - begin);
    if (seen(begin, count)) normalise(begin, count, row, tile.reference.row(b), tile, weights);
  }
}

void attention_weights_path(MatrixView<const float> keys, MatrixView<const float> queries,
                            std::span<const TokenIndex> position, const LogitRule& rule,
                            std::size_t row_begin, std::size_t row_end, MatrixView<float> weights) {
  for (std::size_t row = row_begin; row < row_end; row += kRowTile) {
    weights_tile(keys, queries, position, rule, row, std::min(kRowTile, row_end - row), weights);
  }
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/curve_checks.h"

namespace kvsim {

HWY_EXPORT(attention_weights_path);

void attention_weights(MatrixView<const float> keys, MatrixView<const float> queries,
                       std::span<const TokenIndex> position, const LogitRule& rule, std::size_t row_begin,
                       std::size_t row_end, MatrixView<float> weights) {
  check_tile(row_begin, row_end, weights.stride);
  KVSIM_CHECK(queries.cols == keys.cols, "queries of {} channels, keys of {}", queries.cols, keys.cols);
  KVSIM_CHECK(row_end <= queries.rows && row_end <= position.size(), "row {} of {} queries, {} positions",
              row_end, queries.rows, position.size());
  KVSIM_CHECK(weights.rows >= keys.rows, "weights for {} tokens, {} keys", weights.rows, keys.rows);
  HWY_DYNAMIC_DISPATCH(attention_weights_path)(keys, queries, position, rule, row_begin, row_end, weights);
}

}  // namespace kvsim
#endif  // HWY_ONCE
