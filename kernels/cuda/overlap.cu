// Kept tokens among a row's own best, and among its needed sets, for all budgets of many rankings: products
// of matrices of bits.
//
// A token counts for a budget where its ranking keeps it (its segment, the first budget that does, is at most
// the budget) and the row's limit lies above its rank (its packed budget is at most the budget), or where a
// needed set holds it. Both factors are made in registers by comparing bytes; the tensor cores add up exact
// integers along the tokens.
#include <algorithm>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

using overlap::kept;
using overlap::kOnes;
using overlap::kRowTile;
using overlap::kStep;

constexpr int kBudgets = 4;  // of a warp
constexpr int kWarps = 4;    // of a block: other budgets of the same rows and rankings

/// A warp: 16 rows, RankingTiles x 8 rankings, 4 budgets, and a part of the tokens.
template <int RankingTiles>
__global__ void __launch_bounds__(kWarps * 32)
    overlap_kernel(OverlapCall in, const OverlapGroup* __restrict__ of, Window window, overlap::Parts parts,
                   Sizes size) {
  const OverlapGroup group = *of;
  constexpr int kRankings = RankingTiles * kRankingTile;
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int row0 = blockIdx.x * kRowTile, ranking0 = blockIdx.y * kRankings;
  const int part = static_cast<int>(blockIdx.z) % parts.count;
  const int budget0 =
      (static_cast<int>(blockIdx.z) / parts.count * kWarps + static_cast<int>(threadIdx.x) / 32) * kBudgets;
  if (budget0 >= window.count) return;
  bool any = false;  // of these rankings: asked for in these rows
  for (int r = ranking0; r < min(static_cast<int>(group.size), ranking0 + kRankings); ++r)
    any = any || (static_cast<int>(group.rankings[r].row_begin) < row0 + kRowTile &&
                  static_cast<int>(group.rankings[r].row_end) > row0);
  if (!any) return;
  const int begin = part * parts.tokens, end = min(size.rank_stride, begin + parts.tokens);
  const std::uint8_t* const row[2] = {
      in.packed + static_cast<std::size_t>(min(row0 + g, size.rows - 1)) * size.rank_stride + 16 * q,
      in.packed + static_cast<std::size_t>(min(row0 + 8 + g, size.rows - 1)) * size.rank_stride + 16 * q};
  const std::uint8_t* const segment =
      in.segments + static_cast<std::size_t>(ranking0 + g) * size.rank_stride + 16 * q;
  const std::size_t tile_bytes = static_cast<std::size_t>(kRankingTile) * size.rank_stride;
  std::uint32_t sum[RankingTiles][kBudgets][1 + kFractions][4] = {};
  const auto load = [&](int t, uint4(&a)[2], uint4(&b)[RankingTiles]) {
    for (int h = 0; h < 2; ++h) a[h] = *reinterpret_cast<const uint4*>(row[h] + t);
    for (int n = 0; n < RankingTiles; ++n)
      b[n] = *reinterpret_cast<const uint4*>(segment + n * tile_bytes + t);
  };
  const auto step = [&](const std::uint32_t(&a)[4], const std::uint32_t(&b)[RankingTiles][2]) {
    std::uint32_t budget[4], needed[kFractions][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      budget[i] = a[i] & kWindowBudgets * kOnes;
#pragma unroll
      for (int c = 0; c < kFractions; ++c) needed[c][i] = a[i] & kOnes << (kBudgetBits + c);
    }
#pragma unroll
    for (int k = 0; k < kBudgets; ++k) {
      const auto at = static_cast<std::uint32_t>(min(budget0 + k, kWindowBudgets - 1));
      std::uint32_t best[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) best[i] = kept(budget[i], at);
#pragma unroll
      for (int n = 0; n < RankingTiles; ++n) {
        const std::uint32_t b0 = kept(b[n][0], at), b1 = kept(b[n][1], at);
        multiply_bytes(sum[n][k][0], best[0], best[1], best[2], best[3], b0, b1);
#pragma unroll
        for (int c = 0; c < kFractions; ++c)
          multiply_bytes(sum[n][k][1 + c], needed[c][0], needed[c][1], needed[c][2], needed[c][3], b0, b1);
      }
    }
  };
  uint4 a[2], b[RankingTiles];
  if (begin < end) load(begin, a, b);
  for (int t = begin; t < end; t += kStep) {
    uint4 next_a[2], next_b[RankingTiles];
    load(min(t + kStep, end - kStep), next_a, next_b);
    std::uint32_t b_low[RankingTiles][2], b_high[RankingTiles][2];
#pragma unroll
    for (int n = 0; n < RankingTiles; ++n) {
      b_low[n][0] = b[n].x;
      b_low[n][1] = b[n].y;
      b_high[n][0] = b[n].z;
      b_high[n][1] = b[n].w;
    }
    step({a[0].x, a[1].x, a[0].y, a[1].y},
         b_low);  // which token is which k of the instruction is free, if it is the same for both
    step({a[0].z, a[1].z, a[0].w, a[1].w}, b_high);
#pragma unroll
    for (int h = 0; h < 2; ++h) a[h] = next_a[h];
#pragma unroll
    for (int n = 0; n < RankingTiles; ++n) b[n] = next_b[n];
  }
#pragma unroll
  for (int n = 0; n < RankingTiles; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int r = ranking0 + n * kRankingTile + 2 * q + e;
      if (r >= static_cast<int>(group.size)) continue;
      const OverlapRanking ranking = group.rankings[r];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = row0 + g + 8 * h;
        if (at < static_cast<int>(ranking.row_begin) || at >= static_cast<int>(ranking.row_end)) continue;
#pragma unroll
        for (int k = 0; k < kBudgets; ++k) {
          if (budget0 + k >= window.count) continue;
          const std::size_t to =
              (static_cast<std::size_t>(ranking.place) * in.counts + window.first + budget0 + k) *
                  in.result_stride +
              at;
          const int i = 2 * h + e;
          overlap::add_results(in, to, sum[n][k][0][i], sum[n][k][1][i], sum[n][k][2][i], sum[n][k][3][i]);
        }
      }
    }
}

template <int RankingTiles>
void launch(const OverlapCall& call, const OverlapGroup* group, int rankings, const Window& window,
            const Sizes& size, cudaStream_t stream) {
  const auto tiles = [](int n, int each) { return (n + each - 1) / each; };
  const int rows = tiles(size.rows, kRowTile), columns = tiles(rankings, RankingTiles * kRankingTile),
            quads = tiles(window.count, kBudgets * kWarps);
  const overlap::Parts parts = overlap::parts_of(size, rows * columns * quads);
  const int threads = 32 * std::min(kWarps, tiles(window.count, kBudgets));
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(columns),
                  static_cast<unsigned>(quads * parts.count));
  overlap_kernel<RankingTiles>
      <<<grid, static_cast<unsigned>(threads), 0, stream>>>(call, group, window, parts, size);
  check(cudaGetLastError(), "overlap_kernel");
}

}  // namespace

void launch_overlap(const OverlapCall& call, const OverlapGroup* group, int rankings, const Window& window,
                    const Sizes& size, cudaStream_t stream) {
  launch_segments(group, false, static_cast<int>(segment_lines(static_cast<std::size_t>(rankings))), window,
                  size, call.segments, stream);
  if (rankings <= kRankingTile) {
    launch<1>(call, group, rankings, window, size, stream);
  } else {
    launch<2>(call, group, rankings, window, size, stream);
  }
}

}  // namespace kvsim::cuda
