// Products along tokens: exact outputs, one-pass budget curves, and the matrix product of projections.
#include "kernels/replay.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/curve.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

#include "kernels/cpu/product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {

/// Tiles that share one packing of the values; their totals stay in the second-level cache.
inline constexpr std::size_t kTilesAtOnce = 4;

/// Everything that belongs to one tile of a pass; columns are rounded up to whole groups.
struct TilePass {
  TilePass(RowTile rows, std::size_t columns, std::size_t snapshots)
      : tile(rows),
        total(columns, tile.padded),
        lost(columns, tile.padded),
        exact(snapshots == 0 ? 0 : columns, tile.padded),
        weight_total(1, tile.padded),
        weight_lost(1, tile.padded),
        held(snapshots, tile.padded),
        inverse(snapshots, tile.padded),
        squares(snapshots, tile.padded) {}

  RowTile tile;
  Matrix<float> total, lost, exact;  // in register order (tile_place)
  Matrix<float> weight_total, weight_lost, held, inverse, squares;
};

/// What a pass reads, and where its snapshots lie.
struct PassInput {
  MatrixView<const float> weights;
  MatrixView<const float> values;
  TokenList tokens;
  std::size_t last = 0;  // tokens read
  std::size_t run = kCurveRun;
  std::span<const std::uint32_t> counts;
  float* delta = nullptr;
  std::size_t delta_stride = 0;
  std::size_t delta_rows = 0;
};

/// Fetches a slice of the lines that will be packed next into the second-level cache: weights of `tile`, and
/// values.
HWY_INLINE void prefetch(const PassInput& in, std::size_t begin, std::size_t end, RowTile tile, bool values) {
  constexpr std::size_t kLine = 64 / sizeof(float);
  for (std::size_t t = begin; t < end; ++t) {
    const std::size_t token = in.tokens[t];
    const float* row = in.weights.row(token) + tile.first;
    for (std::size_t i = 0; i < tile.padded; i += kLine) __builtin_prefetch(row + i, 0, 2);
    if (!values) continue;
    const float* value = in.values.row(token);
    for (std::size_t i = 0; i < in.values.cols; i += kLine) __builtin_prefetch(value + i, 0, 2);
  }
}

/// Tokens begin .. begin + count - 1 of a pass, and the snapshots first .. first + stops - 1 that lie among
/// them.
struct Block {
  std::size_t begin = 0;
  std::size_t count = 0;
  std::size_t first_snapshot = 0;
  std::vector<std::uint32_t> stops;  // relative to begin
};

/// One tile over one block; meanwhile what comes next is fetched.
void tile_block(const PassInput& in, const Block& block, TilePass& pass, const float* values, float* packed,
                const RowTile& next_tile, std::size_t next_begin, std::size_t next_count, bool next_values) {
  const std::size_t padded = pass.tile.padded;
  // Rankings put heavy tokens first, and beside them small weights are lost: the first block is summed in
  // short runs.
  const std::size_t run = block.begin == 0 ? kExactRun : in.run;
  Snapshots at;
  at.stops = block.stops.data();
  at.count = block.stops.size();
  at.padded = padded;
  if (at.count > 0) {
    at.held = pass.held.row(block.first_snapshot);
    at.inverse = pass.inverse.row(block.first_snapshot);
    at.squares = pass.squares.row(block.first_snapshot);
  }
  for_strips(padded, [&](auto vecs, std::size_t offset) HWY_ATTR {
    pack_weights<decltype(vecs)::value>(
        in.weights, in.tokens, block.begin, block.count, run, pass.tile.first + offset, offset,
        {pass.weight_total.data(), pass.weight_lost.data()}, at, packed + kTokenBlock * offset);
  });
  const std::size_t groups = pass.total.rows() / kGroup;
  for (std::size_t g = 0; g < groups; ++g) {
    prefetch(in, next_begin + next_count * g / groups, next_begin + next_count * (g + 1) / groups, next_tile,
             next_values);
    if (in.delta != nullptr) {
      at.delta_stride = in.delta_stride;
      at.delta_rows = in.delta_rows;
      at.delta_columns = std::min(kGroup, in.values.cols - g * kGroup);
      at.delta =
          in.delta + block.first_snapshot * in.delta_stride + g * kGroup * in.delta_rows + pass.tile.first;
    }
    for_strips(padded, [&](auto vecs, std::size_t offset) HWY_ATTR {
      const std::size_t place = (g * padded + offset) * kGroup;
      const Master master{pass.total.data() + place, pass.lost.data() + place};
      const float* exact = pass.exact.empty() ? nullptr : pass.exact.data() + place;
      const auto pass_of = at.delta == nullptr ? &group_pass<decltype(vecs)::value, false>
                                               : &group_pass<decltype(vecs)::value, true>;
      pass_of(packed + kTokenBlock * offset, values + g * kTokenBlock * kGroup, block.count, run, offset,
              master, exact, at);
    });
  }
}

/// All blocks of up to kTilesAtOnce tiles.
void run_tiles(const PassInput& in, std::span<TilePass> tiles) {
  Matrix<float> values(tiles[0].total.rows() * kTokenBlock, 1);
  Matrix<float> packed(kTokenBlock, kRowTile);
  Block block;
  for (block.begin = 0; block.begin < in.last || block.first_snapshot < in.counts.size();
       block.begin += kTokenBlock, block.first_snapshot += block.stops.size()) {
    block.count = block.begin < in.last ? std::min(kTokenBlock, in.last - block.begin) : 0;
    const std::size_t end = block.begin + block.count;
    block.stops.clear();
    for (const std::uint32_t count : in.counts.subspan(block.first_snapshot)) {
      if (count > end) break;
      block.stops.push_back(count - static_cast<std::uint32_t>(block.begin));
    }
    pack_values(in.values, in.tokens, block.begin, block.count, values.data());
    for (std::size_t i = 0; i < tiles.size(); ++i) {
      const bool same_block = i + 1 < tiles.size();
      const std::size_t next_count =
          same_block ? block.count : std::min(kTokenBlock, in.last - std::min(end, in.last));
      tile_block(in, block, tiles[i], values.data(), packed.data(), tiles[same_block ? i + 1 : 0].tile,
                 same_block ? block.begin : end, next_count, !same_block);
    }
  }
}

void load_columns(MatrixView<const float> from, RowTile tile, Matrix<float>& to) {
  for (std::size_t c = 0; c < from.rows; ++c) {
    for (std::size_t r = 0; r < tile.rows; r += kFloatLanes) {
      std::copy_n(from.row(c) + tile.first + r, std::min(kFloatLanes, tile.rows - r),
                  to.data() + tile_place(c, r, tile.padded));
    }
  }
}

void store_columns(const Matrix<float>& from, RowTile tile, MatrixView<float> to) {
  for (std::size_t c = 0; c < to.rows; ++c) {
    for (std::size_t r = 0; r < tile.rows; r += kFloatLanes) {
      std::copy_n(from.data() + tile_place(c, r, tile.padded), std::min(kFloatLanes, tile.rows - r),
                  to.row(c) + tile.first + r);
    }
  }
}

/// Runs `in` over rows [row_begin, row_end), with `prepare` before and `finish` after every tile's pass.
template <class Prepare, class Finish>
void for_tiles(const PassInput& in, std::size_t row_begin, std::size_t row_end, Prepare prepare,
               Finish finish) {
  const std::size_t columns = round_up(in.values.cols, kGroup);
  for (std::size_t row = row_begin; row < row_end; row += kTilesAtOnce * kRowTile) {
    std::vector<TilePass> tiles;
    for (std::size_t at = row; at < std::min(row_end, row + kTilesAtOnce * kRowTile); at += kRowTile) {
      tiles.emplace_back(row_tile(at, row_end), columns, in.counts.size());
      prepare(tiles.back());
    }
    run_tiles(in, tiles);
    for (const TilePass& pass : tiles) finish(pass);
  }
}

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
