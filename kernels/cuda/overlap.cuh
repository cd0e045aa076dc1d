// What the kernels that count overlaps share.
#pragma once

#include "kernels/cuda/kernels.h"

namespace kvsim::cuda::overlap {

inline constexpr int kRowTile = 16;         // rows of a warp
inline constexpr int kStep = 64;            // tokens: 16 bytes for each of four threads
inline constexpr int kMostOfPart = 65536;   // tokens of a part, so that no sum of products of 2^14 overflows
inline constexpr int kBlocksWanted = 1500;  // enough to fill any GPU of today several times
inline constexpr std::uint32_t kOnes = 0x01010101u, kTops = 0x80808080u;

/// How many of limits[0 .. kWindowBudgets - 1], ascending, are at most x.
__device__ inline int at_most(const std::uint32_t* limits, std::uint32_t x) {
  int n = 0;
#pragma unroll
  for (int step = (kWindowBudgets + 1) / 2; step > 0; step /= 2)
    if (limits[n + step - 1] <= x) n += step;
  return n;
}

/// 0x80 in every byte that is at most b; bytes and b are at most kWindowBudgets.
__device__ inline std::uint32_t kept(std::uint32_t bytes, std::uint32_t b) {
  return ((b * kOnes) | kTops) - bytes & kTops;
}

/// A kept token counts 2^7 times the bit of the other factor: 2^7 for a limit, 2^(kBudgetBits + c) for a
/// needed set.
__device__ inline void add_results(const OverlapCall& call, std::size_t at, std::uint32_t agree,
                                   std::uint32_t half, std::uint32_t most, std::uint32_t nearly_all) {
  atomicAdd(call.agree + at, agree >> 14);  // integers: any order gives the same
  atomicAdd(call.found + at, half >> (7 + kBudgetBits));
  atomicAdd(call.found + call.fraction_stride + at, most >> (8 + kBudgetBits));
  atomicAdd(call.found + 2 * call.fraction_stride + at, nearly_all >> (9 + kBudgetBits));
}

/// How tokens are cut into parts, so that there are enough blocks.
struct Parts {
  int tokens, count;
};
inline Parts parts_of(const Sizes& size, int blocks) {
  const auto tiles = [](int n, int each) { return (n + each - 1) / each; };
  const int by_blocks = tiles(kBlocksWanted, blocks), by_size = tiles(size.rank_stride, kMostOfPart);
  const int wanted = by_blocks > by_size ? by_blocks : by_size;
  const int steps = tiles(size.rank_stride / kStep, wanted);
  const int tokens = (steps < 16 ? 16 : steps) * kStep;
  return {tokens, tiles(size.rank_stride, tokens)};
}

}  // namespace kvsim::cuda::overlap
