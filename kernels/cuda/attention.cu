// Exact attention weights of a head. Products of queries and keys run on the tensor cores in double; each
// slice of 32 tokens is exponentiated against a power of two of its own, and the slices are joined by exact
// powers of two afterwards.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/raii.h"
#include "kernels/cuda/softmax.cuh"

namespace kvsim::cuda {
namespace {

constexpr int kThreads = 256;  // 2 warps over rows x 4 over tokens
constexpr int kRows = 64;      // of a block
constexpr int kTokens = 128;   // of a block
constexpr int kTiles =
    4;  // of tokens, one after the other in a block: the next is fetched while one is finished
constexpr int kStages = 4;  // steps of kKeyPad channels in flight
constexpr int kStageFloats = (kRows + kTokens) * kKeyPad;
static_assert(kSoftmaxSlice == 32 && kTokenPad % kTokens == 0, "a warp's tile is one slice wide");

/// Four channels of a row, as a thread's part of a step: k = 4 q .. 4 q + 3 stand for q, q + 4, q + 8, q + 12
/// of the instruction, which any order of channels may, the same one for both factors.
__device__ float4 part_of_row(const float* tile, int row, int q) {
  return *reinterpret_cast<const float4*>(tile + row * kKeyPad + 4 * q);
}

/// 2^x for x in [-0.5, 0.5], relative error below 1e-7.
__device__ float power_of_two(float x) {
  float p = 1.535336188319500e-4f;  // the coefficients of exp2f of the Cephes library
  p = fmaf(p, x, 1.339887440266574e-3f);
  p = fmaf(p, x, 9.618437357674640e-3f);
  p = fmaf(p, x, 5.550332471162809e-2f);
  p = fmaf(p, x, 2.402264791363012e-1f);
  p = fmaf(p, x, 6.931472028550421e-1f);
  return fmaf(p, x, 1.0f);
}

template <bool Softcap>
__global__ void __launch_bounds__(kThreads, 2)
    softmax_kernel(const float* __restrict__ keys, const float* __restrict__ queries,
                   const std::uint32_t* __restrict__ position, Sizes size, Rule rule, Softmax out) {
  extern __shared__ __align__(16) float space[];
  const int row0 = blockIdx.x * kRows, first_tile = blockIdx.y * kTiles;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int warp_row = warp % 2 * 32, warp_token = warp / 2 * 32;
  const int steps = size.key_dim / kKeyPad, tiles = min(kTiles, size.token_stride / kTokens - first_tile);
  int fetched = 0, fetched_tile = 0, fetched_step = 0;
  const auto fetch = [&] {
    if (fetched_tile < tiles) {
      float* const stage = space + fetched % kStages * kStageFloats;
      const int token0 = (first_tile + fetched_tile) * kTokens;
      for (int i = threadIdx.x; i < (kRows + kTokens) * 4; i += kThreads) {
        const int r = i / 4, c = i % 4;
        const float* const from =
            r < kRows
                ? queries + static_cast<std::size_t>(min(row0 + r, size.rows - 1)) * size.key_dim
                : keys + static_cast<std::size_t>(min(token0 + r - kRows, size.tokens - 1)) * size.key_dim;
        copy_16_async(stage + r * kKeyPad + c * 4, from + fetched_step * kKeyPad + c * 4, true);
      }
      ++fetched;
      if (++fetched_step == steps) {
        fetched_step = 0;
        ++fetched_tile;
      }
    }
    commit_async();
  };
  for (int s = 0; s < kStages - 1; ++s) fetch();
  int at = 0;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const int token0 = (first_tile + tile) * kTokens;
    double sum[2][4][4] = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step, ++at) {
      wait_async<kStages - 2>();
      __syncthreads();
      fetch();
      const float* const query = space + at % kStages * kStageFloats;
      const float* const key = query + kRows * kKeyPad;
      double a[2][8];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float4 x = part_of_row(query, warp_row + 16 * m + 8 * h + g, q);
          a[m][h] = x.x;
          a[m][2 + h] = x.y;
          a[m][4 + h] = x.z;
          a[m][6 + h] = x.w;
        }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float4 x = part_of_row(key, warp_token + 8 * n + g, q);
        const double b[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int m = 0; m < 2; ++m) multiply_double(sum[m][n], a[m], b);
      }
    }
    constexpr double kLog2E = 1.4426950408889634;
    const int slice = (token0 + warp_token) / kSoftmaxSlice;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = row0 + warp_row + 16 * m + 8 * h + g;
        const Seen seen = row < size.rows ? seen_by(position[row], rule.window, size.tokens) : Seen{0, 0};
        double most = -INFINITY;
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int token = token0 + warp_token + 8 * n + 2 * q + e;
            double logit = sum[m][n][2 * h + e] * rule.scale;
            if constexpr (Softcap) logit = rule.softcap * tanh(logit / rule.softcap);
            logit = token >= seen.first && token < seen.last ? logit * kLog2E : -INFINITY;
            sum[m][n][2 * h + e] = logit;
            most = fmax(most, logit);
          }
        most = fmax(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmax(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const double whole = most > -INFINITY ? ceil(most) : 0.0;
        double total = 0;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float part[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const double x = sum[m][n][2 * h + e] - whole;  // at most 0
            // 2^52 + 2^51: its lowest bits are the integer next to x. Below the normal floats a weight is 0
            // anyway.
            const double shifted = fmax(x, -127.0) + 6755399441055744.0;
            const float fraction = static_cast<float>(fmax(x, -127.0) - (shifted - 6755399441055744.0));
            const float power = __int_as_float((__double2loint(shifted) + 127) << 23);
            part[e] = x < -126.0 ? 0.0f : power_of_two(fraction) * power;
            total += static_cast<double>(part[e]);
          }
          if (row < size.rows)
            *reinterpret_cast<float2*>(out.part + static_cast<std::size_t>(row) * size.token_stride + token0 +
                                       warp_token + 8 * n + 2 * q) = make_float2(part[0], part[1]);
        }
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (q == 0 && row < size.rows) {
          const std::size_t to = static_cast<std::size_t>(row) * (size.token_stride / kSoftmaxSlice) + slice;
          out.exponent[to] = most > -INFINITY ? static_cast<int>(whole) : kNothingSeen;
          out.slice_sum[to] = total;
        }
      }
  }
}

/// Joins the slices of a row in a fixed order; one warp per row.
__global__ void join_kernel(Sizes size, Softmax in) {
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= size.rows) return;
  const int slices = size.token_stride / kSoftmaxSlice;
  const int* const exponent = in.exponent + static_cast<std::size_t>(row) * slices;
  const double* const part = in.slice_sum + static_cast<std::size_t>(row) * slices;
  int most = kNothingSeen;
  for (int s = lane; s < slices; s += 32) most = max(most, exponent[s]);
  for (int step = 16; step > 0; step /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
  double sum = 0;
  for (int s = lane; s < slices; s += 32) sum += part[s] * two_to(exponent[s] - most);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) {
    in.most[row] = most;
    in.inverse[row] = sum > 0 ? 1.0 / sum : 0.0;
  }
}

constexpr int kTurn = 64;  // rows x tokens of a block that turns weights

/// Finishes the weights and turns them token-major.
__global__ void __launch_bounds__(256)
    weights_kernel(Softmax in, Sizes size, float* __restrict__ weights, __nv_bfloat16* __restrict__ high,
                   __nv_bfloat16* __restrict__ low) {
  __shared__ float tile[kTurn][kTurn + 1];
  const int token0 = blockIdx.x * kTurn, row0 = blockIdx.y * kTurn;
  const int slices = size.token_stride / kSoftmaxSlice;
  for (int i = threadIdx.x; i < kTurn * kTurn / 4; i += 256) {
    const int r = i / (kTurn / 4), t = i % (kTurn / 4) * 4, row = row0 + r;
    float4 w = make_float4(0, 0, 0, 0);
    if (row < size.rows) {  // rows are padded to more than kTurn tokens
      w = *reinterpret_cast<const float4*>(in.part + static_cast<std::size_t>(row) * size.token_stride +
                                           token0 + t);
      const Factor factor = factor_of_slice(
          factor_of_row(in.inverse[row]),
          in.exponent[static_cast<std::size_t>(row) * slices + (token0 + t) / kSoftmaxSlice] - in.most[row]);
      w = make_float4(weight_of(w.x, factor), weight_of(w.y, factor), weight_of(w.z, factor),
                      weight_of(w.w, factor));
    }
    tile[r][t] = w.x;
    tile[r][t + 1] = w.y;
    tile[r][t + 2] = w.z;
    tile[r][t + 3] = w.w;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTurn * kTurn / 2; i += 256) {
    const int t = i / (kTurn / 2), r = i % (kTurn / 2) * 2, token = token0 + t;
    if (token >= size.tokens) break;
    const float2 w = make_float2(tile[r][t], tile[r + 1][t]);
    const std::size_t at = static_cast<std::size_t>(token) * size.stride + row0 + r;
    *reinterpret_cast<float2*>(weights + at) = w;
    if (high != nullptr && token < size.prompt) {
      const __nv_bfloat162 top = __floats2bfloat162_rn(w.x, w.y);
      *reinterpret_cast<__nv_bfloat162*>(high + at) = top;
      *reinterpret_cast<__nv_bfloat162*>(low + at) =
          __floats2bfloat162_rn(w.x - __low2float(top), w.y - __high2float(top));
    }
  }
}

unsigned blocks(std::size_t n, std::size_t per_block) {
  return static_cast<unsigned>((n + per_block - 1) / per_block);
}

}  // namespace

void launch_softmax(const float* keys, const float* queries, const std::uint32_t* position, const Sizes& size,
                    const Rule& rule, const Softmax& out, cudaStream_t stream) {
  constexpr int kBytes = kStages * kStageFloats * static_cast<int>(sizeof(float));
  const auto kernel = rule.softcap > 0 ? softmax_kernel<true> : softmax_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "cudaFuncSetAttribute");
  const dim3 tiles(blocks(size.rows, kRows), blocks(size.token_stride, kTokens * kTiles));
  kernel<<<tiles, kThreads, kBytes, stream>>>(keys, queries, position, size, rule, out);
  check(cudaGetLastError(), "softmax_kernel");
  join_kernel<<<blocks(size.rows, 4), 128, 0, stream>>>(size, out);
  check(cudaGetLastError(), "join_kernel");
}

void launch_weights(const Softmax& softmax, const Sizes& size, float* weights, __nv_bfloat16* high,
                    __nv_bfloat16* low, cudaStream_t stream) {
  const dim3 tiles(blocks(size.tokens, kTurn), static_cast<unsigned>(size.stride / kTurn));
  weights_kernel<<<tiles, 256, 0, stream>>>(softmax, size, weights, high, low);
  check(cudaGetLastError(), "weights_kernel");
}

}  // namespace kvsim::cuda
