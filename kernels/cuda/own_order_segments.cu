// What stands around the masked products of own_order_hopper.cu: budgets of tokens before them, comparisons after them.
#include <math_constants.h>

#include "kernels/cuda/own_order.cuh"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCompareThreads = 128;
constexpr float kFloor = 1e-18f;

/// Ranks, along tokens, to budgets, along rows: a block turns 32 rows x 32 tokens.
template <typename Rank>
__global__ void __launch_bounds__(kThreads) budgets_kernel(OwnOrderArguments<Rank> in, __half* __restrict__ budgets) {
  __shared__ std::uint32_t limit[kMostMaskedCounts];
  __shared__ __half turned[32][34];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row0 = static_cast<int>(blockIdx.y) * 32, token0 = static_cast<int>(blockIdx.x) * 32;
  if (static_cast<int>(threadIdx.x) < in.count) limit[threadIdx.x] = in.counts[threadIdx.x];
  __syncthreads();
  for (int i = warp; i < 32; i += kThreads / 32) {
    int low = 0, high = in.count;  // the first budget whose count is above the rank; in.count where none is
    if (row0 + i < in.rows && token0 + lane < in.prompt) {
      const std::uint32_t rank = in.ranks[static_cast<std::size_t>(row0 + i) * in.rank_stride + token0 + lane];
      while (low < high) {
        const int middle = (low + high) / 2;
        if (limit[middle] > rank) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
    } else {
      low = in.count;
    }
    turned[i][lane] = __int2half_rn(low);
  }
  __syncthreads();
  for (int i = warp; i < 32 && token0 + i < in.prompt; i += kThreads / 32)
    budgets[static_cast<std::size_t>(token0 + i) * in.stride + row0 + lane] = turned[lane][i];
}

/// A warp per row: adds up parts and segments, and compares.
template <int Width, typename Rank>
__global__ void __launch_bounds__(kCompareThreads)
    compare_kernel(OwnOrderArguments<Rank> in, const float* __restrict__ sums, const float* __restrict__ masses, int rows, int parts) {
  constexpr int kMine = Width / 32;
  const int row = static_cast<int>(blockIdx.x) * (kCompareThreads / 32) + static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= in.rows) return;
  float sum[kMine], exact[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int c = i * 32 + lane;
    const std::size_t at = static_cast<std::size_t>(row) * in.value_dim + c;
    sum[i] = c < in.value_dim ? in.tail[at] : 0.0f;
    exact[i] = c < in.value_dim ? in.exact[at] : 0.0f;
  }
  float held = in.tail_weight[row];
  const double norm = in.norm[row];
  for (int b = 0; b < in.count; ++b) {
    for (int part = 0; part < parts; ++part) {
      const std::size_t at = (static_cast<std::size_t>(part) * in.count + b) * rows + row;
      held += masses[at];
#pragma unroll
      for (int i = 0; i < kMine; ++i) sum[i] += sums[at * Width + i * 32 + lane];
    }
    const float factor = held > 0 ? 1.0f / held : 0.0f;
    float square = 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int c = i * 32 + lane;
      const float difference = sum[i] * factor - exact[i];
      square = fmaf(difference, difference, square);
      if (in.delta != nullptr && c < in.value_dim)
        in.delta[(static_cast<std::size_t>(b) * in.value_dim + c) * in.result_stride + row] = difference;
    }
    for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
    if (lane == 0) {
      const double of = static_cast<double>(square);
      const std::size_t to = static_cast<std::size_t>(b) * in.result_stride + row;
      in.error[to] = held < kFloor ? CUDART_NAN_F : static_cast<float>(sqrt(norm > 0 ? of / norm : of));
      in.recall[to] = held;
    }
  }
}

template <int Width, typename Rank>
void compare(const OwnOrderArguments<Rank>& in, const float* sums, const float* masses, int rows, int parts, cudaStream_t stream) {
  constexpr int kWarps = kCompareThreads / 32;
  compare_kernel<Width>
      <<<static_cast<unsigned>((in.rows + kWarps - 1) / kWarps), kCompareThreads, 0, stream>>>(in, sums, masses, rows, parts);
  check(cudaGetLastError(), "compare_kernel");
}

}  // namespace

template <typename Rank>
void launch_budgets(const OwnOrderArguments<Rank>& in, int rows, __half* budgets, cudaStream_t stream) {
  const dim3 tiles(static_cast<unsigned>((in.prompt + 31) / 32), static_cast<unsigned>(rows / 32));
  budgets_kernel<Rank><<<tiles, kThreads, 0, stream>>>(in, budgets);
  check(cudaGetLastError(), "budgets_kernel");
}

template <typename Rank>
void launch_compare_segments(const OwnOrderArguments<Rank>& in, const float* sums, const float* masses, int rows, int parts,
                             cudaStream_t stream) {
  switch (padded_value_dim(in.value_dim)) {
    case 64:
      return compare<64>(in, sums, masses, rows, parts, stream);
    case 128:
      return compare<128>(in, sums, masses, rows, parts, stream);
    default:
      return compare<256>(in, sums, masses, rows, parts, stream);
  }
}

template void launch_budgets(const OwnOrderArguments<std::uint16_t>&, int, __half*, cudaStream_t);
template void launch_budgets(const OwnOrderArguments<std::uint32_t>&, int, __half*, cudaStream_t);
template void launch_compare_segments(const OwnOrderArguments<std::uint16_t>&, const float*, const float*, int, int, cudaStream_t);
template void launch_compare_segments(const OwnOrderArguments<std::uint32_t>&, const float*, const float*, int, int, cudaStream_t);

}  // namespace kvsim::cuda
