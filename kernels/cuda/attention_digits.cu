// The softmax's slices for keys and queries of bfloat16 numbers: their products as exact integers.
//
// A row of such numbers is a row of integers of three signed bytes times a power of two (but for what no logit
// notices), and tensor cores multiply bytes sixteen times as fast as doubles. Products of bytes of the same weight
// are added up in one sum; only those of the lowest bytes are left out.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/raii.h"
#include "kernels/cuda/softmax.cuh"

namespace kvsim::cuda {
namespace {

constexpr int kDigits = 3;
constexpr int kOrders = 4;     // sums of products of the same weight
constexpr int kThreads = 256;  // 4 warps over rows x 2 over tokens
constexpr int kRows = 64;      // of a block
constexpr int kTokens = 64;    // of a tile
constexpr int kTiles = 8;      // of tokens, one after the other in a block, the next fetched meanwhile
constexpr int kStages = 2;
constexpr int kChannels = 32;  // of a step
constexpr int kTopBits = 21;   // the largest number of a row lies in [2^21, 2^22): its first byte is at most 64
static_assert(kSoftmaxSlice == 32 && kTokenPad % kTokens == 0, "a warp's tile is one slice wide");

/// Bytes between rows in shared memory: eight threads of four rows each read 8 bytes from different banks.
__host__ __device__ constexpr int pitch_of(int columns) {
  return kDigits * columns + ((32 - kDigits * columns) % 128 + 128) % 128;
}

/// One warp per row.
__global__ void digits_kernel(const float* __restrict__ from, int rows, int key_dim, Digits out) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const float* const own = from + static_cast<std::size_t>(row) * key_dim;
  const int columns = (key_dim + 31) / 32 * 32;
  std::uint32_t most = 0, low = 0;
  for (int c = lane; c < key_dim; c += 32) {
    const std::uint32_t bits = __float_as_uint(own[c]);
    most = max(most, bits & 0x7fffffffu);
    low |= bits & 0xffffu;
  }
  for (int step = 16; step > 0; step /= 2) {
    most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
    low |= __shfl_xor_sync(0xffffffffu, low, step);
  }
  const int exponent = static_cast<int>(most >> 23) - 127 - kTopBits;
  const double scale = two_to(-exponent);
  std::int8_t* const to = out.digit + static_cast<std::size_t>(row) * kDigits * columns;
  for (int c = lane; c < columns; c += 32) {
    const int x = c < key_dim ? __double2int_rn(static_cast<double>(own[c]) * scale) : 0;
    const int third = ((x + 128) & 255) - 128, rest = (x - third) / 256;
    const int second = ((rest + 128) & 255) - 128;
    to[c] = static_cast<std::int8_t>((rest - second) / 256);
    to[columns + c] = static_cast<std::int8_t>(second);
    to[2 * columns + c] = static_cast<std::int8_t>(third);
  }
  if (lane == 0) out.exponent[row] = low != 0 || most >= 0x7f800000u ? kNoDigits : exponent;
}

template <bool Softcap>
__global__ void __launch_bounds__(kThreads, 2)
    digit_softmax_kernel(Digits keys, Digits queries, const std::uint32_t* __restrict__ position, Sizes size,
                         Rule rule, int columns, Softmax out) {
  extern __shared__ __align__(16) std::uint8_t bytes[];
  const int row0 = blockIdx.x * kRows, first_tile = blockIdx.y * kTiles;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int warp_row = warp % 4 * 16, warp_token = warp / 4 * 32;
  const int tiles = min(kTiles, size.token_stride / kTokens - first_tile);
  const int pitch = pitch_of(columns), line = kDigits * columns, steps = columns / kChannels;
  const auto fetch = [&](const std::int8_t* from, int first, int rows, std::uint8_t* to) {
    const int pieces = line / 16;
    for (int i = threadIdx.x; i < kRows * pieces; i += kThreads) {
      const int r = i / pieces, c = i % pieces * 16;
      copy_16_async(to + r * pitch + c, from + static_cast<std::size_t>(min(first + r, rows - 1)) * line + c,
                    true);
    }
  };
  static_assert(kRows == kTokens, "fetched alike");
  const auto stage = [&](int tile) { return bytes + (1 + tile % kStages) * kRows * pitch; };
  const auto fetch_tile = [&](int tile) {
    if (tile < tiles) fetch(keys.digit, (first_tile + tile) * kTokens, size.tokens, stage(tile));
    commit_async();
  };
  fetch(queries.digit, row0, size.rows, bytes);
  fetch_tile(0);
  constexpr double kLog2E = 1.4426950408889634;
  double factor[2];
  bool wanted[2];
  Seen seen[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + warp_row + 8 * h + g;
    const int exponent = row < size.rows ? queries.exponent[row] : kNoDigits;
    wanted[h] = exponent != kNoDigits;
    seen[h] = wanted[h] ? seen_by(position[row], rule.window, size.tokens) : Seen{0, 0};
    factor[h] = wanted[h] ? two_to(exponent + 8) * rule.scale * (Softcap ? 1.0 : kLog2E) : 0.0;
  }
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    wait_async<0>();
    __syncthreads();
    fetch_tile(tile + 1);
    std::int32_t sum[kOrders][4][4] = {};
    const std::uint8_t* const query = bytes + (warp_row + g) * pitch + 8 * q;
    const std::uint8_t* const key = stage(tile) + (warp_token + g) * pitch + 8 * q;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      std::uint32_t a[kDigits][4];
#pragma unroll
      for (int d = 0; d < kDigits; ++d)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint2 x =
              *reinterpret_cast<const uint2*>(query + 8 * h * pitch + d * columns + step * kChannels);
          a[d][h] = x.x;
          a[d][2 + h] = x.y;
        }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        std::uint32_t b[kDigits][2];
#pragma unroll
        for (int d = 0; d < kDigits; ++d) {
          const uint2 x = *reinterpret_cast<const uint2*>(key + 8 * n * pitch + d * columns + step * kChannels);
          b[d][0] = x.x;
          b[d][1] = x.y;
        }
#pragma unroll
        for (int i = 0; i < kDigits; ++i)
#pragma unroll
          for (int j = 0; j < kDigits; ++j)
            if (i + j < kOrders) multiply_digits(sum[i + j][n], a[i], b[j]);
      }
    }
    const int token0 = (first_tile + tile) * kTokens + warp_token, slice = token0 / kSoftmaxSlice;
    double token_factor[4][2];
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        token_factor[n][e] = two_to(keys.exponent[min(token0 + 8 * n + 2 * q + e, size.tokens - 1)]);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row0 + warp_row + 8 * h + g;
      int whole[4][2], most = kNothingSeen;
      float fraction[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int token = token0 + 8 * n + 2 * q + e, i = 2 * h + e;
          const std::int64_t all = (static_cast<std::int64_t>(sum[0][n][i]) << 24) +
                                   (static_cast<std::int64_t>(sum[1][n][i]) << 16) +
                                   (static_cast<std::int64_t>(sum[2][n][i]) << 8) + sum[3][n][i];
          // 2^52 + 2^51: its lowest bits are an integer.
          const double exact = __longlong_as_double(all + 0x4338000000000000LL) - 6755399441055744.0;
          double scaled = factor[h] * token_factor[n][e];
          if constexpr (Softcap) {
            scaled = rule.softcap * tanh(exact * scaled / rule.softcap) * kLog2E;
          } else {
            scaled *= exact;
          }
          // 2^28 + 2^27: its lowest bits are 2^-24 of the logit.
          constexpr double kShift = 402653184.0;
          const double shifted = fmin(fmax(scaled, -134217720.0), 134217720.0) + kShift;
          const std::int64_t fixed =
              __double_as_longlong(shifted) - 0x41B8000000000000LL + (1 << 23);  // the next integer
          const bool sees = token >= seen[h].first && token < seen[h].last;
          whole[n][e] = sees ? static_cast<int>(fixed >> 24) : kNothingSeen;
          fraction[n][e] =
              __uint_as_float(0x3f800000u | (static_cast<std::uint32_t>(fixed) & 0xffffffu) >> 1) - 1.5f;
          most = max(most, whole[n][e]);
        }
      most = max(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = max(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const int top = max(most, kNothingSeen / 2);
      double total = 0;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float part[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int power = whole[n][e] - top;  // below the normal floats a weight is 0 anyway
          part[e] = power < -126 ? 0.0f : power_of_two(fraction[n][e]) * __int_as_float((power + 127) << 23);
        }
        total += static_cast<double>(part[0] + part[1]);
        if (wanted[h])
          *reinterpret_cast<float2*>(out.part + static_cast<std::size_t>(row) * size.token_stride + token0 +
                                     8 * n + 2 * q) = make_float2(part[0], part[1]);
      }
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      if (q == 0 && wanted[h]) {
        const std::size_t to = static_cast<std::size_t>(row) * (size.token_stride / kSoftmaxSlice) + slice;
        out.exponent[to] = most;
        out.slice_sum[to] = total;
      }
    }
  }
}

unsigned blocks(int n, int per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); }

}  // namespace

void launch_digits(const float* from, int rows, int key_dim, const Digits& out, cudaStream_t stream) {
  digits_kernel<<<blocks(rows, 8), 256, 0, stream>>>(from, rows, key_dim, out);
  check(cudaGetLastError(), "digits_kernel");
}

void launch_digit_softmax(const Digits& keys, const Digits& queries, const std::uint32_t* position,
                          const Sizes& size, const Rule& rule, const Softmax& out, cudaStream_t stream) {
  const int columns = digit_columns(size.key_dim), space = (1 + kStages) * kRows * pitch_of(columns);
  const auto kernel = rule.softcap > 0 ? digit_softmax_kernel<true> : digit_softmax_kernel<false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, space),
        "cudaFuncSetAttribute");
  const dim3 grid(blocks(size.rows, kRows), blocks(size.token_stride, kTokens * kTiles));
  kernel<<<grid, kThreads, static_cast<std::size_t>(space), stream>>>(keys, queries, position, size, rule,
                                                                      columns, out);
  check(cudaGetLastError(), "digit_softmax_kernel");
}

}  // namespace kvsim::cuda
