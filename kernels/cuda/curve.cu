// The one-pass budget curve on tensor cores, for every GPU that curve_hopper.cu is not made for: rows of weights are gathered in rank
// order, multiplied with the values, and compared with the exact output at every snapshot while the sums are still in registers.
//
// A block takes kRowBlock rows of one ranking and all columns. Weights come as two bfloat16 terms, values as one or two; the
// sum of the weights is a product with a column of ones. Sums are float, in rank order, snapshot after snapshot.
#include <math_constants.h>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kThreads = 256;  // 4 warps over rows x 2 over columns
constexpr int kStages = 4;     // steps in flight
constexpr int kRing = 8;       // steps whose tokens are known: from the one that is multiplied to 2 (kStages - 1) ahead
constexpr int kChunk = 8;      // bfloat16 numbers of a 16-byte access
constexpr float kFloor = 1e-18f;
static_assert(kRowBlock == 128 && kStepTokens == 32, "the warps' tiles are laid out for these");

__device__ std::uint32_t shared_address(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void copy_async(std::uint32_t to, const void* from, bool present) {
  const int bytes = present ? 16 : 0;  // the rest is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ void copy_index_async(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
}
__device__ void copy_word_async(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from));
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int N>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N));
}
__device__ void load_turned(std::uint32_t (&r)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from));
}
__device__ void multiply(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Shared memory of one step: rows of `Columns` numbers, one per token, 16-byte chunks swizzled against bank conflicts.
template <int Columns>
struct Tile {
  static constexpr int kChunks = Columns / kChunk;
  static constexpr int kBytes = kStepTokens * Columns * 2;
  static __device__ std::uint32_t at(std::uint32_t base, int token, int chunk) {
    return base + static_cast<std::uint32_t>((token * kChunks + (chunk ^ (token & 7))) * 16);
  }
};

template <int Columns, bool SplitValues>
struct Stage {
  static constexpr int kLow = Tile<kRowBlock>::kBytes;
  static constexpr int kValue = 2 * Tile<kRowBlock>::kBytes;
  static constexpr int kValueLow = kValue + Tile<Columns>::kBytes;
  static constexpr int kBytes = kValueLow + (SplitValues ? Tile<Columns>::kBytes : 0);
};

template <int Columns, bool SplitValues>
__global__ void __launch_bounds__(kThreads, Columns > 128 ? 1 : 2) curve_kernel(CurveCall in) {
  using Parts = Stage<Columns, SplitValues>;
  constexpr int kTiles = Columns / 2 / 8;  // of 8 columns, per warp
  extern __shared__ __align__(128) unsigned char space[];
  __shared__ float mass_part[2][kRowBlock], error_part[2][kRowBlock];
  const RankingOnDevice ranking = in.rankings[blockIdx.y];
  const int row0 = static_cast<int>(ranking.row_begin / 8 * 8) + static_cast<int>(blockIdx.x) * kRowBlock;
  if (row0 >= static_cast<int>(ranking.row_end)) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / 2 * 32, warp_half = warp % 2;
  const std::uint32_t base = shared_address(space);

  // What a step reads is looked up kStages - 1 steps before its rows are asked for, or every request would wait for it.
  __shared__ std::uint32_t token_ring[kRing][kStepTokens];
  __shared__ CurveStep step_ring[kRing];
  const auto look_up = [&](std::uint32_t step) {
    if (step < ranking.step_count) {
      if (threadIdx.x == kStepTokens) {
        copy_word_async(shared_address(&step_ring[step % kRing]), ranking.steps + step);
      } else if (threadIdx.x < kStepTokens) {
        const std::uint32_t at = ranking.steps[step].first + threadIdx.x;
        copy_index_async(shared_address(&token_ring[step % kRing][threadIdx.x]), ranking.order + min(at, ranking.order_size - 1));
      }
    }
  };
  const auto fetch = [&](std::uint32_t step) {
    if (step < ranking.step_count) {
      const int tokens = step_ring[step % kRing].tokens;
      const std::uint32_t* const token = token_ring[step % kRing];
      const std::uint32_t stage = base + step % kStages * Parts::kBytes;
      if (tokens > 0) {
        for (int i = threadIdx.x; i < kStepTokens * Tile<kRowBlock>::kChunks; i += kThreads) {
          const int t = i / Tile<kRowBlock>::kChunks, c = i % Tile<kRowBlock>::kChunks;
          const std::size_t from = static_cast<std::size_t>(token[t]) * in.stride + row0 + c * kChunk;
          copy_async(Tile<kRowBlock>::at(stage, t, c), in.weight_high + from, t < tokens);
          copy_async(Tile<kRowBlock>::at(stage + Parts::kLow, t, c), in.weight_low + from, t < tokens);
        }
        for (int i = threadIdx.x; i < kStepTokens * Tile<Columns>::kChunks; i += kThreads) {
          const int t = i / Tile<Columns>::kChunks, c = i % Tile<Columns>::kChunks;
          const std::size_t from = static_cast<std::size_t>(token[t]) * Columns + c * kChunk;
          copy_async(Tile<Columns>::at(stage + Parts::kValue, t, c), in.value_high + from, t < tokens);
          if constexpr (SplitValues) copy_async(Tile<Columns>::at(stage + Parts::kValueLow, t, c), in.value_low + from, t < tokens);
        }
      }
    }
  };

  // Sums begin with what is always held: the tokens of the decode.
  float sum[2][kTiles][4], mass[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + warp_row + m * 16 + half * 8 + lane / 4;
      const bool present = row < static_cast<int>(ranking.row_end);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = warp_half * (Columns / 2) + n * 8 + lane % 4 * 2 + e;
          sum[m][n][half * 2 + e] = present && c < in.value_dim ? in.tail[static_cast<std::size_t>(row) * in.value_dim + c] : 0.0f;
        }
      mass[m][half * 2] = mass[m][half * 2 + 1] = present && warp_half == 0 ? in.tail_weight[row] : 0.0f;
    }

  for (std::uint32_t s = 0; s < 2 * (kStages - 1); ++s) look_up(s);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  for (std::uint32_t s = 0; s < kStages - 1; ++s) {
    fetch(s);
    commit_copies();
  }
  int snapshot = 0;
  for (std::uint32_t step = 0; step < ranking.step_count; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    look_up(step + 2 * (kStages - 1));
    commit_copies();
    const CurveStep now = step_ring[step % kRing];
    const std::uint32_t stage = base + step % kStages * Parts::kBytes;
    if (now.tokens > 0) {
#pragma unroll
      for (int k = 0; k < kStepTokens / 16; ++k) {
        std::uint32_t high[2][4], low[2][4];
        const int a_token = k * 16 + lane % 8 + lane / 16 * 8;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int chunk = (warp_row + m * 16) / kChunk + lane / 8 % 2;
          load_turned(high[m], Tile<kRowBlock>::at(stage, a_token, chunk));
          load_turned(low[m], Tile<kRowBlock>::at(stage + Parts::kLow, a_token, chunk));
        }
        const int b_token = k * 16 + lane % 8 + lane / 8 % 2 * 8;
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
          std::uint32_t value[4];
          const int chunk = warp_half * (Columns / 2 / kChunk) + n + lane / 16;
          load_turned(value, Tile<Columns>::at(stage + Parts::kValue, b_token, chunk));
#pragma unroll
          for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              multiply(sum[m][n + j], high[m], value[2 * j], value[2 * j + 1]);
              multiply(sum[m][n + j], low[m], value[2 * j], value[2 * j + 1]);
            }
          if constexpr (SplitValues) {
            load_turned(value, Tile<Columns>::at(stage + Parts::kValueLow, b_token, chunk));
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
              for (int j = 0; j < 2; ++j) multiply(sum[m][n + j], high[m], value[2 * j], value[2 * j + 1]);
          }
        }
        if (k == warp_half) {  // the sum of the weights: each half of the columns adds every other k
          constexpr std::uint32_t kOnes = 0x3F803F80u;
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply(mass[m], high[m], kOnes, kOnes);
            multiply(mass[m], low[m], kOnes, kOnes);
          }
        }
      }
    }
    if (now.snapshots == 0) continue;
    int at_lane = lane;  // opaque, or the addresses of all of `exact` are computed before the loop and spill
    asm volatile("" : "+r"(at_lane));
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (at_lane % 4 == 0) mass_part[warp_half][warp_row + m * 16 + half * 8 + at_lane / 4] = mass[m][half * 2];
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = warp_row + m * 16 + half * 8 + at_lane / 4, row = row0 + at;
        const bool present = row < static_cast<int>(ranking.row_end);
        const float held = mass_part[0][at] + mass_part[1][at];
        const float factor = held > 0 ? 1.0f / held : 0.0f;
        float square = 0;
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int c = warp_half * (Columns / 2) + n * 8 + at_lane % 4 * 2 + e;
            const float exact = present && c < in.value_dim ? in.exact[static_cast<std::size_t>(row) * in.value_dim + c] : 0.0f;
            const float difference = sum[m][n][half * 2 + e] * factor - exact;
            square = fmaf(difference, difference, square);
            if (in.delta == nullptr || !present || row < static_cast<int>(ranking.row_begin) || c >= in.value_dim) continue;
            for (int i = 0; i < now.snapshots; ++i)
              in.delta[((static_cast<std::size_t>(blockIdx.y) * in.counts + snapshot + i) * in.value_dim + c) * in.result_stride + row] =
                  difference;
          }
        square += __shfl_xor_sync(0xffffffffu, square, 1);
        square += __shfl_xor_sync(0xffffffffu, square, 2);
        if (at_lane % 4 == 0) error_part[warp_half][at] = square;
      }
    __syncthreads();
    const int row = row0 + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kRowBlock && row >= static_cast<int>(ranking.row_begin) && row < static_cast<int>(ranking.row_end)) {
      const float held = mass_part[0][threadIdx.x] + mass_part[1][threadIdx.x];
      const double square = static_cast<double>(error_part[0][threadIdx.x]) + static_cast<double>(error_part[1][threadIdx.x]);
      const double norm = in.norm[row];
      const float error = held < kFloor ? CUDART_NAN_F : static_cast<float>(sqrt(norm > 0 ? square / norm : square));
      for (int i = 0; i < now.snapshots; ++i) {
        const std::size_t to = (static_cast<std::size_t>(blockIdx.y) * in.counts + snapshot + i) * in.result_stride + row;
        in.error[to] = error;
        in.recall[to] = held;
      }
    }
    snapshot += now.snapshots;
    __syncthreads();
  }
}

template <int Columns, bool SplitValues>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  constexpr int kBytes = kStages * Stage<Columns, SplitValues>::kBytes;
  const auto kernel = curve_kernel<Columns, SplitValues>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>((most_rows + 7 + kRowBlock - 1) / kRowBlock), static_cast<unsigned>(rankings));
  kernel<<<grid, kThreads, kBytes, stream>>>(call);
  check(cudaGetLastError(), "curve_kernel");
}

template <int Columns>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  if (call.value_low != nullptr) {
    launch<Columns, true>(call, rankings, most_rows, stream);
  } else {
    launch<Columns, false>(call, rankings, most_rows, stream);
  }
}

}  // namespace

int padded_value_dim(int value_dim) { return value_dim <= 64 ? 64 : value_dim <= 128 ? 128 : 256; }

void launch_warp_curves(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  switch (padded_value_dim(call.value_dim)) {
    case 64:
      return launch<64>(call, rankings, most_rows, stream);
    case 128:
      return launch<128>(call, rankings, most_rows, stream);
    default:
      return launch<256>(call, rankings, most_rows, stream);
  }
}

void launch_curves(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  if (has_hopper_products()) {
    launch_hopper_curves(call, rankings, most_rows, stream);
  } else {
    launch_warp_curves(call, rankings, most_rows, stream);
  }
}

}  // namespace kvsim::cuda
