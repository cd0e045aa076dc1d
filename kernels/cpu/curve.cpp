// Products along tokens: exact outputs, one-pass budget curves, and the matrix product of projections.
#include "kernels/replay.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/curve.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

#include "kernels/cpu/product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

/// Fetches the next block's weights into the second-level cache, a slice per column group, so that packing
/// finds them.
HWY_INLINE void prefetch_weights(MatrixView<const float> weights, TokenList tokens, std::size_t begin,
                                 std::size_t end, RowTile tile) {
  for (std::size_t t = begin; t < end; ++t) {
    const float* row = weights.row(tokens[t]) + tile.first;
    for (std::size_t i = 0; i < tile.padded; i += kRowPad) __builtin_prefetch(row + i, 0, 2);
  }
}

/// Copies `count` tokens' weights from `begin` on side by side and sums them in the runs of the products; at
/// stop s (tokens of this block) the running total is written to held[s].
HWY_INLINE void pack_weights(MatrixView<const float> weights, TokenList tokens, std::size_t begin,
                             std::size_t count, std::size_t run, RowTile tile, float* HWY_RESTRICT packed,
                             Master total, std::span<const std::uint32_t> stops, float* HWY_RESTRICT held) {
  const FloatTag d;
  HWY_ALIGN float partial[kRowTile] = {};
  std::size_t next = 0;
  for (std::size_t t = 0; t <= count; ++t) {
    for (; next < stops.size() && stops[next] == t; ++next) {
      for (std::size_t i = 0; i < tile.padded; i += kFloatLanes) {
        hn::Store(hn::Add(hn::Load(d, total.total + i), hn::Load(d, partial + i)), d,
                  held + next * tile.padded + i);
      }
    }
    if (t == count || (t % run == 0 && t > 0)) {
      for (std::size_t i = 0; i < tile.padded; i += kFloatLanes) {
        FloatVec sum = hn::Load(d, total.total + i);
        FloatVec lost = hn::Load(d, total.lost + i);
        add_compensated(hn::Load(d, partial + i), sum, lost);
        hn::Store(sum, d, total.total + i);
        hn::Store(lost, d, total.lost + i);
        hn::Store(hn::Zero(d), d, partial + i);
      }
    }
    if (t == count) break;
    const float* from = weights.row(tokens[begin + t]) + tile.first;
    float* to = packed + t * tile.padded;
    for (std::size_t i = 0; i < tile.padded; i += kFloatLanes) {
      const FloatVec w = hn::LoadU(d, from + i);
      hn::Store(w, d, to + i);
      hn::Store(hn::Add(hn::Load(d, partial + i), w), d, partial + i);
    }
  }
}

/// Buffers of one row tile's pass; columns are rounded up to whole groups.
struct TilePass {
  TilePass(std::size_t value_dim, std::size_t padded, std::size_t snapshots)
      : groups((value_dim + kGroup - 1) / kGroup),
        master(groups * kGroup, padded),
        lost(groups * kGroup, padded),
        exact(snapshots == 0 ? 0 : groups * kGroup, padded),
        weights(kTokenBlock, padded),
        values(groups * kTokenBlock, kGroup),
        total(1, padded),
        total_lost(1, padded),
        held(snapshots, padded),
        inverse(snapshots, padded),
        squares(snapshots, padded) {}

  std::size_t groups;
  Matrix<float> master, lost, exact, weights, values, total, total_lost, held, inverse, squares;
};

/// Runs all blocks of a tile: counts are the snapshots' token numbers (empty for a plain product), `last` the
/// tokens read.
void run_blocks(MatrixView<const float> weights, MatrixView<const float> values, TokenList tokens,
                std::size_t last, std::size_t run, RowTile tile, std::span<const std::uint32_t> counts,
                Snapshots at, TilePass& pass) {
  std::uint32_t stops[kTokenBlock];
  std::vector<std::uint32_t> many;
  std::size_t snapshot = 0;
  for (std::size_t begin = 0; begin < last || snapshot < counts.size(); begin += kTokenBlock) {
    const std::size_t count = begin < last ? std::min(kTokenBlock, last - begin) : 0;
    std::size_t until = snapshot;
    while (until < counts.size() && counts[until] <= begin + count) ++until;
    const std::size_t here = until - snapshot;
    if (here > kTokenBlock) many.resize(here);
    std::uint32_t* stop = here > kTokenBlock ? many.data() : stops;
    for (std::size_t s = 0; s < here; ++s) stop[s] = counts[snapshot + s] - static_cast<std::uint32_t>(begin);
    const std::size_t stride = tile.padded;
    pack_weights(weights, tokens, begin, count, run, tile, pass.weights.data(),
                 {pass.total.data(), pass.total_lost.data()}, {stop, here},
                 pass.held.data() + snapshot * stride);
    pack_values(values, tokens, begin, count, pass.values.data());
    for (std::size_t i = snapshot * stride; i < until * stride; ++i) {
      const float held = pass.held.data()[i];
      pass.inverse.data()[i] = held > 0.0f ? 1.0f / held : 0.0f;
    }
    Snapshots local = at;
    local.stops = stop;
    local.count = here;
    local.inverse = pass.inverse.data() + snapshot * stride;
    local.squares = pass.squares.data() + snapshot * stride;
    const std::size_t ahead = begin + count < last ? std::min(kTokenBlock, last - begin - count) : 0;
    for (std::size_t g = 0; g < pass.groups; ++g) {
      const std::size_t column = g * kGroup;
      local.exact = at.count == 0 ? nullptr : pass.exact.row(column);
      if (at.delta != nullptr) {
        local.delta = at.delta + snapshot * at.delta_stride + column * at.delta_rows + tile.first;
        local.delta_columns = std::min(kGroup, values.cols - column);
      }
      prefetch_weights(weights, tokens, begin + count + ahead * g / pass.groups,
                       begin + count + ahead * (g + 1) / pass.groups, tile);
      tile_pass(pass.weights.data(), stride, pass.values.data() + g * kTokenBlock * kGroup, count, run,
                {pass.master.row(column), pass.lost.row(column)}, local);
    }
    snapshot = until;
  }
}

void load_columns(MatrixView<const float> from, RowTile tile, Matrix<float>& to) {
  for (std::size_t c = 0; c < from.rows; ++c) std::copy_n(from.row(c) + tile.first, tile.rows, to.row(c));
}

void attention_outputs_path(MatrixView<const float> weights, MatrixView<const float> values,
                            std::size_t first, std::size_t last, std::size_t row_begin, std::size_t row_end,
                            MatrixView<float> out, std::span<float> weight_sum) {
  for (std::size_t row = row_begin; row < row_end; row += kRowTile) {
    const RowTile tile = row_tile(row, row_end);
    TilePass pass(values.cols, tile.padded, 0);
    run_blocks(weights, values, {nullptr, first}, last - first, kExactRun, tile, {}, {}, pass);
    for (std::size_t c = 0; c < values.cols; ++c)
      std::copy_n(pass.master.row(c), tile.rows, out.row(c) + row);
    if (!weight_sum.empty()) std::copy_n(pass.total.data(), tile.rows, weight_sum.data() + row);
  }
}

void accumulate_product_path(MatrixView<const float> a, MatrixView<const float> b, MatrixView<float> out) {
  for (std::size_t row = 0; row < a.cols; row += kRowTile) {
    const RowTile tile = row_tile(row, a.cols);
    TilePass pass(b.cols, tile.padded, 0);
    load_columns(out, tile, pass.master);
    run_blocks(a, b, {nullptr, 0}, a.rows, kCurveRun, tile, {}, {}, pass);
    for (std::size_t c = 0; c < b.cols; ++c) std::copy_n(pass.master.row(c), tile.rows, out.row(c) + row);
  }
}

/// |o| of the tile's rows; 1 where it is 0, so that the error is |o'| there.
void exact_norms(const Matrix<float>& exact, std::size_t columns, std::size_t padded, float* norm) {
  const FloatTag d;
  for (std::size_t i = 0; i < padded; i += kFloatLanes) {
    FloatVec squares = hn::Zero(d);
    for (std::size_t c = 0; c < columns; ++c) {
      const FloatVec value = hn::Load(d, exact.row(c) + i);
      squares = fused(d, value, value, squares);
    }
    const FloatVec root = hn::Sqrt(squares);
    hn::Store(hn::IfThenElse(hn::Eq(root, hn::Zero(d)), hn::Set(d, 1.0f), root), d, norm + i);
  }
}

void curve_tile(const CurveInput& in, RowTile tile, std::size_t row_begin, const CurveOutput& out) {
  TilePass pass(in.values.cols, tile.padded, in.counts.size());
  load_columns(in.tail_output, tile, pass.master);
  load_columns(in.exact, tile, pass.exact);
  std::copy_n(in.tail_weight.data() + tile.first, tile.rows, pass.total.data());
  Snapshots at;
  at.count = in.counts.size();
  at.delta = out.delta;
  at.delta_stride = out.delta_stride;
  at.delta_rows = in.exact.stride;
  run_blocks(in.weights, in.values, {in.order.data(), 0}, in.counts.back(), kCurveRun, tile, in.counts, at,
             pass);

  HWY_ALIGN float norm[kRowTile];
  exact_norms(pass.exact, in.values.cols, tile.padded, norm);
  const std::size_t column = tile.first - row_begin;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    const float* held = pass.held.row(s);
    const float* squares = pass.squares.row(s);
    for (std::size_t r = 0; r < tile.rows; ++r) {
      out.recall(s, column + r) = held[r];
      out.error(s, column + r) =
          held[r] < kRecallFloor ? std::numeric_limits<float>::quiet_NaN() : std::sqrt(squares[r]) / norm[r];
    }
  }
}

void curve_pass_path(const CurveInput& in, std::size_t row_begin, std::size_t row_end,
                     const CurveOutput& out) {
  for (std::size_t row = row_begin; row < row_end; row += kRowTile) {
    curve_tile(in, row_tile(row, row_end), row_begin, out);
  }
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/curve_checks.h"

namespace kvsim {

HWY_EXPORT(attention_outputs_path);
HWY_EXPORT(accumulate_product_path);
HWY_EXPORT(curve_pass_path);

void attention_outputs(MatrixView<const float> weights, MatrixView<const float> values, std::size_t first,
                       std::size_t last, std::size_t row_begin, std::size_t row_end, MatrixView<float> out,
                       std::span<float> weight_sum) {
  KVSIM_CHECK(first <= last && last <= weights.rows && last <= values.rows,
              "tokens {}..{} of {} weights, {} values", first, last, weights.rows, values.rows);
  check_tile(row_begin, row_end, weights.stride);
  KVSIM_CHECK(out.rows == values.cols && row_end <= out.stride, "out is {} x {}, values have {} columns",
              out.rows, out.stride, values.cols);
  KVSIM_CHECK(weight_sum.empty() || weight_sum.size() >= row_end, "{} sums for row {}", weight_sum.size(),
              row_end);
  HWY_DYNAMIC_DISPATCH(attention_outputs_path)
  (weights, values, first, last, row_begin, row_end, out, weight_sum);
}

void accumulate_product(MatrixView<const float> a, MatrixView<const float> b, MatrixView<float> out) {
  KVSIM_CHECK(a.rows == b.rows && out.rows == b.cols && a.cols <= out.stride,
              "({} x {})' ({} x {}) into {} x {}", a.rows, a.cols, b.rows, b.cols, out.rows, out.stride);
  check_tile(0, a.cols, a.stride);
  HWY_DYNAMIC_DISPATCH(accumulate_product_path)(a, b, out);
}

void curve_pass(const CurveInput& in, std::size_t row_begin, std::size_t row_end, const CurveOutput& out) {
  check_curve(in, row_begin, row_end, out);
  KVSIM_CHECK(in.counts.empty() || in.counts.back() <= in.order.size(),
              "snapshot after {} of {} ranked tokens", in.counts.empty() ? 0 : in.counts.back(),
              in.order.size());
  if (in.counts.empty() || row_begin == row_end) return;
  HWY_DYNAMIC_DISPATCH(curve_pass_path)(in, row_begin, row_end, out);
}

}  // namespace kvsim
#endif  // HWY_ONCE
