// Sums over rows, 16 at a time: weights of the prompt tokens, and squared changes of outputs by removed
// tokens.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"
#include "kernels/removal.h"

namespace kvsim::cuda {
namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kSumThreads = 256;

/// sum, then the 16 numbers of the lower half warp in a fixed order, then those of the upper one; the same in
/// every lane.
__device__ double with_halves(double sum, double x, int lane, bool upper_counts) {
  for (int step = 1; step < 16; step *= 2) x += __shfl_xor_sync(kAll, x, step);
  const double other = __shfl_xor_sync(kAll, x, 16);
  sum += lane < 16 ? x : other;
  return upper_counts ? sum + (lane < 16 ? other : x) : sum;
}

/// One warp per token.
__global__ void __launch_bounds__(kSumThreads)
    prompt_sums_kernel(const float* __restrict__ weights, int tokens, int stride, int begin, int end,
                       double* __restrict__ sums) {
  const int token = (static_cast<int>(blockIdx.x) * kSumThreads + static_cast<int>(threadIdx.x)) / 32,
            lane = threadIdx.x % 32;
  if (token >= tokens) return;
  const float* const weight = weights + static_cast<std::size_t>(token) * stride;
  double sum = sums[token];
#pragma unroll 4
  for (int row = begin; row < end; row += 32) {
    const double w = row + lane < end ? static_cast<double>(weight[row + lane]) : 0.0;
    sum = with_halves(sum, w, lane, row + 16 < end);
  }
  if (lane == 0) sums[token] = sum;
}

constexpr int kRemovalThreads = 128;
constexpr int kTokens = 64;  // of a block
constexpr int kRows = 32;    // of a step: two times 16
constexpr int kSkew = 4;     // floats after a row of shared memory

/// A thread has 4 tokens x 4 rows: tokens thread / 8 + 16 i, rows 4 (thread % 8) .. + 3.
__global__ void __launch_bounds__(kRemovalThreads)
    removal_kernel(const float* __restrict__ weights, const float* __restrict__ values,
                   const float* __restrict__ exact, Sizes size, int begin, int end,
                   double* __restrict__ squares) {
  extern __shared__ __align__(16) float space[];
  const int columns = size.value_pad, line = columns + kSkew;
  float* const value = space;                    // [kTokens][line]
  float* const output = space + kTokens * line;  // [kRows][line]
  const int token0 = blockIdx.x * kTokens, lane = threadIdx.x % 32;
  const int own_token = threadIdx.x / 8, own_row = threadIdx.x % 8;
  for (int i = threadIdx.x; i < kTokens * columns / 4; i += kRemovalThreads) {
    const int t = i / (columns / 4), c = i % (columns / 4) * 4;
    *reinterpret_cast<float4*>(value + t * line + c) = *reinterpret_cast<const float4*>(
        values + static_cast<std::size_t>(min(token0 + t, size.prompt - 1)) * columns + c);
  }
  double sum[4];
  for (int i = 0; i < 4; ++i) {
    const int token = token0 + own_token + 16 * i;
    sum[i] = token < size.prompt ? squares[token] : 0.0;
  }
  for (int row0 = begin; row0 < end; row0 += kRows) {
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * columns; i += kRemovalThreads) {
      const int r = i / columns, c = i % columns;
      output[r * line + c] = row0 + r < end && c < size.value_dim
                                 ? exact[static_cast<std::size_t>(row0 + r) * size.value_dim + c]
                                 : 0.0f;
    }
    __syncthreads();
    float distance[4][4] = {};
#pragma unroll 2
    for (int c = 0; c < columns; c += 4) {
      float4 v[4], o[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = *reinterpret_cast<const float4*>(value + (own_token + 16 * i) * line + c);
        o[i] = *reinterpret_cast<const float4*>(output + (own_row + 8 * i) * line + c);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float x = v[i].x - o[j].x, y = v[i].y - o[j].y, z = v[i].z - o[j].z, w = v[i].w - o[j].w;
          distance[i][j] = fmaf(w, w, fmaf(z, z, fmaf(y, y, fmaf(x, x, distance[i][j]))));
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = min(token0 + own_token + 16 * i, size.prompt - 1);
      double part[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // rows own_row and own_row + 8 of each 16
        double term = 0;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int row = row0 + own_row + 8 * (2 * half + j);
          if (row < end) {
            const double a =
                static_cast<double>(weights[static_cast<std::size_t>(token) * size.stride + row]);
            const double share = a / fmax(1.0 - a, kLeastRest);
            term += share * share * static_cast<double>(distance[i][2 * half + j]);
          }
        }
        for (int step = 1; step < 8; step *= 2) term += __shfl_xor_sync(kAll, term, step);
        part[half] = term;
      }
      sum[i] += part[0];
      if (row0 + 16 < end) sum[i] += part[1];
    }
  }
  if (lane % 8 == 0)
    for (int i = 0; i < 4; ++i) {
      const int token = token0 + own_token + 16 * i;
      if (token < size.prompt) squares[token] = sum[i];
    }
}

}  // namespace

void launch_prompt_sums(const float* weights, int tokens, int stride, int begin, int end, double* sums,
                        cudaStream_t stream) {
  const auto blocks =
      static_cast<unsigned>((static_cast<std::size_t>(tokens) * 32 + kSumThreads - 1) / kSumThreads);
  prompt_sums_kernel<<<blocks, kSumThreads, 0, stream>>>(weights, tokens, stride, begin, end, sums);
  check(cudaGetLastError(), "prompt_sums_kernel");
}

void launch_removal_squares(const float* weights, const float* values, const float* exact, const Sizes& size,
                            int begin, int end, double* squares, cudaStream_t stream) {
  const int bytes = (kTokens + kRows) * (size.value_pad + kSkew) * static_cast<int>(sizeof(float));
  check(cudaFuncSetAttribute(removal_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "cudaFuncSetAttribute");
  removal_kernel<<<static_cast<unsigned>((size.prompt + kTokens - 1) / kTokens), kRemovalThreads,
                   static_cast<std::size_t>(bytes), stream>>>(weights, values, exact, size, begin, end,
                                                              squares);
  check(cudaGetLastError(), "removal_kernel");
}

}  // namespace kvsim::cuda
