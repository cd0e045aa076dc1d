// Ranks and needed sets of long rows: a segmented radix sort in memory over all tokens of some rows.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <cub/block/block_load.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"
#include "kernels/cuda/ranks.cuh"
#include "kernels/cuda/softmax.cuh"

namespace kvsim::cuda {
namespace {

constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;

/// Row-major keys, ascending = heaviest first; the sort is stable, so ties stay in the order of positions.
__global__ void keys_kernel(Softmax in, const std::uint32_t* __restrict__ position, Sizes size,
                            unsigned window, int first, std::uint32_t* __restrict__ keys,
                            std::uint32_t* __restrict__ tokens) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
            row = first + static_cast<int>(blockIdx.y);
  if (token >= size.tokens) return;
  const Seen seen = seen_by(position[row], window, size.tokens);
  std::uint32_t key = kUnseen;
  if (token >= seen.first && token < seen.last) {
    const std::size_t slice =
        static_cast<std::size_t>(row) * (size.token_stride / kSoftmaxSlice) + token / kSoftmaxSlice;
    const Factor factor = factor_of_slice(factor_of_row(in.inverse[row]), in.exponent[slice] - in.most[row]);
    key = key_of(weight_of(in.part[static_cast<std::size_t>(row) * size.token_stride + token], factor));
  }
  const std::size_t to = static_cast<std::size_t>(blockIdx.y) * size.tokens + token;
  keys[to] = key;
  tokens[to] = static_cast<std::uint32_t>(token);
}

/// Walks one sorted row: ranks of the prompt tokens, and how long the needed sets are.
template <typename Rank>
__global__ void __launch_bounds__(kScanThreads)
    walk_kernel(const std::uint32_t* __restrict__ keys, const std::uint32_t* __restrict__ tokens, Sizes size,
                int first, Ranks<Rank> out) {
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
  const int row = first + static_cast<int>(blockIdx.x);
  const std::uint32_t* const key = keys + static_cast<std::size_t>(blockIdx.x) * size.tokens;
  const std::uint32_t* const token = tokens + static_cast<std::size_t>(blockIdx.x) * size.tokens;
  if (threadIdx.x < kFractions) total_count[threadIdx.x] = prompt_count[threadIdx.x] = 0;
  double own = 0;
  for (int i = threadIdx.x; i < size.tokens; i += kScanThreads)
    if (key[i] <= kHeaviest) own += weight_of_key(key[i]);
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
      before[i] = k[i] <= kHeaviest ? weight_of_key(k[i]) : 0.0;
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
        out.ranks[static_cast<std::size_t>(row) * size.rank_stride + t[i]] =
            seen ? static_cast<Rank>(prompt_before + place[i]) : static_cast<Rank>(~Rank{0});
        // A token is needed while the mass before it falls short of the fraction.
#pragma unroll
      for (int c = 0; c < kFractions; ++c) {
        const bool needed = seen && mass_before + before[i] < kNeededMass[c] * total;
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
    out.needed_total[threadIdx.x * size.stride + row] = total_count[threadIdx.x];
    out.needed_prompt[threadIdx.x * size.stride + row] = prompt_count[threadIdx.x];
  }
}

/// Where the segments of the sort begin, without an array.
struct SegmentBegin {
  int tokens;
  __host__ __device__ int operator()(int row) const { return row * tokens; }
};
using Offsets = thrust::transform_iterator<SegmentBegin, thrust::counting_iterator<int>>;

cudaError_t sort(void* space, std::size_t& bytes, std::size_t rows, std::size_t tokens,
                 const std::uint32_t* keys, std::uint32_t* sorted_keys, const std::uint32_t* values,
                 std::uint32_t* sorted_values, cudaStream_t stream) {
  const Offsets begin(thrust::counting_iterator<int>(0), SegmentBegin{static_cast<int>(tokens)});
  return cub::DeviceSegmentedRadixSort::SortPairs(space, bytes, keys, sorted_keys, values, sorted_values,
                                                  static_cast<int>(rows * tokens), static_cast<int>(rows),
                                                  begin, begin + 1, 0, kKeyBits, stream);
}

}  // namespace

std::size_t long_rank_bytes(std::size_t rows, std::size_t tokens) {
  std::size_t bytes = 0;
  check(sort(nullptr, bytes, rows, tokens, nullptr, nullptr, nullptr, nullptr, nullptr),
        "DeviceSegmentedRadixSort");
  return 4 * padded(rows * tokens, 64) * sizeof(std::uint32_t) + bytes;
}

template <typename Rank>
void launch_long_ranks(const Softmax& softmax, const std::uint32_t* position, const Sizes& size,
                       const Rule& rule, int first, int last, void* scratch, const Ranks<Rank>& out,
                       cudaStream_t stream) {
  const auto rows = static_cast<std::size_t>(last - first), tokens = static_cast<std::size_t>(size.tokens);
  const std::size_t each = padded(rows * tokens, 64);
  auto* const keys = static_cast<std::uint32_t*>(scratch);
  std::uint32_t *const sorted_keys = keys + each, *const place = sorted_keys + each,
                       *const sorted_place = place + each;
  constexpr unsigned kThreads = 256;
  const dim3 grid((static_cast<unsigned>(size.tokens) + kThreads - 1) / kThreads,
                  static_cast<unsigned>(rows));
  keys_kernel<<<grid, kThreads, 0, stream>>>(softmax, position, size, rule.window, first, keys, place);
  check(cudaGetLastError(), "keys_kernel");
  std::size_t bytes = long_rank_bytes(rows, tokens) - 4 * each * sizeof(std::uint32_t);
  check(sort(sorted_place + each, bytes, rows, tokens, keys, sorted_keys, place, sorted_place, stream),
        "DeviceSegmentedRadixSort");
  walk_kernel<Rank>
      <<<static_cast<unsigned>(rows), kScanThreads, 0, stream>>>(sorted_keys, sorted_place, size, first, out);
  check(cudaGetLastError(), "walk_kernel");
}

template void launch_long_ranks(const Softmax&, const std::uint32_t*, const Sizes&, const Rule&, int, int,
                                void*, const Ranks<std::uint16_t>&, cudaStream_t);
template void launch_long_ranks(const Softmax&, const std::uint32_t*, const Sizes&, const Rule&, int, int,
                                void*, const Ranks<std::uint32_t>&, cudaStream_t);

}  // namespace kvsim::cuda
