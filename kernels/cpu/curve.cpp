// Products along tokens: exact outputs, one-pass budget curves, and the matrix product of projections.
#include "kernels/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/curve.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

#include "kernels/cpu/tile_pass-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

void attention_outputs_path(MatrixView<const float> weights, MatrixView<const float> values,
                            std::size_t first, std::size_t last, std::size_t row_begin, std::size_t row_end,
                            MatrixView<float> out, std::span<float> weight_sum) {
  const PassInput in{weights, values, {nullptr, first}, last - first, kExactRun, {}, nullptr, 0, 0};
  for_tiles(
      in, row_begin, row_end, [](TilePass&) {},
      [&](const TilePass& pass) {
        store_columns(pass.total, pass.tile, out);
        if (!weight_sum.empty()) {
          std::copy_n(pass.weight_total.data(), pass.tile.rows, weight_sum.data() + pass.tile.first);
        }
      });
}

void accumulate_product_path(MatrixView<const float> a, MatrixView<const float> b, MatrixView<float> out) {
  const PassInput in{a, b, {}, a.rows, kCurveRun, {}, nullptr, 0, 0};
  for_tiles(
      in, 0, a.cols, [&](TilePass& pass) { load_columns(out, pass.tile, pass.total); },
      [&](const TilePass& pass) { store_columns(pass.total, pass.tile, out); });
}

/// |o| of the tile's rows; 1 where it is 0, so that the error is |o'| there.
void exact_norms(MatrixView<const float> exact, RowTile tile, float* norm) {
  std::fill_n(norm, tile.rows, 0.0f);
  for (std::size_t c = 0; c < exact.rows; ++c) {
    const float* row = exact.row(c) + tile.first;
    for (std::size_t r = 0; r < tile.rows; ++r) norm[r] = std::fma(row[r], row[r], norm[r]);
  }
  for (std::size_t r = 0; r < tile.rows; ++r) norm[r] = norm[r] > 0.0f ? std::sqrt(norm[r]) : 1.0f;
}

void finish_curve(const CurveInput& in, const TilePass& pass, std::size_t row_begin, const CurveOutput& out) {
  float norm[kRowTile];
  exact_norms(in.exact, pass.tile, norm);
  const std::size_t column = pass.tile.first - row_begin;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    const float* held = pass.held.row(s);
    const float* squares = pass.squares.row(s);
    for (std::size_t r = 0; r < pass.tile.rows; ++r) {
      out.recall(s, column + r) = held[r];
      out.error(s, column + r) =
          held[r] < kRecallFloor ? std::numeric_limits<float>::quiet_NaN() : std::sqrt(squares[r]) / norm[r];
    }
  }
}

void curve_pass_path(const CurveInput& in, std::size_t row_begin, std::size_t row_end,
                     const CurveOutput& out) {
  const PassInput pass_input{in.weights, in.values, {in.order.data(), 0}, in.counts.back(), kCurveRun,
                             in.counts,  out.delta, out.delta_stride,     in.exact.stride};
  for_tiles(
      pass_input, row_begin, row_end,
      [&](TilePass& pass) {
        load_columns(in.tail_output, pass.tile, pass.total);
        load_columns(in.exact, pass.tile, pass.exact);
        std::copy_n(in.tail_weight.data() + pass.tile.first, pass.tile.rows, pass.weight_total.data());
      },
      [&](const TilePass& pass) { finish_curve(in, pass, row_begin, out); });
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
