// The curve where every row keeps its own best tokens, for any GPU and any number of counts.
//
// Weights are first put into the order of each row's ranks, then a block walks one row's order: every warp takes 32 tokens at a
// time, its lanes share the channels. Nothing is shared between rows, so the values that 1024 rows x 32768 tokens x 128 channels
// gather are 8.6 GB, which the second-level cache delivers in about 1.6 ms; counts cost next to nothing.
#include <math_constants.h>

#include <algorithm>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBatch = 8;  // value rows that a warp asks for together
constexpr float kFloor = 1e-18f;

/// sorted[row - row_begin][rank] = (token, weight) for ranks below `most`; what no token has stays as it was. A block turns 32 rows
/// x 32 tokens: ranks lie along tokens, weights along rows.
template <typename Rank>
__global__ void __launch_bounds__(kThreads)
    sort_kernel(OwnOrderArguments<Rank> in, int row_begin, int row_end, std::uint32_t most, uint2* __restrict__ sorted) {
  __shared__ std::uint32_t turned[32][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = row_begin + static_cast<int>(blockIdx.y) * 32;
  const int token0 = static_cast<int>(blockIdx.x) * 32;
  for (int i = warp; i < 32; i += kWarps)
    if (row0 + i < row_end && token0 + lane < in.prompt)
      turned[i][lane] = in.ranks[static_cast<std::size_t>(row0 + i) * in.rank_stride + token0 + lane];
  __syncthreads();
  const int row = row0 + lane;
  if (row >= row_end) return;
  for (int i = warp; i < 32 && token0 + i < in.prompt; i += kWarps) {
    const std::uint32_t rank = turned[lane][i];
    if (rank >= most) continue;
    const std::size_t at = static_cast<std::size_t>(token0 + i) * in.stride + row;
    const float weight = __bfloat162float(in.weight_high[at]) + __bfloat162float(in.weight_low[at]);
    sorted[static_cast<std::size_t>(row - row_begin) * most + rank] =
        make_uint2(static_cast<std::uint32_t>(token0 + i), __float_as_uint(weight));
  }
}

/// Channels lane * kMine .. of a value row.
template <int Mine>
__device__ __forceinline__ void load_values(const __nv_bfloat16* from, float (&to)[Mine]) {
  std::uint32_t words[Mine / 2];
  if constexpr (Mine == 2) {
    words[0] = *reinterpret_cast<const std::uint32_t*>(from);
  } else if constexpr (Mine == 4) {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    words[0] = two.x;
    words[1] = two.y;
  } else {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    words[0] = four.x;
    words[1] = four.y;
    words[2] = four.z;
    words[3] = four.w;
  }
#pragma unroll
  for (int i = 0; i < Mine / 2; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

/// Sums of the warps at a snapshot, and what warp 0 makes of them.
template <int Mine, typename Rank>
__device__ void finish(const OwnOrderArguments<Rank>& in, int row, int snapshot, const float (*parts)[32 * Mine], const float* masses) {
  const int lane = threadIdx.x % 32;
  float held = in.tail_weight[row];
  for (int w = 0; w < kWarps; ++w) held += masses[w];
  const float factor = held > 0 ? 1.0f / held : 0.0f;
  float square = 0;
#pragma unroll
  for (int i = 0; i < Mine; ++i) {
    const int c = lane * Mine + i;
    if (c >= in.value_dim) continue;
    const std::size_t at = static_cast<std::size_t>(row) * in.value_dim + c;
    float sum = in.tail[at];
    for (int w = 0; w < kWarps; ++w) sum += parts[w][c];
    const float difference = sum * factor - in.exact[at];
    square = fmaf(difference, difference, square);
    if (in.delta != nullptr) in.delta[(static_cast<std::size_t>(snapshot) * in.value_dim + c) * in.result_stride + row] = difference;
  }
  for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
  if (lane != 0) return;
  const double norm = in.norm[row], of = static_cast<double>(square);
  const std::size_t to = static_cast<std::size_t>(snapshot) * in.result_stride + row;
  in.error[to] = held < kFloor ? CUDART_NAN_F : static_cast<float>(sqrt(norm > 0 ? of / norm : of));
  in.recall[to] = held;
}

template <int Mine, typename Rank>
__global__ void __launch_bounds__(kThreads)
    walk_order_kernel(OwnOrderArguments<Rank> in, int row_begin, std::uint32_t most, const uint2* __restrict__ sorted) {
  constexpr int kWidth = 32 * Mine;
  __shared__ float parts[2][kWarps][kWidth], masses[2][kWarps];  // two: warps go on while the first reads
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = row_begin + static_cast<int>(blockIdx.x);
  const uint2* const order = sorted + static_cast<std::size_t>(blockIdx.x) * most;
  float sum[Mine] = {}, mass = 0;
  std::uint32_t begin = 0;
  for (int b = 0; b < in.count; ++b) {
    const std::uint32_t end = in.counts[b];
    for (std::uint32_t first = begin + static_cast<std::uint32_t>(warp) * 32; first < end; first += kThreads) {
      const std::uint32_t at = first + static_cast<std::uint32_t>(lane);
      const uint2 mine = at < end ? order[at] : make_uint2(0, 0);
      mass += __uint_as_float(mine.y);
      for (int j = 0; j < 32; j += kBatch) {
        if (first + static_cast<std::uint32_t>(j) >= end) break;
        float value[kBatch][Mine];
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const std::size_t from =
              static_cast<std::size_t>(__shfl_sync(0xffffffffu, mine.x, j + k)) * kWidth + static_cast<std::size_t>(lane) * Mine;
          load_values<Mine>(in.value_high + from, value[k]);
          if (in.value_low != nullptr) {
            float low[Mine];
            load_values<Mine>(in.value_low + from, low);
#pragma unroll
            for (int i = 0; i < Mine; ++i) value[k][i] += low[i];
          }
        }
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
          const float weight = __uint_as_float(__shfl_sync(0xffffffffu, mine.y, j + k));
#pragma unroll
          for (int i = 0; i < Mine; ++i) sum[i] = fmaf(weight, value[k][i], sum[i]);
        }
      }
    }
    begin = end;
    float all = mass;
    for (int step = 16; step > 0; step /= 2) all += __shfl_xor_sync(0xffffffffu, all, step);
    if (lane == 0) masses[b % 2][warp] = all;
#pragma unroll
    for (int i = 0; i < Mine; ++i) parts[b % 2][warp][lane * Mine + i] = sum[i];
    __syncthreads();
    if (warp == 0) finish<Mine>(in, row, b, parts[b % 2], masses[b % 2]);
  }
}

template <typename Rank>
void walk(const OwnOrderArguments<Rank>& in, int row_begin, int rows, std::uint32_t most, const uint2* sorted, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(rows);
  switch (padded_value_dim(in.value_dim)) {
    case 64:
      walk_order_kernel<2><<<blocks, kThreads, 0, stream>>>(in, row_begin, most, sorted);
      break;
    case 128:
      walk_order_kernel<4><<<blocks, kThreads, 0, stream>>>(in, row_begin, most, sorted);
      break;
    default:
      walk_order_kernel<8><<<blocks, kThreads, 0, stream>>>(in, row_begin, most, sorted);
  }
  check(cudaGetLastError(), "walk_order_kernel");
}

/// Rows whose orders fit into the scratch.
std::size_t rows_at_once(std::size_t rows, std::uint32_t most) {
  constexpr std::size_t kScratch = std::size_t{256} << 20;
  return std::clamp<std::size_t>(kScratch / (sizeof(uint2) * std::max(most, 1u)), 1, rows);
}

}  // namespace

std::size_t walk_order_bytes(std::size_t rows, std::uint32_t most) { return rows_at_once(rows, most) * std::max(most, 1u) * sizeof(uint2); }

template <typename Rank>
void launch_walk_order(const OwnOrderArguments<Rank>& in, std::uint32_t most, void* scratch, cudaStream_t stream) {
  auto* const sorted = static_cast<uint2*>(scratch);
  const int at_once = static_cast<int>(rows_at_once(static_cast<std::size_t>(in.rows), most));
  for (int row = 0; row < in.rows; row += at_once) {
    const int rows = std::min(at_once, in.rows - row);
    // A row may see fewer tokens than a count asks for: the rest weighs nothing.
    check(cudaMemsetAsync(sorted, 0, static_cast<std::size_t>(rows) * most * sizeof(uint2), stream), "cudaMemset");
    const dim3 grid(static_cast<unsigned>((in.prompt + 31) / 32), static_cast<unsigned>((rows + 31) / 32));
    sort_kernel<Rank><<<grid, kThreads, 0, stream>>>(in, row, row + rows, most, sorted);
    check(cudaGetLastError(), "sort_kernel");
    walk(in, row, rows, most, sorted, stream);
  }
}

std::size_t own_order_bytes(const Sizes& size, std::size_t count, std::uint32_t most) {
  return masked_order_pays(count) ? masked_order_bytes(size, count) : walk_order_bytes(static_cast<std::size_t>(size.rows), most);
}

template <typename Rank>
void launch_own_order(const OwnOrderArguments<Rank>& in, std::uint32_t most, void* scratch, cudaStream_t stream) {
  if (masked_order_pays(static_cast<std::size_t>(in.count))) {
    launch_masked_order(in, scratch, stream);
  } else {
    launch_walk_order(in, most, scratch, stream);
  }
}

template void launch_own_order(const OwnOrderArguments<std::uint16_t>&, std::uint32_t, void*, cudaStream_t);
template void launch_own_order(const OwnOrderArguments<std::uint32_t>&, std::uint32_t, void*, cudaStream_t);
template void launch_walk_order(const OwnOrderArguments<std::uint16_t>&, std::uint32_t, void*, cudaStream_t);
template void launch_walk_order(const OwnOrderArguments<std::uint32_t>&, std::uint32_t, void*, cudaStream_t);

}  // namespace kvsim::cuda
