// The curve where every row keeps its own best tokens, on Hopper's warpgroup products (built for sm_90a).
//
// A budget's segment (ranks from the last count up to this one) is other tokens for every row, so all weights are multiplied once
// per segment, with those of other segments masked to zero: 16 counts of 1024 rows x 32768 tokens x 128 channels are 275 GFLOP,
// 0.45 ms at 600 TFLOP/s. Few bytes beside that: a block has 64 rows, four segments and a part of the tokens, 1.3 GB in all.
//
// A warpgroup of producers copies steps of tokens; two of consumers load weights and budgets into registers, mask, and multiply
// with the values in shared memory. Parts of the tokens and segments are added up by a second kernel, in a fixed order.
#include "kernels/cuda/own_order.cuh"
#include "kernels/cuda/raii.h"
#include "kernels/cuda/wgmma.cuh"

namespace kvsim::cuda {
namespace {

namespace hw = hopper;

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;  // producers, consumers, consumers
constexpr int kRows = 64;                    // of a block
constexpr int kTokens = 32;                  // of a step
constexpr int kPartTokens = 8192;            // of a block
constexpr int kStages = 6;
constexpr int kChunk = 8;  // 16-bit numbers of a 16-byte access

/// What the products read and write.
struct Masked {
  const __nv_bfloat16 *weight_high, *weight_low, *value_high, *value_low;
  const __half* budgets;               // [prompt][stride]: the first budget that keeps the token, as a number
  float *sums, *masses;                // [part][segment][row][padded value_dim], [part][segment][row]
  int prompt, stride, segments, rows;  // rows: rounded up to kRows
};

template <int Width, bool SplitValues>
struct Shape {
  static constexpr int kColumns = Width > 128 ? 128 : Width;  // of a consumer
  static constexpr int kSides = Width / kColumns;             // 2: the consumers share segments, each has half of the columns
  static constexpr int kSegments = kColumns == 64 ? 3 : 2;    // of a consumer
  static constexpr int kBlockSegments = kSegments * (kSides == 2 ? 1 : 2);
  static constexpr int kAtoms = kTokens / 8 * hw::kAtomBytes;  // bytes of 64 rows or columns
  static constexpr int kValueAtoms = kColumns / 64;
  static constexpr int kLow = kAtoms, kBudget = 2 * kAtoms, kValue = 3 * kAtoms;
  static constexpr int kSideBytes = (kValueAtoms + 1) * kAtoms;  // values, then ones
  static constexpr int kValueLow = kValue + kSides * kSideBytes;
  static constexpr int kStageBytes = kValueLow + (SplitValues ? kSides * kValueAtoms * kAtoms : 0);
  static constexpr int kRing = kStageBytes * kStages > 220 * 1024 ? 4 : kStages;
  static constexpr int kBytes = kRing * kStageBytes + hw::kAtomBytes;
};

template <typename S, int Width, bool SplitValues>
__device__ __forceinline__ void produce(const Masked& in, int row0, int first_token, int steps, std::uint32_t ring, std::uint32_t full,
                                        std::uint32_t empty) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kRowChunks = kRows / kChunk, kValueChunks = Width / kChunk, kSideChunks = S::kColumns / kChunk;
  constexpr int kTokensAtOnce = 32 / kRowChunks, kValuesAtOnce = 32 / kValueChunks;
  constexpr std::uint32_t kNextToken = 128 + 16;  // see curve_hopper.cu
  const int row_chunk = lane % kRowChunks, value_chunk = lane % kValueChunks;
  const int row_token = lane / kRowChunks, value_token = lane / kValueChunks;
  const std::uint32_t row_to = hw::swizzled(warp * 8, row_chunk, S::kAtoms);
  const std::uint32_t in_side = hw::swizzled(warp * 8, value_chunk % kSideChunks, S::kAtoms);
  const std::uint32_t value_to = S::kValue + value_chunk / kSideChunks * S::kSideBytes + in_side;
  const std::uint32_t value_low_to = S::kValueLow + value_chunk / kSideChunks * S::kValueAtoms * S::kAtoms + in_side;
  const std::uint16_t* const budgets = reinterpret_cast<const std::uint16_t*>(in.budgets);
  int stage = 0;
  std::uint32_t phase = 1;
  for (int s = 0; s < steps; ++s) {
    const std::uint32_t at = ring + stage * S::kStageBytes;
    const int token0 = first_token + s * kTokens + warp * 8;
    hw::wait_barrier(empty + stage * 8, phase);
#pragma unroll
    for (int i = 0; i < 8; i += kTokensAtOnce) {
      const int mine = i + row_token, token = token0 + mine;
      const bool present = token < in.prompt;
      const std::size_t from = static_cast<std::size_t>(present ? token : 0) * in.stride + row0 + row_chunk * kChunk;
      const std::uint32_t to = (at + row_to) ^ static_cast<std::uint32_t>(mine) * kNextToken;
      hw::copy_async(to, in.weight_high + from, present);
      hw::copy_async(to + S::kLow, in.weight_low + from, present);
      hw::copy_async(to + S::kBudget, budgets + from, present);
    }
#pragma unroll
    for (int i = 0; i < 8; i += kValuesAtOnce) {
      const int mine = i + value_token, token = token0 + mine;
      const bool present = token < in.prompt;
      const std::size_t from = static_cast<std::size_t>(present ? token : 0) * Width + value_chunk * kChunk;
      const std::uint32_t swizzle = static_cast<std::uint32_t>(mine) * kNextToken;
      hw::copy_async((at + value_to) ^ swizzle, in.value_high + from, present);
      if constexpr (SplitValues) hw::copy_async((at + value_low_to) ^ swizzle, in.value_low + from, present);
    }
    hw::arrive_after_copies(full + stage * 8);
    if (++stage == S::kRing) {
      stage = 0;
      phase ^= 1;
    }
  }
}

/// Sums of a consumer for its segments, then the weights' sum (8 times).
template <typename S>
struct SegmentSums {
  static constexpr int kMass = S::kColumns / 2;
  float at[S::kSegments][kMass + 4];
};
/// Weights of 16 rows x 16 tokens, one masked pair of terms per segment.
template <typename S>
struct MaskedWeights {
  std::uint32_t high[S::kSegments][4], low[S::kSegments][4];
};

template <typename S>
__device__ __forceinline__ void load_masked(std::uint32_t at, const __half2 (&segment)[S::kSegments], MaskedWeights<S>& to) {
  std::uint32_t high[4], low[4], budget[4];
  hw::load_turned(high, at);
  hw::load_turned(low, at + S::kLow);
  hw::load_turned(budget, at + S::kBudget);
#pragma unroll
  for (int g = 0; g < S::kSegments; ++g)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned mask = __heq2_mask(*reinterpret_cast<const __half2*>(&budget[i]), segment[g]);
      to.high[g][i] = high[i] & mask;
      to.low[g][i] = low[i] & mask;
    }
}

template <typename S, bool SplitValues>
__device__ __forceinline__ void multiply(const MaskedWeights<S>& weights, std::uint32_t values_at, std::uint32_t values_low_at,
                                         SegmentSums<S>& sums) {
  const std::uint64_t value = hw::operand(values_at, S::kAtoms, hw::kAtomBytes);
  const auto wide = hw::Columns<S::kColumns + 8>{};
  // Segments in turn: a product that follows one into the same sums waits for it.
#pragma unroll
  for (int g = 0; g < S::kSegments; ++g) hw::multiply_add(wide, sums.at[g], weights.high[g], value);
#pragma unroll
  for (int g = 0; g < S::kSegments; ++g) hw::multiply_add(wide, sums.at[g], weights.low[g], value);
  if constexpr (SplitValues) {
    const std::uint64_t value_low = hw::operand(values_low_at, S::kAtoms, hw::kAtomBytes);
#pragma unroll
    for (int g = 0; g < S::kSegments; ++g) hw::multiply_add(hw::Columns<S::kColumns>{}, sums.at[g], weights.high[g], value_low);
  }
}

template <typename S, int Width>
__device__ __forceinline__ void write_sums(const Masked& in, int row, int column, int first_segment, const SegmentSums<S>& sums) {
  const std::size_t part = blockIdx.y;
#pragma unroll
  for (int g = 0; g < S::kSegments; ++g) {
    if (first_segment + g >= in.segments) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::size_t at = (part * in.segments + first_segment + g) * in.rows + row + half * 8;
#pragma unroll
      for (int n = 0; n < S::kColumns / 8; ++n)
        *reinterpret_cast<float2*>(in.sums + at * Width + column + n * 8) =
            make_float2(sums.at[g][n * 4 + half * 2], sums.at[g][n * 4 + half * 2 + 1]);
      if (column == 0) in.masses[at] = sums.at[g][SegmentSums<S>::kMass + half * 2];
    }
  }
}

template <typename S, int Width, bool SplitValues>
__device__ __forceinline__ void consume(const Masked& in, int row0, int steps, std::uint32_t ring, std::uint32_t full,
                                        std::uint32_t empty) {
  const int consumer = threadIdx.x / kGroupThreads - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int side = S::kSides == 2 ? consumer : 0;
  const int first_segment = static_cast<int>(blockIdx.x) * S::kBlockSegments + (S::kSides == 2 ? 0 : consumer * S::kSegments);
  SegmentSums<S> sums;
  __half2 segment[S::kSegments];
#pragma unroll
  for (int g = 0; g < S::kSegments; ++g) {
    segment[g] = __half2half2(__int2half_rn(first_segment + g));
#pragma unroll
    for (float& x : sums.at[g]) x = 0.0f;
  }
  const std::uint32_t rows_at = ring + hw::swizzled(lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2, S::kAtoms);
  const std::uint32_t values_at = ring + S::kValue + side * S::kSideBytes;
  const std::uint32_t values_low_at = ring + S::kValueLow + side * S::kValueAtoms * S::kAtoms;
  constexpr std::uint32_t kSecond = 2 * hw::kAtomBytes;  // the second 16 tokens
  MaskedWeights<S> first, second;
  int stage = 0, open = 0;
  std::uint32_t phase = 0;
  for (int s = 0; s < steps; ++s) {
    hw::wait_barrier(full + stage * 8, phase);
    hw::show_to_products();
    const std::uint32_t at = stage * S::kStageBytes;
    load_masked<S>(rows_at + at, segment, first);
    hw::begin_products();
    multiply<S, SplitValues>(first, values_at + at, values_low_at + at, sums);
    hw::commit_products();
    hw::wait_products<1>();
    if (s > 0 && lane == 0) hw::arrive(empty + open * 8);  // the step before has been multiplied
    load_masked<S>(rows_at + at + kSecond, segment, second);
    hw::begin_products();
    multiply<S, SplitValues>(second, values_at + at + kSecond, values_low_at + at + kSecond, sums);
    hw::commit_products();
    hw::wait_products<1>();
    open = stage;
    if (++stage == S::kRing) {
      stage = 0;
      phase ^= 1;
    }
  }
  hw::wait_products<0>();
#pragma unroll
  for (int g = 0; g < S::kSegments; ++g) hw::pin(sums.at[g]);
  write_sums<S, Width>(in, row0 + warp * 16 + lane / 4, side * S::kColumns + lane % 4 * 2, first_segment, sums);
}

/// Grid: groups of segments, parts of the tokens, blocks of rows.
template <int Width, bool SplitValues>
__global__ void __launch_bounds__(kThreads, 1) masked_kernel(const __grid_constant__ Masked in) {
  using S = Shape<Width, SplitValues>;
  extern __shared__ unsigned char space[];
  __shared__ std::uint64_t barriers[2 * S::kRing];
  const int row0 = static_cast<int>(blockIdx.z) * kRows, first_token = static_cast<int>(blockIdx.y) * kPartTokens;
  const int steps = (min(kPartTokens, in.prompt - first_token) + kTokens - 1) / kTokens;
  const std::uint32_t ring = (hw::shared_address(space) + hw::kAtomBytes - 1) / hw::kAtomBytes * hw::kAtomBytes;
  const std::uint32_t full = hw::shared_address(barriers), empty = hw::shared_address(barriers + S::kRing);
  for (int i = threadIdx.x; i < S::kRing * S::kSides * S::kAtoms / 4; i += kThreads) {
    const int part = i / (S::kAtoms / 4), word = i % (S::kAtoms / 4);
    const std::uint32_t at =
        ring + part / S::kSides * S::kStageBytes + S::kValue + part % S::kSides * S::kSideBytes + S::kValueAtoms * S::kAtoms + word * 4;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(0x3F803F80u) : "memory");
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kRing; ++s) {
      hw::init_barrier(full + s * 8, kGroupThreads);
      hw::init_barrier(empty + s * 8, 8);
    }
  }
  hw::show_to_products();
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    hw::fewer_registers<56>();
    produce<S, Width, SplitValues>(in, row0, first_token, steps, ring, full, empty);
  } else {
    hw::more_registers<224>();
    consume<S, Width, SplitValues>(in, row0, steps, ring, full, empty);
  }
}

int padded_rows(int rows) { return (rows + kRows - 1) / kRows * kRows; }
int parts_of(int prompt) { return (prompt + kPartTokens - 1) / kPartTokens; }

/// How the scratch is laid out.
struct Scratch {
  std::size_t budgets, sums, masses;  // bytes
  Scratch(int prompt, int rows, int stride, int value_dim, int count)
      : budgets(static_cast<std::size_t>(prompt) * stride * sizeof(__half)),
        sums(static_cast<std::size_t>(parts_of(prompt)) * count * padded_rows(rows) * padded_value_dim(value_dim) * sizeof(float)),
        masses(static_cast<std::size_t>(parts_of(prompt)) * count * padded_rows(rows) * sizeof(float)) {}
};

template <int Width, bool SplitValues, typename Rank>
void launch(const OwnOrderArguments<Rank>& in, const Masked& masked, cudaStream_t stream) {
  using S = Shape<Width, SplitValues>;
  const auto kernel = masked_kernel<Width, SplitValues>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes), "cudaFuncSetAttribute");
  const auto parts = static_cast<unsigned>(parts_of(in.prompt));
  const dim3 grid(static_cast<unsigned>((in.count + S::kBlockSegments - 1) / S::kBlockSegments), parts,
                  static_cast<unsigned>(masked.rows / kRows));
  kernel<<<grid, kThreads, S::kBytes, stream>>>(masked);
  check(cudaGetLastError(), "masked_kernel");
  launch_compare_segments(in, masked.sums, masked.masses, masked.rows, static_cast<int>(parts), stream);
}

template <int Width, typename Rank>
void launch(const OwnOrderArguments<Rank>& in, const Masked& masked, cudaStream_t stream) {
  if (in.value_low != nullptr) {
    launch<Width, true>(in, masked, stream);
  } else {
    launch<Width, false>(in, masked, stream);
  }
}

}  // namespace

bool masked_order_pays(std::size_t count) { return count <= kMostMaskedCounts && has_hopper_products(); }

std::size_t masked_order_bytes(const Sizes& size, std::size_t count) {
  const Scratch of(size.prompt, size.rows, size.stride, size.value_dim, static_cast<int>(count));
  return of.budgets + of.sums + of.masses;
}

template <typename Rank>
void launch_masked_order(const OwnOrderArguments<Rank>& in, void* scratch, cudaStream_t stream) {
  const Scratch of(in.prompt, in.rows, in.stride, in.value_dim, in.count);
  auto* const bytes = static_cast<unsigned char*>(scratch);
  auto* const budgets = reinterpret_cast<__half*>(bytes);
  const Masked masked{in.weight_high,
                      in.weight_low,
                      in.value_high,
                      in.value_low,
                      budgets,
                      reinterpret_cast<float*>(bytes + of.budgets),
                      reinterpret_cast<float*>(bytes + of.budgets + of.sums),
                      in.prompt,
                      in.stride,
                      in.count,
                      padded_rows(in.rows)};
  launch_budgets(in, masked.rows, budgets, stream);
  switch (padded_value_dim(in.value_dim)) {
    case 64:
      return launch<64>(in, masked, stream);
    case 128:
      return launch<128>(in, masked, stream);
    default:
      return launch<256>(in, masked, stream);
  }
}

template void launch_masked_order(const OwnOrderArguments<std::uint16_t>&, void*, cudaStream_t);
template void launch_masked_order(const OwnOrderArguments<std::uint32_t>&, void*, cudaStream_t);

}  // namespace kvsim::cuda
