// Ranks of every row among its prompt tokens, and the needed sets: one segmented radix sort over all tokens.
#include <cub/block/block_load.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr std::uint32_t kHeaviest = 0x3F800000u;  // bits of 1.0f: weights lie in [0, 1], their bits order as they do
constexpr std::uint32_t kUnseen = kHeaviest + 1;  // after every visible token, those of weight 0 included
constexpr int kKeyBits = 30;
constexpr int kSlab = 32;
constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;

/// Row-major keys, ascending = heaviest first; the sort is stable, so ties stay in the order of positions.
__global__ void keys_kernel(const float* __restrict__ weights, const std::uint32_t* __restrict__ position, Sizes size, unsigned window,
                            std::uint32_t* __restrict__ keys, std::uint32_t* __restrict__ tokens) {
  __shared__ std::uint32_t tile[kSlab][kSlab + 1];
  const int token0 = blockIdx.x * kSlab, row0 = blockIdx.y * kSlab;
  for (int t = threadIdx.y; t < kSlab; t += blockDim.y) {
    const int token = token0 + t, row = row0 + static_cast<int>(threadIdx.x);
    if (token < size.tokens && row < size.rows) {
      const unsigned at = position[row], seen = static_cast<unsigned>(token);
      const bool visible = seen <= at && (window == 0 || seen + window > at);
      const float w = fminf(weights[static_cast<std::size_t>(token) * size.stride + row], 1.0f);
      tile[t][threadIdx.x] = visible ? kHeaviest - __float_as_uint(w) : kUnseen;
    }
  }
  __syncthreads();
  for (int r = threadIdx.y; r < kSlab; r += blockDim.y) {
    const int token = token0 + static_cast<int>(threadIdx.x), row = row0 + r;
    if (token < size.tokens && row < size.rows) {
      const std::size_t to = static_cast<std::size_t>(row) * size.tokens + token;
      keys[to] = tile[threadIdx.x][r];
      tokens[to] = static_cast<std::uint32_t>(token);
    }
  }
}

/// Walks one sorted row: ranks of the prompt tokens, and how long the needed sets are.
template <typename Rank>
__global__ void __launch_bounds__(kScanThreads) walk_kernel(const std::uint32_t* __restrict__ keys, const std::uint32_t* __restrict__ tokens,
                                                            Sizes size, Rank* __restrict__ by_row, std::uint32_t* __restrict__ needed_total,
                                                            std::uint32_t* __restrict__ needed_prompt) {
  using Load = cub::BlockLoad<std::uint32_t, kScanThreads, kScanItems, cub::BLOCK_LOAD_TRANSPOSE>;
  using MassSum = cub::BlockReduce<double, kScanThreads>;
  using MassScan = cub::BlockScan<double, kScanThreads>;
  using CountScan = cub::BlockScan<unsigned, kScanThreads>;
  __shared__ union {
    typename Load::TempStorage load;
    typename MassSum::TempStorage reduce;
    typename MassScan::TempStorage mass;
    typename CountScan::TempStorage count;
  } space;
  __shared__ unsigned total_count[kFractions], prompt_count[kFractions];
  __shared__ double shared_total;
  constexpr double kMass[kFractions] = {0.5, 0.9, 0.99};
  const int row = blockIdx.x;
  const std::uint32_t* const key = keys + static_cast<std::size_t>(row) * size.tokens;
  const std::uint32_t* const token = tokens + static_cast<std::size_t>(row) * size.tokens;
  if (threadIdx.x < kFractions) total_count[threadIdx.x] = prompt_count[threadIdx.x] = 0;
  double own = 0;
  for (int i = threadIdx.x; i < size.tokens; i += kScanThreads)
    if (key[i] <= kHeaviest) own += static_cast<double>(__uint_as_float(kHeaviest - key[i]));
  const double reduced = MassSum(space.reduce).Sum(own);
  if (threadIdx.x == 0) shared_total = reduced;
  __syncthreads();
  const double total = shared_total;
  double mass_before = 0;
  unsigned prompt_before = 0, needed_total_here[kFractions] = {}, needed_prompt_here[kFractions] = {};
  for (int base = 0; base < size.tokens; base += kScanThreads * kScanItems) {
    std::uint32_t k[kScanItems], t[kScanItems];
    const int left = size.tokens - base;
    Load(space.load).Load(key + base, k, left, kUnseen);
    __syncthreads();
    Load(space.load).Load(token + base, t, left, 0xFFFFFFFFu);
    __syncthreads();
    double before[kScanItems], mass = 0;
    unsigned place[kScanItems], count = 0;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      before[i] = k[i] <= kHeaviest ? static_cast<double>(__uint_as_float(kHeaviest - k[i])) : 0.0;
      place[i] = k[i] <= kHeaviest && t[i] < static_cast<std::uint32_t>(size.prompt) ? 1u : 0u;
    }
    MassScan(space.mass).ExclusiveSum(before, before, mass);
    __syncthreads();
    CountScan(space.count).ExclusiveSum(place, place, count);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      const bool seen = k[i] <= kHeaviest, of_prompt = t[i] < static_cast<std::uint32_t>(size.prompt);
      if (of_prompt)
        by_row[static_cast<std::size_t>(row) * size.prompt + t[i]] = seen ? static_cast<Rank>(prompt_before + place[i]) : static_cast<Rank>(~Rank{0});
      // A token is needed while the mass before it falls short of the fraction.
#pragma unroll
      for (int c = 0; c < kFractions; ++c) {
        const bool needed = seen && mass_before + before[i] < kMass[c] * total;
        needed_total_here[c] += needed ? 1u : 0u;
        needed_prompt_here[c] += needed && of_prompt ? 1u : 0u;
      }
    }
    mass_before += mass;
    prompt_before += count;
  }
  for (int c = 0; c < kFractions; ++c) {  // integers: any order gives the same
    atomicAdd(&total_count[c], needed_total_here[c]);
    atomicAdd(&prompt_count[c], needed_prompt_here[c]);
  }
  __syncthreads();
  if (threadIdx.x < kFractions) {
    needed_total[threadIdx.x * size.stride + row] = total_count[threadIdx.x];
    needed_prompt[threadIdx.x * size.stride + row] = prompt_count[threadIdx.x];
  }
}

template <typename Rank>
__global__ void turn_kernel(const Rank* __restrict__ by_row, Sizes size, Rank* __restrict__ ranks) {
  __shared__ Rank tile[kSlab][kSlab + 2];
  const int token0 = blockIdx.x * kSlab, row0 = blockIdx.y * kSlab;
  for (int r = threadIdx.y; r < kSlab; r += blockDim.y) {
    const int token = token0 + static_cast<int>(threadIdx.x), row = row0 + r;
    if (token < size.prompt && row < size.rows) tile[r][threadIdx.x] = by_row[static_cast<std::size_t>(row) * size.prompt + token];
  }
  __syncthreads();
  for (int t = threadIdx.y; t < kSlab; t += blockDim.y) {
    const int token = token0 + t, row = row0 + static_cast<int>(threadIdx.x);
    if (token < size.prompt && row < size.stride)
      ranks[static_cast<std::size_t>(token) * size.stride + row] = row < size.rows ? tile[threadIdx.x][t] : static_cast<Rank>(~Rank{0});
  }
}

/// Where the segments of the sort begin, without an array.
struct SegmentBegin {
  int tokens;
  __host__ __device__ int operator()(int row) const { return row * tokens; }
};
using Offsets = thrust::transform_iterator<SegmentBegin, thrust::counting_iterator<int>>;

cudaError_t sort(void* space, std::size_t& bytes, std::size_t rows, std::size_t tokens, const std::uint32_t* keys, std::uint32_t* sorted_keys,
                 const std::uint32_t* values, std::uint32_t* sorted_values, cudaStream_t stream) {
  const Offsets begin(thrust::counting_iterator<int>(0), SegmentBegin{static_cast<int>(tokens)});
  return cub::DeviceSegmentedRadixSort::SortPairs(space, bytes, keys, sorted_keys, values, sorted_values,
                                                  static_cast<int>(rows * tokens), static_cast<int>(rows), begin, begin + 1, 0, kKeyBits, stream);
}

}  // namespace

std::size_t sort_bytes(std::size_t rows, std::size_t tokens) {
  std::size_t bytes = 0;
  check(sort(nullptr, bytes, rows, tokens, nullptr, nullptr, nullptr, nullptr, nullptr), "DeviceSegmentedRadixSort");
  return bytes;
}

template <typename Rank>
void launch_ranks(const float* weights, const std::uint32_t* position, const Sizes& size, const Rule& rule, const Ranks<Rank>& out,
                  cudaStream_t stream) {
  const auto slabs = [](int n) { return static_cast<unsigned>((n + kSlab - 1) / kSlab); };
  const dim3 slab(kSlab, 8);
  keys_kernel<<<dim3(slabs(size.tokens), slabs(size.rows)), slab, 0, stream>>>(weights, position, size, rule.window, out.keys, out.tokens);
  check(cudaGetLastError(), "keys_kernel");
  std::size_t bytes = out.sort_bytes;
  check(sort(out.sort_space, bytes, static_cast<std::size_t>(size.rows), static_cast<std::size_t>(size.tokens), out.keys, out.sorted_keys,
             out.tokens, out.sorted_tokens, stream),
        "DeviceSegmentedRadixSort");
  walk_kernel<Rank><<<static_cast<unsigned>(size.rows), kScanThreads, 0, stream>>>(out.sorted_keys, out.sorted_tokens, size, out.by_row,
                                                                                  out.needed_total, out.needed_prompt);
  check(cudaGetLastError(), "walk_kernel");
  turn_kernel<Rank><<<dim3(slabs(size.prompt), slabs(size.stride)), slab, 0, stream>>>(out.by_row, size, out.ranks);
  check(cudaGetLastError(), "turn_kernel");
}

template void launch_ranks(const float*, const std::uint32_t*, const Sizes&, const Rule&, const Ranks<std::uint16_t>&, cudaStream_t);
template void launch_ranks(const float*, const std::uint32_t*, const Sizes&, const Rule&, const Ranks<std::uint32_t>&, cudaStream_t);

}  // namespace kvsim::cuda
