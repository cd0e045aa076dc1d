// Sums over the threads of a block of 1024, and a stable radix sort of a row in its shared memory.
#pragma once

#include "kernels/cuda/kernels.h"

namespace kvsim::cuda::block {

inline constexpr int kThreads = 1024;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kItems = (kMostShortTokens + kThreads - 1) / kThreads;  // of a thread
inline constexpr unsigned kAll = 0xffffffffu;
inline constexpr int kDigitBits = 8;
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr int kWords =
    kDigits / 2 + 1;  // of a histogram: two digits of 16 bits in a word, and one against bank conflicts

/// Keys of the tokens, the order so far, and how often each warp has each digit.
struct SortSpace {
  std::uint32_t key[kMostShortTokens];
  std::uint16_t order[kMostShortTokens];
  std::uint32_t histogram[kWarps * kWords];
};

/// Exclusive sums over the threads of the block.
__device__ inline std::uint32_t sum_before(std::uint32_t value, std::uint32_t* of_warp) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  std::uint32_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    std::uint32_t all = of_warp[lane];
    for (int step = 1; step < 32; step *= 2) {
      const std::uint32_t other = __shfl_up_sync(kAll, all, step);
      if (lane >= step) all += other;
    }
    of_warp[lane] = all;
  }
  __syncthreads();
  return sum - value + (warp == 0 ? 0u : of_warp[warp - 1]);
}

/// The same of masses, and their total.
__device__ inline double mass_before(double value, double* of_warp, double& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  double sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const double other = __shfl_up_sync(kAll, sum, step);
    if (lane >= step) sum += other;
  }
  const double before = __shfl_up_sync(kAll, sum, 1);
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  double of_others = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) of_others = total;
    total += of_warp[w];
  }
  return lane == 0 ? of_others : of_others + before;
}

/// One stable pass over a digit. A warp has `rounds` x 32 neighbouring places of the order.
__device__ inline void sort_by(SortSpace& space, std::uint32_t* of_warp, int n, int rounds, int shift,
                               bool first_pass) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int base = warp * rounds * 32 + lane;
  std::uint32_t* const mine = space.histogram + warp * kWords;
  for (int i = lane; i < kDigits / 2; i += 32) mine[i] = 0;
  __syncwarp();
  std::uint32_t item[kItems];  // token, and its digit above
#pragma unroll
  for (int r = 0; r < kItems; ++r) {
    const int at = base + r * 32;
    if (r < rounds && at < n) {
      const std::uint32_t token = first_pass ? static_cast<std::uint32_t>(at) : space.order[at];
      const std::uint32_t digit = space.key[token] >> shift & (kDigits - 1);
      item[r] = token | digit << 16;
      atomicAdd(mine + digit / 2, 1u << (digit % 2 * 16));
    }
  }
  __syncthreads();
  // Where every warp's tokens of every digit begin: thread (word, part) has two digits and an eighth of the
  // warps.
  constexpr int kParts = kThreads / (kDigits / 2), kWarpsOfPart = kWarps / kParts;
  const int word = threadIdx.x / kParts, part = threadIdx.x % kParts;
  std::uint32_t low = 0, high = 0;
  for (int w = part * kWarpsOfPart; w < (part + 1) * kWarpsOfPart; ++w) {
    const std::uint32_t both = space.histogram[w * kWords + word];
    low += both & 0xffffu;
    high += both >> 16;
  }
  // Before (word, part): everything of lower words, and parts below of the same word for each digit alone.
  const std::uint32_t all_before = sum_before(low + high, of_warp);
  std::uint32_t low_before = low, high_before = high, low_all = low;
  for (int step = 1; step < kParts; step *= 2) {
    const std::uint32_t other_low = __shfl_up_sync(kAll, low_before, step, kParts),
                        other_high = __shfl_up_sync(kAll, high_before, step, kParts);
    if (part >= step) {
      low_before += other_low;
      high_before += other_high;
    }
  }
  low_before -= low;
  high_before -= high;
  for (int step = 1; step < kParts; step *= 2) low_all += __shfl_xor_sync(kAll, low_all, step, kParts);
  const std::uint32_t word_begin = all_before - low_before - high_before;
  std::uint32_t low_at = word_begin + low_before, high_at = word_begin + low_all + high_before;
  for (int w = part * kWarpsOfPart; w < (part + 1) * kWarpsOfPart; ++w) {
    std::uint32_t& both = space.histogram[w * kWords + word];
    const std::uint32_t counts = both;
    both = low_at | high_at << 16;
    low_at += counts & 0xffffu;
    high_at += counts >> 16;
  }
  __syncthreads();
  std::uint16_t* const next = reinterpret_cast<std::uint16_t*>(mine);
#pragma unroll
  for (int r = 0; r < kItems; ++r) {
    if (r >= rounds) break;
    const bool present = base + r * 32 < n;
    const std::uint32_t digit = present ? item[r] >> 16 : kDigits;
    const unsigned same = __match_any_sync(kAll, digit);
    const unsigned before = __popc(same & ((1u << lane) - 1));
    const std::uint32_t begin = present ? next[digit] : 0u;
    __syncwarp();
    if (present) {
      space.order[begin + before] = static_cast<std::uint16_t>(item[r]);
      if (before == 0) next[digit] = static_cast<std::uint16_t>(begin + __popc(same));
    }
    __syncwarp();
  }
  __syncthreads();
}

/// Sorts the keys of n tokens: afterwards order[place] = token, ties in the order of tokens.
__device__ inline void sort_row(SortSpace& space, std::uint32_t* of_warp, int n, int bits) {
  const int rounds = (n + kThreads - 1) / kThreads;
  for (int shift = 0; shift < bits; shift += kDigitBits)
    sort_by(space, of_warp, n, rounds, shift, shift == 0);
}

}  // namespace kvsim::cuda::block
