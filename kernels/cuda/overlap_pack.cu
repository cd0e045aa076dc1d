// What overlaps read: for every token and row the budget of its rank and its needed sets in a byte, and for
// every token and ranking the budget that first keeps it.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackTokens = 8;  // of a thread
constexpr int kCells = 256;     // of neighbouring ranks, each with the first budget that may be theirs
constexpr int kSegmentThreads = 1024;
constexpr int kSegmentTokens = 8192;  // of a block, which reads the whole order for them

constexpr std::uint32_t kUnranked = 0xfffffffeu;  // below the limits that fill up a window

__device__ std::uint32_t rank_of(std::uint16_t rank) { return rank == 0xffffu ? kUnranked : rank; }
__device__ std::uint32_t rank_of(std::uint32_t rank) { return min(rank, kUnranked); }

template <typename Rank>
struct alignas(16) SomeRanks {
  Rank rank[kPackTokens];
};

/// Packs what groups need of the ranks of a row, reading them once. One block per row.
template <typename Rank>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const Rank* __restrict__ ranks, const std::uint32_t* __restrict__ needed_prompt,
                const OverlapGroup* __restrict__ groups, int count, Window window, int shift, Sizes size,
                std::uint8_t* __restrict__ packed) {
  __shared__ std::uint32_t limit[kLoneGroups][kWindowBudgets + 1];
  __shared__ std::uint8_t cell[kLoneGroups][kCells];
  __shared__ bool wanted[kLoneGroups];
  const int row = blockIdx.x;
  for (int i = threadIdx.x; i < count * (kWindowBudgets + 1); i += kPackThreads) {
    const int g = i / (kWindowBudgets + 1), b = i % (kWindowBudgets + 1);
    const OverlapGroup& group = groups[g];
    limit[g][b] = b < window.count
                      ? group.limits[static_cast<std::size_t>(window.first + b) * group.budget_step +
                                     static_cast<std::size_t>(row) * group.row_step]
                      : 0xffffffffu;
    if (b == 0) wanted[g] = row >= static_cast<int>(group.row_begin) && row < static_cast<int>(group.row_end);
  }
  std::uint32_t needed[kFractions];
  for (int c = 0; c < kFractions; ++c) needed[c] = needed_prompt[c * size.stride + row];
  __syncthreads();
  for (int i = threadIdx.x; i < count * kCells; i += kPackThreads)
    cell[i / kCells][i % kCells] = static_cast<std::uint8_t>(
        overlap::at_most(limit[i / kCells], static_cast<std::uint32_t>(i % kCells) << shift));
  __syncthreads();
  const Rank* const from = ranks + static_cast<std::size_t>(row) * size.rank_stride;
  for (int token = static_cast<int>(threadIdx.x) * kPackTokens; token < size.rank_stride;
       token += kPackThreads * kPackTokens) {
    const SomeRanks<Rank> some = *reinterpret_cast<const SomeRanks<Rank>*>(from + token);
    std::uint32_t rank[kPackTokens], flags[kPackTokens / 4] = {};
#pragma unroll
    for (int i = 0; i < kPackTokens; ++i) {
      rank[i] = token + i < size.prompt ? rank_of(some.rank[i]) : kUnranked;
#pragma unroll
      for (int c = 0; c < kFractions; ++c)
        flags[i / 4] |= rank[i] < needed[c] ? 1u << (i % 4 * 8 + kBudgetBits + c) : 0u;
    }
    for (int g = 0; g < count; ++g) {
      if (!wanted[g]) continue;
      std::uint32_t word[kPackTokens / 4];
#pragma unroll
      for (int i = 0; i < kPackTokens; ++i) {
        std::uint32_t budget = cell[g][min(rank[i] >> shift, static_cast<std::uint32_t>(kCells - 1))];
        while (limit[g][budget] <= rank[i]) ++budget;
        word[i / 4] = (i % 4 == 0 ? flags[i / 4] : word[i / 4]) | budget << (i % 4 * 8);
      }
      *reinterpret_cast<uint2*>(packed + (static_cast<std::size_t>(g) * size.rows + row) * size.rank_stride +
                                token) = make_uint2(word[0], word[1]);
    }
  }
}

/// One line of `segments`: the first budget of the window that keeps a token, kWindowBudgets where none does.
/// Lines are the rankings of one group (those behind the last: none keeps anything), or those of groups of
/// one.
__global__ void __launch_bounds__(kSegmentThreads)
    segments_kernel(const OverlapGroup* __restrict__ groups, bool lone, Window window, int rank_stride,
                    std::uint8_t* __restrict__ segments) {
  __shared__ std::uint32_t limit[kWindowBudgets + 1];
  __shared__ __align__(16) std::uint8_t segment[kSegmentTokens];
  const OverlapGroup& group = groups[lone ? blockIdx.y : 0];
  const std::uint32_t line = lone ? 0 : blockIdx.y;
  if (threadIdx.x <= kWindowBudgets)
    limit[threadIdx.x] =
        static_cast<int>(threadIdx.x) < window.count ? group.counts[window.first + threadIdx.x] : 0xffffffffu;
  constexpr int kBytes = kSegmentTokens / kSegmentThreads;
  static_assert(kBytes == sizeof(uint2));
  constexpr std::uint32_t kNone = kWindowBudgets * overlap::kOnes;
  reinterpret_cast<uint2*>(segment)[threadIdx.x] = make_uint2(kNone, kNone);
  __syncthreads();
  const std::uint32_t first = blockIdx.x * kSegmentTokens;
  if (line < group.size) {
    const std::uint32_t* const order = group.rankings[line].order;
    const std::uint32_t kept = limit[window.count - 1];
    std::uint32_t budget = 0;
    for (std::uint32_t i = threadIdx.x; i < kept; i += kSegmentThreads) {
      while (limit[budget] <= i) ++budget;
      const std::uint32_t token = order[i] - first;
      if (token < kSegmentTokens) segment[token] = static_cast<std::uint8_t>(budget);
    }
  }
  __syncthreads();
  const int token = static_cast<int>(first) + static_cast<int>(threadIdx.x) * kBytes;
  if (token < rank_stride)
    *reinterpret_cast<uint2*>(segments + static_cast<std::size_t>(blockIdx.y) * rank_stride + token) =
        reinterpret_cast<const uint2*>(segment)[threadIdx.x];
}

}  // namespace

template <typename Rank>
void launch_pack(const Rank* ranks, const std::uint32_t* needed_prompt, const OverlapGroup* groups, int count,
                 const Window& window, const Sizes& size, std::uint8_t* packed, cudaStream_t stream) {
  int shift = 0;
  while ((size.prompt - 1) >> shift >= kCells) ++shift;
  pack_kernel<<<static_cast<unsigned>(size.rows), kPackThreads, 0, stream>>>(
      ranks, needed_prompt, groups, count, window, shift, size, packed);
  check(cudaGetLastError(), "pack_kernel");
}
template void launch_pack(const std::uint16_t*, const std::uint32_t*, const OverlapGroup*, int, const Window&,
                          const Sizes&, std::uint8_t*, cudaStream_t);
template void launch_pack(const std::uint32_t*, const std::uint32_t*, const OverlapGroup*, int, const Window&,
                          const Sizes&, std::uint8_t*, cudaStream_t);

void launch_segments(const OverlapGroup* groups, bool lone, int lines, const Window& window,
                     const Sizes& size, std::uint8_t* segments, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((size.rank_stride + kSegmentTokens - 1) / kSegmentTokens),
                  static_cast<unsigned>(lines));
  segments_kernel<<<grid, kSegmentThreads, 0, stream>>>(groups, lone, window, size.rank_stride, segments);
  check(cudaGetLastError(), "segments_kernel");
}

}  // namespace kvsim::cuda
