// Exact attention weights and outputs of a head: logits, softmax sums and outputs in double.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kTile = 64;          // tokens x rows, or rows x columns, of a block
constexpr int kDepth = 16;         // of a shared tile
constexpr int kThreads = 256;      // 16 x 16, 4 x 4 results each
constexpr int kSoftmaxChunk = 512;  // tokens that one block reduces
constexpr int kOutputChunk = 1024;

__device__ bool visible(unsigned token, unsigned position, unsigned window) {
  return token <= position && (window == 0 || token + window > position);
}

/// logits[token][row] = rule(q . k), -inf where the row does not see the token.
__global__ void __launch_bounds__(kThreads) logits_kernel(const float* __restrict__ keys, const float* __restrict__ queries,
                                                          const std::uint32_t* __restrict__ position, Sizes size, Rule rule,
                                                          double* __restrict__ logits) {
  __shared__ double key_tile[kDepth][kTile + 2], query_tile[kDepth][kTile + 2];  // double: conversions are slow, so one per block
  const int token0 = blockIdx.x * kTile, row0 = blockIdx.y * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  double sum[4][4] = {};
  for (int c0 = 0; c0 < size.key_dim; c0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
      const int at = i / kDepth, c = i % kDepth;
      const bool in = c0 + c < size.key_dim;
      key_tile[c][at] = in && token0 + at < size.tokens ? keys[static_cast<std::size_t>(token0 + at) * size.key_dim + c0 + c] : 0.0f;
      query_tile[c][at] = in && row0 + at < size.rows ? queries[static_cast<std::size_t>(row0 + at) * size.key_dim + c0 + c] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kDepth; ++c) {
      double k[4], q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        k[i] = key_tile[c][ty + 16 * i];  // strided by 16: no two lanes in one bank
        q[i] = query_tile[c][tx + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fma(k[i], q[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = token0 + ty + 16 * i;
    if (token >= size.tokens) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = row0 + tx + 16 * j;
      if (row >= size.stride) continue;
      double logit = sum[i][j] * rule.scale;
      if (rule.softcap > 0) logit = rule.softcap * tanh(logit / rule.softcap);
      const bool seen = row < size.rows && visible(token, position[row], rule.window);
      logits[static_cast<std::size_t>(token) * size.stride + row] = seen ? logit : -INFINITY;
    }
  }
}

/// Maximum and sum of exponentials of a chunk of tokens, per row.
__global__ void softmax_partial_kernel(const double* __restrict__ logits, Sizes size, double* __restrict__ partial) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= size.stride) return;
  const int first = blockIdx.y * kSoftmaxChunk, last = min(size.tokens, first + kSoftmaxChunk);
  double most = -INFINITY, sum = 0;
  for (int t = first; t < last; ++t) most = fmax(most, logits[static_cast<std::size_t>(t) * size.stride + row]);
  if (most > -INFINITY)
    for (int t = first; t < last; ++t) sum += exp(logits[static_cast<std::size_t>(t) * size.stride + row] - most);
  partial[(2 * static_cast<std::size_t>(blockIdx.y)) * size.stride + row] = most;
  partial[(2 * static_cast<std::size_t>(blockIdx.y) + 1) * size.stride + row] = sum;
}

/// Joins the chunks in order: afterwards partial[0] holds the maximum and partial[1] the sum.
__global__ void softmax_join_kernel(Sizes size, int chunks, double* __restrict__ partial) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= size.stride) return;
  double most = -INFINITY, sum = 0;
  for (int c = 0; c < chunks; ++c) most = fmax(most, partial[2 * static_cast<std::size_t>(c) * size.stride + row]);
  for (int c = 0; c < chunks; ++c) {
    const double of_chunk = partial[2 * static_cast<std::size_t>(c) * size.stride + row];
    if (of_chunk > -INFINITY) sum += partial[(2 * static_cast<std::size_t>(c) + 1) * size.stride + row] * exp(of_chunk - most);
  }
  partial[row] = most;
  partial[size.stride + row] = sum;
}

__global__ void softmax_write_kernel(const double* __restrict__ logits, const double* __restrict__ joined, Sizes size,
                                     float* __restrict__ weights, __nv_bfloat16* __restrict__ high, __nv_bfloat16* __restrict__ low) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= size.stride) return;
  const double most = joined[row], sum = joined[size.stride + row];
  const int first = blockIdx.y * kSoftmaxChunk, last = min(size.tokens, first + kSoftmaxChunk);
  for (int t = first; t < last; ++t) {
    const std::size_t at = static_cast<std::size_t>(t) * size.stride + row;
    const float w = sum > 0 ? static_cast<float>(exp(logits[at] - most) / sum) : 0.0f;
    weights[at] = w;
    if (t < size.prompt) {
      const __nv_bfloat16 top = __float2bfloat16_rn(w);
      high[at] = top;
      low[at] = __float2bfloat16_rn(w - __bfloat162float(top));
    }
  }
}

/// Tokens of a chunk: prompt chunks first, then decode chunks, so that no chunk holds both.
__device__ __host__ inline void chunk_range(int chunk, int prompt, int tokens, int& first, int& last) {
  const int of_prompt = (prompt + kOutputChunk - 1) / kOutputChunk;
  if (chunk < of_prompt) {
    first = chunk * kOutputChunk;
    last = min(prompt, first + kOutputChunk);
  } else {
    first = prompt + (chunk - of_prompt) * kOutputChunk;
    last = min(tokens, first + kOutputChunk);
  }
}

/// partial[chunk][row][column] = sum over the chunk's tokens of weight * value, in token order.
__global__ void __launch_bounds__(kThreads) outputs_kernel(const float* __restrict__ weights, const float* __restrict__ values, Sizes size,
                                                           double* __restrict__ partial) {
  __shared__ double weight_tile[kDepth][kTile + 2], value_tile[kDepth][kTile + 2];
  const int row0 = blockIdx.x * kTile, col0 = blockIdx.y * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  int first = 0, last = 0;
  chunk_range(blockIdx.z, size.prompt, size.tokens, first, last);
  double sum[4][4] = {};
  for (int t0 = first; t0 < last; t0 += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
      const int t = i / kTile, at = i % kTile;
      const bool in = t0 + t < last;
      weight_tile[t][at] = in && row0 + at < size.stride ? weights[static_cast<std::size_t>(t0 + t) * size.stride + row0 + at] : 0.0f;
      value_tile[t][at] = in && col0 + at < size.value_dim ? values[static_cast<std::size_t>(t0 + t) * size.value_dim + col0 + at] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kDepth; ++t) {
      double w[4], v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] = weight_tile[t][ty + 16 * i];
        v[i] = value_tile[t][tx + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fma(w[i], v[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = row0 + ty + 16 * i, col = col0 + tx + 16 * j;
      if (row < size.rows && col < size.value_dim)
        partial[(static_cast<std::size_t>(blockIdx.z) * size.rows + row) * size.value_dim + col] = sum[i][j];
    }
}

/// Joins the chunks in order; one block per row.
__global__ void outputs_join_kernel(const double* __restrict__ partial, Sizes size, int prompt_chunks, int chunks, float* __restrict__ exact,
                                    float* __restrict__ tail, double* __restrict__ norm) {
  const int row = blockIdx.x;
  __shared__ double squares[256];
  double square = 0;
  for (int c = threadIdx.x; c < size.value_dim; c += blockDim.x) {
    double of_prompt = 0, of_tail = 0;
    for (int k = 0; k < chunks; ++k) {
      const double x = partial[(static_cast<std::size_t>(k) * size.rows + row) * size.value_dim + c];
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

__global__ void tail_weight_kernel(const float* __restrict__ weights, Sizes size, float* __restrict__ tail_weight) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= size.stride) return;
  double sum = 0;
  for (int t = size.prompt; t < size.tokens; ++t) sum += weights[static_cast<std::size_t>(t) * size.stride + row];
  tail_weight[row] = static_cast<float>(sum);
}

__global__ void split_values_kernel(const float* __restrict__ values, Sizes size, int padded, __nv_bfloat16* __restrict__ high,
                                    __nv_bfloat16* __restrict__ low) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<std::size_t>(size.prompt) * padded) return;
  const int c = static_cast<int>(i % padded);
  const float x = c < size.value_dim ? values[i / padded * size.value_dim + c] : 0.0f;
  const __nv_bfloat16 top = __float2bfloat16_rn(x);
  high[i] = top;
  if (low != nullptr) low[i] = __float2bfloat16_rn(x - __bfloat162float(top));
}

__global__ void prompt_sums_kernel(const float* __restrict__ weights, Sizes size, int row_begin, int row_end, double* __restrict__ sums) {
  const int token = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (token >= size.prompt) return;
  double sum = 0;
  for (int row = row_begin + lane; row < row_end; row += 32) sum += weights[static_cast<std::size_t>(token) * size.stride + row];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  if (lane == 0) sums[token] = sum;
}

unsigned blocks(std::size_t n, std::size_t per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); }

}  // namespace

std::size_t softmax_chunks(std::size_t tokens) { return (tokens + kSoftmaxChunk - 1) / kSoftmaxChunk; }

void launch_attention(const float* keys, const float* queries, const Sizes& size, const Rule& rule, const Weights& out, cudaStream_t stream) {
  const dim3 tiles(blocks(size.tokens, kTile), blocks(size.stride, kTile));
  logits_kernel<<<tiles, kThreads, 0, stream>>>(keys, queries, out.position, size, rule, out.logits);
  check(cudaGetLastError(), "logits_kernel");
  const auto chunks = static_cast<unsigned>(softmax_chunks(size.tokens));
  const dim3 parts(blocks(size.stride, 128), chunks);
  softmax_partial_kernel<<<parts, 128, 0, stream>>>(out.logits, size, out.partial);
  check(cudaGetLastError(), "softmax_partial_kernel");
  softmax_join_kernel<<<blocks(size.stride, 128), 128, 0, stream>>>(size, static_cast<int>(chunks), out.partial);
  check(cudaGetLastError(), "softmax_join_kernel");
  softmax_write_kernel<<<parts, 128, 0, stream>>>(out.logits, out.partial, size, out.weights, out.high, out.low);
  check(cudaGetLastError(), "softmax_write_kernel");
}

std::size_t output_chunks(std::size_t prompt, std::size_t tokens) {
  return (prompt + kOutputChunk - 1) / kOutputChunk + (tokens - prompt + kOutputChunk - 1) / kOutputChunk;
}

void launch_outputs(const float* weights, const float* values, const Sizes& size, const Outputs& out, cudaStream_t stream) {
  const auto chunks = static_cast<unsigned>(output_chunks(size.prompt, size.tokens));
  const dim3 tiles(blocks(size.rows, kTile), blocks(size.value_dim, kTile), chunks);
  outputs_kernel<<<tiles, kThreads, 0, stream>>>(weights, values, size, out.partial);
  check(cudaGetLastError(), "outputs_kernel");
  const int prompt_chunks = (size.prompt + kOutputChunk - 1) / kOutputChunk;
  outputs_join_kernel<<<size.rows, 64, 0, stream>>>(out.partial, size, prompt_chunks, static_cast<int>(chunks), out.exact, out.tail, out.norm);
  check(cudaGetLastError(), "outputs_join_kernel");
  tail_weight_kernel<<<blocks(size.stride, 128), 128, 0, stream>>>(weights, size, out.tail_weight);
  check(cudaGetLastError(), "tail_weight_kernel");
}

void launch_split_values(const float* values, const Sizes& size, __nv_bfloat16* high, __nv_bfloat16* low, cudaStream_t stream) {
  const int padded = padded_value_dim(size.value_dim);
  split_values_kernel<<<blocks(static_cast<std::size_t>(size.prompt) * padded, 256), 256, 0, stream>>>(values, size, padded, high, low);
  check(cudaGetLastError(), "split_values_kernel");
}

void launch_prompt_sums(const float* weights, const Sizes& size, int row_begin, int row_end, double* sums, cudaStream_t stream) {
  prompt_sums_kernel<<<blocks(static_cast<std::size_t>(size.prompt) * 32, 256), 256, 0, stream>>>(weights, size, row_begin, row_end, sums);
  check(cudaGetLastError(), "prompt_sums_kernel");
}

}  // namespace kvsim::cuda
