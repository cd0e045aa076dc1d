// The one-pass budget curve on Hopper's warpgroup products: as curve.cu, for compute capability 9.0 alone (built for sm_90a).
//
// Work of 30 rankings x 1024 rows x 32768 tokens x 128 channels: 515 TFLOP (two terms), 0.8 ms at the 650 TFLOP/s that cuBLAS
// reaches. Bytes: every ranking gathers 134 MB of weights, 4.0 GB in all, and 256 rows share a gathered value row: 1.0 GB. That is
// 0.9 ms at the 5.5 TB/s of the second-level cache, so bytes bound this kernel before arithmetic does.
//
// A block takes a tile of rows of one ranking and all columns. A warpgroup of producers gathers steps of kStepTokens tokens
// into a ring of stages; two warpgroups of consumers multiply them (each 128 rows x up to 128 columns of sums, in registers) and
// take the snapshots. The sum of the weights is a product with an atom of ones behind the columns.
#include <math_constants.h>

#include "kernels/cuda/curve.h"
#include "kernels/cuda/raii.h"
#include "kernels/cuda/wgmma.cuh"

namespace kvsim::cuda {
namespace {

namespace hw = hopper;

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;  // producers, consumers, consumers
constexpr int kLookAhead = 4;                // steps whose tokens a producer warp knows at a time: 32 lanes of 8 tokens
constexpr int kChunk = 8;                    // bfloat16 numbers of a 16-byte access
constexpr float kFloor = 1e-18f;
constexpr int kOnes = 8;                     // columns of ones
static_assert(kStepTokens == 32, "a producer warp has 8 tokens of a step");

/// Shapes of a block. Width = columns of a value row; Blocks = 64-row blocks of a consumer.
template <int Width, bool SplitValues, int Blocks>
struct Shape {
  static constexpr int kColumns = Width > 128 ? 128 : Width;   // of a consumer
  static constexpr int kSides = Width / kColumns;              // 2: the consumers share the rows, each has half of the columns
  static constexpr int kRows = 64 * Blocks * (kSides == 2 ? 1 : 2);
  static constexpr int kAtoms = kStepTokens / 8 * hw::kAtomBytes;  // bytes of 64 rows or columns
  static constexpr int kValueAtoms = kColumns / 64;                // of a consumer
  static constexpr int kLow = kRows / 64 * kAtoms;
  static constexpr int kValue = 2 * kLow;
  static constexpr int kSideBytes = (kValueAtoms + (kOnes != 0 ? 1 : 0)) * kAtoms;  // values, then ones
  static constexpr int kValueLow = kValue + kSides * kSideBytes;
  static constexpr int kStageBytes = kValueLow + (SplitValues ? kSides * kValueAtoms * kAtoms : 0);
  static constexpr int kMostStages = 8, kMostBytes = 224 * 1024;
  static constexpr int kStages = kMostBytes / kStageBytes < kMostStages ? kMostBytes / kStageBytes : kMostStages;
  static constexpr int kBytes = kStages * kStageBytes + hw::kAtomBytes;  // the ring begins at a multiple of an atom
};

struct Barriers {
  std::uint32_t full, empty;  // of the first stage; the others follow every 8 bytes
};

template <typename S, int Width, bool SplitValues>
__device__ __forceinline__ void produce(const CurveCall& in, const RankingOnDevice& ranking, int row0, std::uint32_t ring, Barriers barriers) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kRowChunks = S::kRows / kChunk, kValueChunks = Width / kChunk;
  constexpr int kTokensAtOnce = 32 / kRowChunks, kValuesAtOnce = 32 / kValueChunks;
  const int last_step = static_cast<int>(ranking.step_count) - 1, steps = last_step + 1;
  const std::uint32_t slot = static_cast<std::uint32_t>(warp * 8 + lane % 8);
  // Lane 8 q + i looks up token i of this warp in step q of the next kLookAhead.
  const auto step_of = [&](int first) { return ranking.steps[min(first + lane / 8, last_step)]; };
  const auto token_of = [&](const CurveStep& step) { return ranking.order[min(step.first + slot, ranking.order_size - 1)]; };
  CurveStep step = step_of(0);
  std::uint32_t token = token_of(step);
  CurveStep next_step = step_of(kLookAhead);

  const int row_chunk = lane % kRowChunks, value_chunk = lane % kValueChunks;
  const int row_token = lane / kRowChunks, value_token = lane / kValueChunks;  // of those that the warp fetches at once
  const bool row_present = row0 + row_chunk * kChunk < static_cast<int>(ranking.row_end);
  const __nv_bfloat16* const high = in.weight_high + (row_present ? row0 + row_chunk * kChunk : 0);
  const __nv_bfloat16* const low = in.weight_low + (row_present ? row0 + row_chunk * kChunk : 0);
  const __nv_bfloat16* const value = in.value_high + value_chunk * kChunk;
  // Where chunks of token 0 of the warp's 8 go; token i is there ^ i * (128 + 16): 128 bytes on, and swizzled.
  constexpr std::uint32_t kNextToken = 128 + 16;
  const std::uint32_t row_to = hw::swizzled(warp * 8, row_chunk, S::kAtoms);
  constexpr int kSideChunks = S::kColumns / kChunk;  // a value row of 256 columns lies in two parts, with ones in between
  const std::uint32_t value_to = S::kValue + value_chunk / kSideChunks * S::kSideBytes + hw::swizzled(warp * 8, value_chunk % kSideChunks, S::kAtoms);
  const std::uint32_t value_low_to =
      S::kValueLow + value_chunk / kSideChunks * S::kValueAtoms * S::kAtoms + hw::swizzled(warp * 8, value_chunk % kSideChunks, S::kAtoms);

  int stage = 0;
  std::uint32_t phase = 1;
  for (int first = 0; first < steps; first += kLookAhead) {
    const std::uint32_t next_token = token_of(next_step);
    const CurveStep after_next = step_of(first + 2 * kLookAhead);
#pragma unroll 1
    for (int q = 0; q < kLookAhead && first + q < steps; ++q) {
      const int tokens = __shfl_sync(0xffffffffu, static_cast<int>(step.tokens), q * 8);
      const std::uint32_t at = ring + stage * S::kStageBytes;
      hw::wait_barrier(barriers.empty + stage * 8, phase);
      __syncwarp();
      if (warp < 2 || tokens > 16) {  // the second half of a step is not multiplied where it is empty
#pragma unroll
        for (int i = 0; i < 8; i += kTokensAtOnce) {
          const int mine = i + row_token;
          const bool present = row_present && warp * 8 + mine < tokens;
          const std::size_t from = static_cast<std::size_t>(__shfl_sync(0xffffffffu, token, q * 8 + mine)) * static_cast<std::uint32_t>(in.stride);
          const std::uint32_t to = (at + row_to) ^ static_cast<std::uint32_t>(mine) * kNextToken;
          hw::copy_async(to, high + from, present);
          hw::copy_async(to + S::kLow, low + from, present);
        }
#pragma unroll
        for (int i = 0; i < 8; i += kValuesAtOnce) {
          const int mine = i + value_token;
          const bool present = warp * 8 + mine < tokens;
          const std::size_t from = static_cast<std::size_t>(__shfl_sync(0xffffffffu, token, q * 8 + mine)) * Width;
          hw::copy_async((at + value_to) ^ static_cast<std::uint32_t>(mine) * kNextToken, value + from, present);
          if constexpr (SplitValues)
            hw::copy_async((at + value_low_to) ^ static_cast<std::uint32_t>(mine) * kNextToken, in.value_low + from + value_chunk * kChunk, present);
        }
      }
      hw::arrive_after_copies(barriers.full + stage * 8);
      if (++stage == S::kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
    step = next_step;
    token = next_token;
    next_step = after_next;
  }
}

/// Sums of a consumer: Blocks x 64 rows x Columns channels, then the weights' sum (8 times).
template <int Columns, int Blocks>
struct Sums {
  static constexpr int kMass = Columns / 2;
  float at[Blocks][kMass + 4];
};

/// Rows and columns of a thread's sums.
struct Place {
  int row, column, side;  // first row (of block 0, half 0) and column
};

template <int Columns, int Blocks>
__device__ __forceinline__ void begin(const CurveCall& in, int row_end, const Place& place, Sums<Columns, Blocks>& sums) {
#pragma unroll
  for (int m = 0; m < Blocks; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row + m * 64 + half * 8;
      const bool present = row < row_end;
#pragma unroll
      for (int n = 0; n < Columns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = place.column + n * 8 + e;
          sums.at[m][n * 4 + half * 2 + e] = present && c < in.value_dim ? in.tail[static_cast<std::size_t>(row) * in.value_dim + c] : 0.0f;
        }
      sums.at[m][Sums<Columns, Blocks>::kMass + half * 2] = present && (kOnes != 0 || threadIdx.x % 4 == 0) ? in.tail_weight[row] : 0.0f;
      sums.at[m][Sums<Columns, Blocks>::kMass + half * 2 + 1] = 0.0f;
    }
}

/// Compares with the exact outputs and writes `snapshots` budgets from `first` on (counted over all rankings).
template <bool Deltas, int Columns, int Sides, int Blocks>
__device__ __forceinline__ void snapshot(const CurveCall& in, const RankingOnDevice& ranking, const Place& place,
                                         std::size_t first, int snapshots, const Sums<Columns, Blocks>& sums, float* part) {
  constexpr int kMass = Sums<Columns, Blocks>::kMass;
  const int lane = threadIdx.x % 32;
  int column = place.column;  // opaque, or the addresses of all of `exact` are computed before the loop and spill
  asm volatile("" : "+r"(column));
  const bool pairs = in.value_dim % 2 == 0;  // two channels are 8 aligned bytes
  float mine = 0, mine_held = 0;  // of the row that this thread finishes: lane % 4 of the four that its quad has
#pragma unroll
  for (int m = 0; m < Blocks; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = place.row + m * 64 + half * 8;
      const bool present = row >= static_cast<int>(ranking.row_begin) && row < static_cast<int>(ranking.row_end);
      float held = sums.at[m][kMass + half * 2];
      if constexpr (kOnes == 0) {
        held += __shfl_xor_sync(0xffffffffu, held, 1);
        held += __shfl_xor_sync(0xffffffffu, held, 2);
      }
      const float factor = held > 0 ? 1.0f / held : 0.0f;
      const int columns = present ? in.value_dim - column : 0;  // from this thread's first on
      const float* const exact = in.exact + static_cast<std::size_t>(present ? row : 0) * in.value_dim + column;
      float difference[Columns / 4];
#pragma unroll
      for (int i = 0; i < Columns / 4; ++i) difference[i] = 0.0f;
      if (pairs) {
#pragma unroll
        for (int n = 0; n < Columns / 8; ++n)
          if (n * 8 < columns) {
            const float2 two = *reinterpret_cast<const float2*>(exact + n * 8);
            difference[n * 2] = two.x;
            difference[n * 2 + 1] = two.y;
          }
      } else {
#pragma unroll
        for (int i = 0; i < Columns / 4; ++i)
          if (i / 2 * 8 + i % 2 < columns) difference[i] = exact[i / 2 * 8 + i % 2];
      }
      float square = 0;
#pragma unroll
      for (int i = 0; i < Columns / 4; ++i) {
        difference[i] = sums.at[m][i / 2 * 4 + half * 2 + i % 2] * factor - difference[i];
        square = fmaf(difference[i], difference[i], square);
      }
      if constexpr (Deltas)
        for (int b = 0; b < snapshots; ++b) {
          float* const to = in.delta + ((first + b) * in.value_dim + column) * in.result_stride + row;
#pragma unroll
          for (int i = 0; i < Columns / 4; ++i)
            if (i / 2 * 8 + i % 2 < columns) to[static_cast<std::size_t>(i / 2 * 8 + i % 2) * in.result_stride] = difference[i];
        }
      square += __shfl_xor_sync(0xffffffffu, square, 1);
      square += __shfl_xor_sync(0xffffffffu, square, 2);
      if (lane % 4 == m * 2 + half) {
        mine = square;
        mine_held = held;
      }
    }
  const int at = lane % 4 / 2 * 64 + lane % 2 * 8, row = place.row + at;
  const bool writes = lane % 4 < 2 * Blocks && row >= static_cast<int>(ranking.row_begin) && row < static_cast<int>(ranking.row_end);
  double square = static_cast<double>(mine);
  if constexpr (Sides == 2) {  // the other consumer has the other columns
    const int slot = threadIdx.x % kGroupThreads;
    part[place.side * kGroupThreads + slot] = mine;
    hw::meet(1, 2 * kGroupThreads);
    square = static_cast<double>(part[slot]) + static_cast<double>(part[kGroupThreads + slot]);
    hw::meet(1, 2 * kGroupThreads);
  }
  if (writes && place.side == 0) {
    const double norm = in.norm[row];
    const float error = mine_held < kFloor ? CUDART_NAN_F : static_cast<float>(sqrt(norm > 0 ? square / norm : square));
    for (int i = 0; i < snapshots; ++i) {
      in.error[(first + i) * in.result_stride + row] = error;
      in.recall[(first + i) * in.result_stride + row] = mine_held;
    }
  }
}

/// Weights of 16 tokens x 64 rows per block, both terms: what the products take from registers.
template <int Blocks>
struct Weights16 {
  std::uint32_t high[Blocks][4], low[Blocks][4];
};
template <typename S, int Blocks>
__device__ __forceinline__ void load_weights(std::uint32_t at, Weights16<Blocks>& to) {
#pragma unroll
  for (int m = 0; m < Blocks; ++m) {
    hw::load_turned(to.high[m], at + m * S::kAtoms);
    hw::load_turned(to.low[m], at + m * S::kAtoms + S::kLow);
  }
}

/// Adds the products of 16 tokens.
template <typename S, bool SplitValues, int Blocks>
__device__ __forceinline__ void multiply(const Weights16<Blocks>& weights, std::uint32_t values_at, std::uint32_t values_low_at,
                                         Sums<S::kColumns, Blocks>& sums) {
  const std::uint64_t value = hw::operand(values_at, S::kAtoms, hw::kAtomBytes);
#pragma unroll
  for (int m = 0; m < Blocks; ++m) {
    hw::multiply_add(hw::Columns<S::kColumns + kOnes>{}, sums.at[m], weights.high[m], value);
    hw::multiply_add(hw::Columns<S::kColumns + kOnes>{}, sums.at[m], weights.low[m], value);
    if constexpr (SplitValues)
      hw::multiply_add(hw::Columns<S::kColumns>{}, sums.at[m], weights.high[m], hw::operand(values_low_at, S::kAtoms, hw::kAtomBytes));
  }
}

/// Adds a thread's share of the weights to the masses (4 threads share a row), where products do not.
template <int Columns, int Blocks>
__device__ __forceinline__ void add_masses(const Weights16<Blocks>& weights, Sums<Columns, Blocks>& sums) {
  if constexpr (kOnes == 0) {
#pragma unroll
    for (int m = 0; m < Blocks; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto two = [](std::uint32_t pair) { return __uint_as_float(pair << 16) + __uint_as_float(pair & 0xFFFF0000u); };
        float& mass = sums.at[m][Sums<Columns, Blocks>::kMass + i % 2 * 2];
        mass += two(weights.high[m][i]) + two(weights.low[m][i]);
      }
  }
}

template <typename S, bool SplitValues, bool Deltas, int Blocks>
__device__ __forceinline__ void consume(const CurveCall& in, const RankingOnDevice& ranking, int row0, std::uint32_t ring, Barriers barriers, float* part) {
  constexpr int kColumns = S::kColumns;
  constexpr std::uint32_t kSecond = 2 * hw::kAtomBytes;  // the second 16 tokens of a step
  const int consumer = threadIdx.x / kGroupThreads - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int side = S::kSides == 2 ? consumer : 0, first_block = S::kSides == 2 ? 0 : consumer * Blocks;
  const Place place{row0 + first_block * 64 + warp * 16 + lane / 4, side * kColumns + lane % 4 * 2, side};
  Sums<kColumns, Blocks> sums;
  begin(in, static_cast<int>(ranking.row_end), place, sums);
  const std::uint32_t rows_at = ring + first_block * S::kAtoms + hw::swizzled(lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2, S::kAtoms);
  const std::uint32_t values_at = ring + S::kValue + side * S::kSideBytes;
  const std::uint32_t values_low_at = ring + S::kValueLow + side * S::kValueAtoms * S::kAtoms;
  const int steps = static_cast<int>(ranking.step_count);
  std::size_t next_snapshot = static_cast<std::size_t>(blockIdx.x) * in.counts;
  Weights16<Blocks> first, second;
  int stage = 0;
  std::uint32_t phase = 0;
  CurveStep step = ranking.steps[0];
  for (int s = 0; s < steps;) {
    int open = -1;  // the stage whose products may still run
    int snapshots = 0;
    do {
      const CurveStep next = ranking.steps[min(s + 1, steps - 1)];
      hw::wait_barrier(barriers.full + stage * 8, phase);
      hw::show_to_products();
      const std::uint32_t at = stage * S::kStageBytes;
      load_weights<S>(rows_at + at, first);
      hw::begin_products();
      multiply<S, SplitValues>(first, values_at + at, values_low_at + at, sums);
      hw::commit_products();
      add_masses(first, sums);
      if (step.tokens > 16) {
        hw::wait_products<1>();
        load_weights<S>(rows_at + at + kSecond, second);
        hw::begin_products();
        multiply<S, SplitValues>(second, values_at + at + kSecond, values_low_at + at + kSecond, sums);
        hw::commit_products();
        add_masses(second, sums);
        if (open >= 0 && lane == 0) hw::arrive(barriers.empty + open * 8);
        hw::wait_products<1>();
      } else {  // the end of a segment
        hw::wait_products<0>();
        if (open >= 0 && lane == 0) hw::arrive(barriers.empty + open * 8);
      }
      open = stage;
      if (++stage == S::kStages) {
        stage = 0;
        phase ^= 1;
      }
      snapshots = step.snapshots;
      step = next;
      ++s;
    } while (snapshots == 0);  // the last step has one
    hw::wait_products<0>();
    if (lane == 0) hw::arrive(barriers.empty + open * 8);
#pragma unroll
    for (int m = 0; m < Blocks; ++m) hw::pin(sums.at[m]);
    snapshot<Deltas, kColumns, S::kSides, Blocks>(in, ranking, place, next_snapshot, snapshots, sums, part);
    next_snapshot += snapshots;
  }
}

template <int Width, bool SplitValues, bool Deltas, int Blocks>
__global__ void __launch_bounds__(kThreads, 1) hopper_curve_kernel(const __grid_constant__ CurveCall in) {
  using S = Shape<Width, SplitValues, Blocks>;
  extern __shared__ unsigned char space[];
  __shared__ std::uint64_t barrier_space[2 * S::kStages];
  __shared__ float part[2 * kGroupThreads];
  const RankingOnDevice ranking = in.rankings[blockIdx.x];
  const int row0 = static_cast<int>(ranking.row_begin / 8 * 8) + static_cast<int>(blockIdx.y) * S::kRows;
  if (row0 >= static_cast<int>(ranking.row_end)) return;
  const std::uint32_t ring = (hw::shared_address(space) + hw::kAtomBytes - 1) / hw::kAtomBytes * hw::kAtomBytes;
  const Barriers barriers{hw::shared_address(barrier_space), hw::shared_address(barrier_space + S::kStages)};
  if constexpr (kOnes != 0)
  // The atoms of ones: every stage has its own, behind its values.
  for (int i = threadIdx.x; i < S::kStages * S::kSides * S::kAtoms / 4; i += kThreads) {
    const int stage = i / (S::kSides * S::kAtoms / 4), rest = i % (S::kSides * S::kAtoms / 4);
    const int side = rest / (S::kAtoms / 4), word = rest % (S::kAtoms / 4);
    const std::uint32_t at = ring + stage * S::kStageBytes + S::kValue + side * S::kSideBytes + S::kValueAtoms * S::kAtoms + word * 4;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(0x3F803F80u) : "memory");
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      hw::init_barrier(barriers.full + s * 8, kGroupThreads);
      hw::init_barrier(barriers.empty + s * 8, 8);
    }
  }
  hw::show_to_products();
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    hw::fewer_registers<56>();
    produce<S, Width, SplitValues>(in, ranking, row0, ring, barriers);
  } else {
    hw::more_registers<224>();
    consume<S, SplitValues, Deltas, Blocks>(in, ranking, row0, ring, barriers, part);
  }
}

template <int Width, bool SplitValues, int Blocks>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  using S = Shape<Width, SplitValues, Blocks>;
  const auto kernel = call.delta != nullptr ? hopper_curve_kernel<Width, SplitValues, true, Blocks> : hopper_curve_kernel<Width, SplitValues, false, Blocks>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes), "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(rankings), static_cast<unsigned>((most_rows + 7 + S::kRows - 1) / S::kRows));
  kernel<<<grid, kThreads, S::kBytes, stream>>>(call);
  check(cudaGetLastError(), "hopper_curve_kernel");
}

template <int Width, bool SplitValues>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  // Low tiles where high ones would leave most of the GPU idle; a row's bits are the same.
  constexpr int kRows = Shape<Width, SplitValues, 2>::kRows, kFew = 64;
  if (most_rows <= kRows / 2 || (most_rows + kRows - 1) / kRows * rankings <= kFew) {
    launch<Width, SplitValues, 1>(call, rankings, most_rows, stream);
  } else {
    launch<Width, SplitValues, 2>(call, rankings, most_rows, stream);
  }
}

template <int Width>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  if (call.value_low != nullptr) {
    launch<Width, true>(call, rankings, most_rows, stream);
  } else {
    launch<Width, false>(call, rankings, most_rows, stream);
  }
}

}  // namespace

void launch_hopper_curves(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  switch (padded_value_dim(call.value_dim)) {
    case 64:
      return launch<64>(call, rankings, most_rows, stream);
    case 128:
      return launch<128>(call, rankings, most_rows, stream);
    default:
      return launch<256>(call, rankings, most_rows, stream);
  }
}

bool has_hopper_products() {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  return major == 9 && minor == 0;
}

}  // namespace kvsim::cuda
