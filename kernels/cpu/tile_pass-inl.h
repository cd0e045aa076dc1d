// A pass of register tiles over all tokens: blocks, what each tile keeps from block to block, and fetching
// ahead.

#if defined(KVSIM_KERNELS_CPU_TILE_PASS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSIM_KERNELS_CPU_TILE_PASS_INL_H_
#undef KVSIM_KERNELS_CPU_TILE_PASS_INL_H_
#else
#define KVSIM_KERNELS_CPU_TILE_PASS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/cpu/product-inl.h"
#include "kernels/replay.h"

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

/// Tokens begin .. begin + count - 1 of a pass, and the snapshots first .. first + stops - 1 that lie among
/// them.
struct Block {
  std::size_t begin = 0;
  std::size_t count = 0;
  std::size_t first_snapshot = 0;
  std::vector<std::uint32_t> stops;  // relative to begin
  // From the first row of the weights to each token of the block, and of the one that follows (where none
  // does: of this one).
  std::vector<std::size_t> offsets, next_offsets;
};

/// What is read after a tile of a block.
struct Next {
  std::size_t row = 0;  // of the weights
  const std::vector<std::size_t>& offsets;
  bool new_block = false;
};

/// Places of the tokens from `begin` on; a block that is not full repeats its last token.
void find_offsets(const PassInput& in, std::size_t begin, std::vector<std::size_t>& offsets) {
  for (std::size_t t = 0; t < kTokenBlock; ++t)
    offsets[t] = in.tokens[std::min(begin + t, in.last - 1)] * in.weights.stride;
}

/// Fetches a share of the values of the next block into the second-level cache.
HWY_INLINE void prefetch_values(const PassInput& in, std::size_t begin, std::size_t group,
                                std::size_t groups) {
  constexpr std::size_t kLine = 64 / sizeof(float);
  const std::size_t count = begin < in.last ? std::min(kTokenBlock, in.last - begin) : 0;
  for (std::size_t t = begin + count * group / groups; t < begin + count * (group + 1) / groups; ++t) {
    const float* value = in.values.row(in.tokens[t]);
    for (std::size_t i = 0; i < in.values.cols; i += kLine) __builtin_prefetch(value + i, 0, 2);
  }
}

/// The variant of group_pass for a column group.
template <std::size_t kVecs>
auto group_pass_of(bool first, bool delta) {
  if (first) return delta ? &group_pass<kVecs, true, true> : &group_pass<kVecs, true, false>;
  return delta ? &group_pass<kVecs, false, true> : &group_pass<kVecs, false, false>;
}

/// The snapshots of a block in the tables of a tile.
Snapshots snapshots_of(const PassInput& in, const Block& block, TilePass& pass) {
  Snapshots at;
  at.stops = block.stops.data();
  at.count = block.stops.size();
  at.padded = pass.tile.padded;
  at.delta_stride = in.delta_stride;
  at.delta_rows = in.delta_rows;
  if (at.count == 0) return at;
  at.held = pass.held.row(block.first_snapshot);
  at.inverse = pass.inverse.row(block.first_snapshot);
  at.squares = pass.squares.row(block.first_snapshot);
  return at;
}

/// One tile over one block; meanwhile what comes next is fetched.
void tile_block(const PassInput& in, const Block& block, TilePass& pass, const float* values, float* packed,
                const Next& next) {
  const std::size_t padded = pass.tile.padded;
  // Rankings put heavy tokens first, and beside them small weights are lost: the first block is summed in
  // short runs.
  const std::size_t run = block.begin == 0 ? kExactRun : in.run;
  Snapshots at = snapshots_of(in, block, pass);
  const std::size_t groups = pass.total.rows() / kGroup;
  const std::size_t shares =
      std::min(std::bit_floor(groups), kTokenBlock);  // of what is fetched ahead, one per column group
  for (std::size_t g = 0; g < groups; ++g) {
    if (next.new_block) prefetch_values(in, block.begin + kTokenBlock, g, groups);
    if (in.delta != nullptr) {
      at.delta_columns = std::min(kGroup, in.values.cols - g * kGroup);
      at.delta =
          in.delta + block.first_snapshot * in.delta_stride + g * kGroup * in.delta_rows + pass.tile.first;
    }
    for_strips(padded, [&](auto vecs, std::size_t offset) HWY_ATTR {
      const std::size_t place = (g * padded + offset) * kGroup;
      const StripSource source{in.weights.data + pass.tile.first + offset,
                               block.offsets.data(),
                               packed + kTokenBlock * offset,
                               in.weights.data + next.row,
                               next.offsets.data() + std::min(g, shares - 1) * (kTokenBlock / shares),
                               static_cast<unsigned>(std::countr_zero(shares))};
      group_pass_of<decltype(vecs)::value>(g == 0, at.delta != nullptr)(
          source, values + g * kTokenBlock * kGroup, block.count, run, offset,
          {pass.total.data() + place, pass.lost.data() + place},
          {pass.weight_total.data() + offset, pass.weight_lost.data() + offset},
          pass.exact.empty() ? nullptr : pass.exact.data() + place, at);
    });
  }
}

/// All blocks of up to kTilesAtOnce tiles.
void run_tiles(const PassInput& in, std::span<TilePass> tiles) {
  Matrix<float> values(tiles[0].total.rows() * kTokenBlock, 1);
  Matrix<float> packed(kTokenBlock, kRowTile);
  Block block;
  block.offsets.resize(kTokenBlock);
  block.next_offsets.resize(kTokenBlock);
  if (in.last > 0) find_offsets(in, 0, block.next_offsets);
  for (block.begin = 0; block.begin < in.last || block.first_snapshot < in.counts.size();
       block.begin += kTokenBlock, block.first_snapshot += block.stops.size()) {
    block.count = block.begin < in.last ? std::min(kTokenBlock, in.last - block.begin) : 0;
    const std::size_t end = block.begin + block.count;
    block.offsets.swap(block.next_offsets);
    if (end < in.last)
      find_offsets(in, end, block.next_offsets);
    else
      block.next_offsets = block.offsets;
    block.stops.clear();
    for (const std::uint32_t count : in.counts.subspan(block.first_snapshot)) {
      if (count > end) break;
      block.stops.push_back(count - static_cast<std::uint32_t>(block.begin));
    }
    pack_values(in.values, in.tokens, block.begin, block.count, values.data());
    for (std::size_t i = 0; i < tiles.size(); ++i) {
      const bool new_block = i + 1 == tiles.size();
      tile_block(in, block, tiles[i], values.data(), packed.data(),
                 {tiles[new_block ? 0 : i + 1].tile.first, new_block ? block.next_offsets : block.offsets,
                  new_block});
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

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
