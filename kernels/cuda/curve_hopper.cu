// The one-pass budget curve on Hopper's warpgroup products: as curve.cu, for compute capability 9.0 alone (built for sm_90a).
//
// Floor for 30 rankings x 1024 rows x 32768 tokens x 128 channels: 515 GFLOP (two terms), 0.65 ms at the 790 TFLOP/s of a large square
// product of cuBLAS; and 5 GB through the second-level cache (134 MB of gathered weights a ranking, a value row for every 256 rows),
// which gathered alone in 0.87 ms. Measured on an H200: 0.99 ms cool, 1.12 in a row (the clock falls): 97 to 109 % of
// the rate of cuBLAS' batched product.
//
// A block takes a tile of rows of one ranking and all columns. A warpgroup of producers gathers steps of kStepTokens tokens
// into a ring of stages; two warpgroups of consumers multiply them (each 128 rows x up to 128 columns of sums, in registers) and
// take the snapshots. The sum of the weights is a product with an atom of ones behind the columns.
#include <algorithm>

#include "kernels/cuda/curve_snapshot.cuh"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

namespace hw = hopper;

/// Adds the products of 16 tokens; `at` = where they begin in the first of the operands.
template <typename S, bool SplitValues, int Blocks>
__device__ __forceinline__ void multiply(std::uint32_t rows_at, std::uint32_t values_at, std::uint32_t values_low_at,
                                         hw::Sums<S::kColumns, Blocks>& sums) {
  const auto of = [](std::uint32_t at) { return hw::operand(at, S::kAtoms, hw::kAtomBytes); };
  const auto wide = hw::Columns<S::kColumns + 8>{};
  // Blocks in turn: a product that follows one into the same sums waits for it.
#pragma unroll
  for (int m = 0; m < Blocks; ++m) hw::multiply_add(wide, sums.at[m], of(rows_at + m * S::kAtoms), of(values_at));
#pragma unroll
  for (int m = 0; m < Blocks; ++m) hw::multiply_add(wide, sums.at[m], of(rows_at + S::kLow + m * S::kAtoms), of(values_at));
  if constexpr (SplitValues) {
#pragma unroll
    for (int m = 0; m < Blocks; ++m)
      hw::multiply_add(hw::Columns<S::kColumns>{}, sums.at[m], of(rows_at + m * S::kAtoms), of(values_low_at));
  }
}

template <typename S, bool SplitValues, bool Deltas, int Blocks>
__device__ __forceinline__ void consume(const CurveCall& in, const RankingOnDevice& ranking, int row0, std::uint32_t ring,
                                        hw::Barriers barriers, float* part) {
  constexpr int kColumns = S::kColumns;
  const int consumer = threadIdx.x / hw::kGroupThreads - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int side = S::kSides == 2 ? consumer : 0, first_block = S::kSides == 2 ? 0 : consumer * Blocks;
  const hw::Place place{row0 + first_block * 64 + warp * 16 + lane / 4, side * kColumns + lane % 4 * 2, side};
  hw::Sums<kColumns, Blocks> sums;
  hw::begin(in, static_cast<int>(ranking.row_end), place, sums);
  const std::uint32_t rows_at = ring + first_block * S::kAtoms, values_at = ring + S::kValue + side * S::kSideBytes;
  const std::uint32_t values_low_at = ring + S::kValueLow + side * S::kValueAtoms * S::kAtoms;
  const int steps = static_cast<int>(ranking.step_count);
  std::size_t next_snapshot = static_cast<std::size_t>(blockIdx.x) * in.counts;
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
      hw::begin_products();
      // One group of products in either branch, or the wait below would be for all of them.
      if (step.tokens > 16) {
        constexpr std::uint32_t kSecond = 2 * hw::kAtomBytes;
        multiply<S, SplitValues, Blocks>(rows_at + at, values_at + at, values_low_at + at, sums);
        multiply<S, SplitValues, Blocks>(rows_at + at + kSecond, values_at + at + kSecond, values_low_at + at + kSecond, sums);
        hw::commit_products();
      } else {
        multiply<S, SplitValues, Blocks>(rows_at + at, values_at + at, values_low_at + at, sums);
        hw::commit_products();
      }
      hw::wait_products<1>();
      if (open >= 0 && lane == 0) hw::arrive(barriers.empty + open * 8);
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
    hw::snapshot<Deltas, kColumns, S::kSides, Blocks>(in, ranking, place, next_snapshot, snapshots, sums, part);
    next_snapshot += snapshots;
  }
}

template <int Width, bool SplitValues, bool Deltas, int Blocks, int Sides>
__global__ void __launch_bounds__(hw::kThreads, 1) hopper_curve_kernel(const __grid_constant__ CurveCall in) {
  using S = hw::Shape<Width, SplitValues, Blocks, Sides>;
  extern __shared__ unsigned char space[];
  __shared__ std::uint64_t barrier_space[2 * S::kStages];
  __shared__ float part[S::kSides * S::kValueAtoms * hw::kGroupThreads];
  const RankingOnDevice ranking = in.rankings[blockIdx.x];
  const int row0 = static_cast<int>(ranking.row_begin / 8 * 8) + static_cast<int>(blockIdx.y) * S::kRows;
  if (row0 >= static_cast<int>(ranking.row_end)) return;
  const std::uint32_t ring = (hw::shared_address(space) + hw::kAtomBytes - 1) / hw::kAtomBytes * hw::kAtomBytes;
  const hw::Barriers barriers{hw::shared_address(barrier_space), hw::shared_address(barrier_space + S::kStages)};
  // The atoms of ones: every stage has its own, behind its values.
  for (int i = threadIdx.x; i < S::kStages * S::kSides * S::kAtoms / 4; i += hw::kThreads) {
    const int stage = i / (S::kSides * S::kAtoms / 4), rest = i % (S::kSides * S::kAtoms / 4);
    const int side = rest / (S::kAtoms / 4), word = rest % (S::kAtoms / 4);
    const std::uint32_t at = ring + stage * S::kStageBytes + S::kValue + side * S::kSideBytes + S::kValueAtoms * S::kAtoms + word * 4;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(0x3F803F80u) : "memory");
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      hw::init_barrier(barriers.full + s * 8, hw::kGroupThreads);
      hw::init_barrier(barriers.empty + s * 8, 8);
    }
  }
  hw::show_to_products();
  __syncthreads();
  if (threadIdx.x < hw::kGroupThreads) {
    hw::fewer_registers<80>();
    hw::produce<S, Width, SplitValues>(in, ranking, row0, ring, barriers);
  } else {
    hw::more_registers<208>();
    consume<S, SplitValues, Deltas, Blocks>(in, ranking, row0, ring, barriers, part);
  }
}

template <int Width, bool SplitValues, int Blocks, int Sides>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  using S = hw::Shape<Width, SplitValues, Blocks, Sides>;
  const auto kernel = call.delta != nullptr ? hopper_curve_kernel<Width, SplitValues, true, Blocks, Sides>
                                            : hopper_curve_kernel<Width, SplitValues, false, Blocks, Sides>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kBytes), "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(rankings), static_cast<unsigned>((most_rows + 7 + S::kRows - 1) / S::kRows));
  kernel<<<grid, hw::kThreads, S::kBytes, stream>>>(call);
  check(cudaGetLastError(), "hopper_curve_kernel");
}

/// Time of a call in passes of a tile of 256 rows, where a tile of `rows` takes `cost`.
double passes(int rankings, int most_rows, int rows, double cost) {
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const int blocks = (most_rows + rows - 1) / rows * rankings;
  return (blocks + multiprocessors - 1) / multiprocessors * cost;
}

/// Low tiles where high ones would leave much of the GPU idle; a row's bits are the same.
template <int Width, bool SplitValues>
void launch(const CurveCall& call, int rankings, int most_rows, cudaStream_t stream) {
  constexpr int kSides = Width == 256 ? 2 : 1, kRows = 256 / kSides;
  const double high = passes(rankings, most_rows, kRows, 1.0), middle = passes(rankings, most_rows, kRows / 2, 0.58);
  if constexpr (Width == 128) {
    if (passes(rankings, most_rows, kRows / 4, 0.42) < std::min(high, middle))
      return launch<Width, SplitValues, 1, 2>(call, rankings, most_rows, stream);
  }
  if (middle < high) return launch<Width, SplitValues, 1, kSides>(call, rankings, most_rows, stream);
  launch<Width, SplitValues, 2, kSides>(call, rankings, most_rows, stream);
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
