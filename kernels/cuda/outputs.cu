// Exact outputs of a head: weights times values on the tensor cores in double, chunk by chunk of tokens.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 16;    // tokens of a step
constexpr int kStages = 4;    // steps in flight
constexpr int kChunk = 1024;  // tokens that one block adds up
constexpr int kSkew =
    8;  // floats after a row of shared memory: four tokens of a fragment lie in different banks

/// Tokens of a chunk: prompt chunks first, then decode chunks, so that no chunk holds both.
__device__ void chunk_range(int chunk, int prompt, int tokens, int& first, int& last) {
  const int of_prompt = (prompt + kChunk - 1) / kChunk;
  if (chunk < of_prompt) {
    first = chunk * kChunk;
    last = min(prompt, first + kChunk);
  } else {
    first = prompt + (chunk - of_prompt) * kChunk;
    last = min(tokens, first + kChunk);
  }
}

/// partial[chunk][row][column] = sum over the chunk's tokens of weight * value. Warps of 32 rows x 32
/// columns.
template <int WarpRows, int WarpColumns>
__global__ void __launch_bounds__(kThreads, 2)
    outputs_kernel(const float* __restrict__ weights, const float* __restrict__ values, Sizes size,
                   double* __restrict__ partial) {
  static_assert(WarpRows * WarpColumns * 32 == kThreads);
  constexpr int kRows = WarpRows * 32, kColumns = WarpColumns * 32;
  constexpr int kRowFloats = kRows + kSkew, kColumnFloats = kColumns + kSkew;
  constexpr int kStageFloats = kDepth * (kRowFloats + kColumnFloats);
  extern __shared__ __align__(16) float space[];
  const int row0 = blockIdx.x * kRows, column0 = blockIdx.y * kColumns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int warp_row = warp % WarpRows * 32, warp_column = warp / WarpRows * 32;
  int first = 0, last = 0;
  chunk_range(blockIdx.z, size.prompt, size.tokens, first, last);
  const int steps = (last - first + kDepth - 1) / kDepth;
  const auto fetch = [&](int step) {
    if (step < steps) {
      float* const stage = space + step % kStages * kStageFloats;
      constexpr int kPerToken = (kRows + kColumns) / 4;
      for (int i = threadIdx.x; i < kDepth * kPerToken; i += kThreads) {
        const int t = i / kPerToken, c = i % kPerToken * 4, token = first + step * kDepth + t;
        const bool present = token < last;
        const std::size_t at = static_cast<std::size_t>(min(token, last - 1));
        if (c < kRows) {  // the stride of the rows has a block to spare
          copy_16_async(stage + t * kRowFloats + c, weights + at * size.stride + row0 + c, present);
        } else {
          copy_16_async(stage + kDepth * kRowFloats + t * kColumnFloats + c - kRows,
                        values + at * size.value_pad + column0 + c - kRows, present);
        }
      }
    }
    commit_async();
  };
  double sum[2][4][4] = {};
  for (int s = 0; s < kStages - 1; ++s) fetch(s);
  for (int step = 0; step < steps; ++step) {
    wait_async<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    const float* const weight = space + step % kStages * kStageFloats + warp_row + g;
    const float* const value = space + step % kStages * kStageFloats + kDepth * kRowFloats + warp_column + g;
    double a[2][8];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) a[m][2 * j + h] = weight[(q + 4 * j) * kRowFloats + 16 * m + 8 * h];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      double b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = value[(q + 4 * j) * kColumnFloats + 8 * n];
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply_double(sum[m][n], a[m], b);
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + warp_row + 16 * m + 8 * h + g;
      if (row >= size.rows) continue;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        *reinterpret_cast<double2*>(
            partial + (static_cast<std::size_t>(blockIdx.z) * size.rows + row) * size.value_pad + column0 +
            warp_column + 8 * n + 2 * q) = make_double2(sum[m][n][2 * h], sum[m][n][2 * h + 1]);
    }
}

/// Joins the chunks in order; one block per row.
__global__ void outputs_join_kernel(const double* __restrict__ partial, Sizes size, int prompt_chunks,
                                    int chunks, float* __restrict__ exact, float* __restrict__ tail,
                                    double* __restrict__ norm) {
  const int row = blockIdx.x;
  __shared__ double squares[256];
  double square = 0;
  for (int c = threadIdx.x; c < size.value_dim; c += blockDim.x) {
    double of_prompt = 0, of_tail = 0;
    for (int k = 0; k < chunks; ++k) {
      const double x = partial[(static_cast<std::size_t>(k) * size.rows + row) * size.value_pad + c];
      (k < prompt_chunks ? of_prompt : of_tail) += x;
    }
    const std::size_t at = static_cast<std::size_t>(row) * size.value_dim + c;
    tail[at] = static_cast<float>(of_tail);
    exact[at] = static_cast<float>(of_prompt + of_tail);
    square += static_cast<double>(exact[at]) * static_cast<double>(exact[at]);
  }
  squares[threadIdx.x] = square;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) squares[threadIdx.x] += squares[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) norm[row] = squares[0];
}

constexpr int kTailRows = 32, kTailParts = 8;

/// Weight of the tokens behind the prompt: parts of them side by side, joined in order.
__global__ void __launch_bounds__(kTailRows* kTailParts)
    tail_weight_kernel(const float* __restrict__ weights, Sizes size, float* __restrict__ tail_weight) {
  __shared__ double parts[kTailParts][kTailRows];
  const int row = static_cast<int>(blockIdx.x * kTailRows + threadIdx.x),
            part = static_cast<int>(threadIdx.y);
  double sum = 0;
#pragma unroll 4
  for (int t = size.prompt + part; t < size.tokens; t += kTailParts)
    sum += weights[static_cast<std::size_t>(t) * size.stride + row];
  parts[part][threadIdx.x] = sum;
  __syncthreads();
  if (part > 0) return;
  for (int p = 1; p < kTailParts; ++p) sum += parts[p][threadIdx.x];
  tail_weight[row] = static_cast<float>(sum);
}

unsigned blocks(int n, int per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); }

template <int WarpRows, int WarpColumns>
void launch_partial(const float* weights, const float* values, const Sizes& size, int chunks, double* partial,
                    cudaStream_t stream) {
  constexpr int kRows = WarpRows * 32, kColumns = WarpColumns * 32;
  constexpr int kBytes = kStages * kDepth * (kRows + kColumns + 2 * kSkew) * static_cast<int>(sizeof(float));
  const auto kernel = outputs_kernel<WarpRows, WarpColumns>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  const dim3 tiles(blocks(size.rows, kRows), static_cast<unsigned>(size.value_pad / kColumns),
                   static_cast<unsigned>(chunks));
  kernel<<<tiles, kThreads, kBytes, stream>>>(weights, values, size, partial);
  check(cudaGetLastError(), "outputs_kernel");
}

}  // namespace

std::size_t output_chunks(std::size_t prompt, std::size_t tokens) {
  return (prompt + kChunk - 1) / kChunk + (tokens - prompt + kChunk - 1) / kChunk;
}

void launch_outputs(const float* weights, const float* values, const Sizes& size, const Outputs& out,
                    cudaStream_t stream) {
  const auto chunks = static_cast<int>(
      output_chunks(static_cast<std::size_t>(size.prompt), static_cast<std::size_t>(size.tokens)));
  if (size.value_pad == 64) {
    launch_partial<4, 2>(weights, values, size, chunks, out.partial, stream);
  } else {
    launch_partial<2, 4>(weights, values, size, chunks, out.partial, stream);
  }
  outputs_join_kernel<<<size.rows, 128, 0, stream>>>(out.partial, size, blocks(size.prompt, kChunk), chunks,
                                                     out.exact, out.tail, out.norm);
  check(cudaGetLastError(), "outputs_join_kernel");
  tail_weight_kernel<<<static_cast<unsigned>(size.stride / kTailRows), dim3(kTailRows, kTailParts), 0,
                       stream>>>(weights, size, out.tail_weight);
  check(cudaGetLastError(), "tail_weight_kernel");
}

}  // namespace kvsim::cuda
