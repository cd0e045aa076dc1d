// Overlaps of rankings that share their counts with no other.
//
// Where a group holds one ranking, its budgets are the columns of the products. A needed set times all
// budgets is one product; a limit belongs to one budget, so its product keeps that column alone.
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

constexpr int kColumns = 8;  // budgets of a tile
constexpr int kWarps = 2;    // of a block: tiles of budgets

/// A warp: 16 rows, 8 budgets of one ranking, and a part of the tokens.
__global__ void __launch_bounds__(kWarps * 32)
    lone_overlap_kernel(OverlapCall in, const OverlapGroup* __restrict__ groups, Window window,
                        overlap::Parts parts, Sizes size) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int row0 = blockIdx.x * kRowTile;
  const int part = static_cast<int>(blockIdx.z) % parts.count;
  const int budget0 =
      (static_cast<int>(blockIdx.z) / parts.count * kWarps + static_cast<int>(threadIdx.x) / 32) * kColumns;
  const OverlapRanking ranking = *groups[blockIdx.y].rankings;
  if (budget0 >= window.count || row0 >= static_cast<int>(ranking.row_end) ||
      row0 + kRowTile <= static_cast<int>(ranking.row_begin))
    return;
  const int begin = part * parts.tokens, end = min(size.rank_stride, begin + parts.tokens);
  const std::uint8_t* const packed =
      in.packed + static_cast<std::size_t>(blockIdx.y) * size.rows * size.rank_stride + 16 * q;
  const std::uint8_t* const row[2] = {
      packed + static_cast<std::size_t>(min(row0 + g, size.rows - 1)) * size.rank_stride,
      packed + static_cast<std::size_t>(min(row0 + 8 + g, size.rows - 1)) * size.rank_stride};
  const std::uint8_t* const segment =
      in.segments + static_cast<std::size_t>(blockIdx.y) * size.rank_stride + 16 * q;
  const auto own =
      static_cast<std::uint32_t>(min(budget0 + g, kWindowBudgets - 1));  // the budget of this thread's column
  std::uint32_t sum[1 + kFractions][4] = {};
  const auto step = [&](const std::uint32_t(&a)[4], std::uint32_t b0, std::uint32_t b1) {
    b0 = kept(b0, own);
    b1 = kept(b1, own);
#pragma unroll
    for (int c = 0; c < kFractions; ++c) {
      constexpr std::uint32_t kFlag = kOnes << kBudgetBits;
      multiply_bytes(sum[1 + c], a[0] & kFlag << c, a[1] & kFlag << c, a[2] & kFlag << c, a[3] & kFlag << c,
                     b0, b1);
    }
    std::uint32_t budget[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) budget[i] = a[i] & kWindowBudgets * kOnes;
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const auto at = static_cast<std::uint32_t>(min(budget0 + k, kWindowBudgets - 1));
      multiply_bytes(sum[0], kept(budget[0], at), kept(budget[1], at), kept(budget[2], at),
                     kept(budget[3], at), g == k ? b0 : 0u, g == k ? b1 : 0u);
    }
  };
  uint4 a[2] = {}, b = {};
  const auto load = [&](int t, uint4(&to)[2]) {
    for (int h = 0; h < 2; ++h) to[h] = *reinterpret_cast<const uint4*>(row[h] + t);
    return *reinterpret_cast<const uint4*>(segment + t);
  };
  if (begin < end) b = load(begin, a);
  for (int t = begin; t < end; t += kStep) {
    uint4 next[2];
    const uint4 next_b = load(min(t + kStep, end - kStep), next);
    step({a[0].x, a[1].x, a[0].y, a[1].y}, b.x,
         b.y);  // which token is which k of the instruction is free, if it is the same for both
    step({a[0].z, a[1].z, a[0].w, a[1].w}, b.z, b.w);
    a[0] = next[0];
    a[1] = next[1];
    b = next_b;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = row0 + g + i / 2 * 8, budget = budget0 + 2 * q + i % 2;
    if (at < static_cast<int>(ranking.row_begin) || at >= static_cast<int>(ranking.row_end) ||
        budget >= window.count)
      continue;
    overlap::add_results(
        in,
        (static_cast<std::size_t>(ranking.place) * in.counts + window.first + budget) * in.result_stride + at,
        sum[0][i], sum[1][i], sum[2][i], sum[3][i]);
  }
}

}  // namespace

void launch_lone_overlaps(const OverlapCall& call, const OverlapGroup* groups, int count,
                          const Window& window, const Sizes& size, cudaStream_t stream) {
  const auto tiles = [](int n, int each) { return (n + each - 1) / each; };
  launch_segments(groups, true, count, window, size, call.segments, stream);
  const int rows = tiles(size.rows, kRowTile), pairs = tiles(window.count, kColumns * kWarps);
  const overlap::Parts parts = overlap::parts_of(size, rows * count * pairs);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(count),
                  static_cast<unsigned>(pairs * parts.count));
  lone_overlap_kernel<<<grid, kWarps * 32, 0, stream>>>(call, groups, window, parts, size);
  check(cudaGetLastError(), "lone_overlap_kernel");
}

}  // namespace kvsim::cuda
