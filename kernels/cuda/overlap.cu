// Kept tokens among a row's own best, and among its needed sets, for all budgets of a ranking in one reading of packed ranks.
//
// A token kept from budget p on, whose rank is below the limits from budget q on, counts from max(p, q) on. Within a segment of
// the order p is fixed: tokens with q <= p are counted four rows at a time in the bytes of a register, the others go to a
// histogram of q. Needed sets are flags, counted the same way.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"

namespace kvsim::cuda {
namespace {

constexpr int kChunks = 16;   // parts of the order, counted by different blocks
constexpr int kThreads = 64;  // each has the rows of one 32-bit word
constexpr int kBatch = 8;     // tokens whose words are loaded together
constexpr int kCounted = 1 + kFractions;

template <typename Rank, typename Packed>
__global__ void pack_kernel(const Rank* __restrict__ ranks, const std::uint32_t* __restrict__ needed_prompt, const std::uint32_t* __restrict__ counts,
                            int count, Sizes size, Packed* __restrict__ packed) {
  extern __shared__ std::uint32_t limit[];
  for (int b = threadIdx.x; b < count; b += blockDim.x) limit[b] = counts[b];
  __syncthreads();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= size.stride) return;
  std::uint32_t needed[kFractions];
  for (int c = 0; c < kFractions; ++c) needed[c] = row < size.rows ? needed_prompt[c * size.stride + row] : 0u;
  for (int t = blockIdx.y; t < size.prompt; t += gridDim.y) {
    const std::size_t at = static_cast<std::size_t>(t) * size.stride + row;
    const std::uint32_t rank = ranks[at];
    int low = 0, high = count;  // the first budget whose limit is above the rank
    while (low < high) {
      const int middle = (low + high) / 2;
      if (limit[middle] > rank) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    constexpr int kTop = Packing<Packed>::kBits - 1;
    std::uint32_t flags = 0;
    for (int c = 0; c < kFractions; ++c) flags |= (rank < needed[c] ? 1u : 0u) << (kTop - c);
    packed[at] = static_cast<Packed>(flags | static_cast<std::uint32_t>(low == count ? Packing<Packed>::kNever : low));
  }
}

/// Lanes of a word, one per row.
template <typename Packed>
struct Lanes {
  static constexpr int kBits = Packing<Packed>::kBits;
  static constexpr int kRows = 32 / kBits;
  static constexpr std::uint32_t kOnes = kBits == 8 ? 0x01010101u : 0x00010001u;
  static constexpr std::uint32_t kBudget = static_cast<std::uint32_t>(Packing<Packed>::kNever) * kOnes;
  static constexpr int kFull = kBits == 8 ? 255 : 65535;  // additions until a lane may overflow
  /// 1 in every lane whose budget is at most p (p < kNever): the borrow of budget - (p + 1), guarded by a bit above.
  static __device__ std::uint32_t at_most(std::uint32_t budgets, std::uint32_t p) {
    constexpr std::uint32_t kGuard = kOnes << (kBits - 1);
    const std::uint32_t difference = (budgets | kGuard) - (p + 1) * kOnes;
    return ~difference >> (kBits - 1) & kOnes;
  }
};

template <typename Packed>
__global__ void __launch_bounds__(kThreads) count_kernel(OverlapArguments<Packed> in) {
  using L = Lanes<Packed>;
  extern __shared__ std::uint16_t histogram[];  // [counts][lane][kThreads]; a chunk has fewer than 65536 tokens, see launch
  const RankingOnDevice ranking = in.rankings[blockIdx.y];
  const int row = static_cast<int>(ranking.row_begin / L::kRows * L::kRows) + (blockIdx.x * kThreads + static_cast<int>(threadIdx.x)) * L::kRows;
  const int counts = in.counts_per_ranking;
  if (row >= static_cast<int>(ranking.row_end)) return;  // no barriers below
  const auto slot = [&](int b, int lane) -> std::uint16_t& { return histogram[(b * L::kRows + lane) * kThreads + threadIdx.x]; };
  for (int b = 0; b < counts; ++b)
    for (int lane = 0; lane < L::kRows; ++lane) slot(b, lane) = 0;
  const auto write = [&](int counted, int b, int lane, std::uint32_t value) {
    const std::size_t part = static_cast<std::size_t>(blockIdx.z) * in.rankings_in_call + blockIdx.y;
    in.partial[((part * kCounted + counted) * counts + b) * in.stride + row + lane] = value;
  };
  const std::uint32_t all = in.counts[counts - 1];
  const std::uint32_t chunk = (all + kChunks - 1) / kChunks;
  const std::uint32_t first = min(all, chunk * blockIdx.z), last = min(all, first + chunk);
  std::uint32_t segment_begin = 0;
  for (int p = 0; p < counts; ++p) {
    const std::uint32_t begin = max(first, segment_begin), end = min(last, in.counts[p]);
    segment_begin = in.counts[p];
    std::uint32_t total[kCounted][L::kRows] = {};
    std::uint32_t i = begin;
    while (i < end) {
      // As many tokens as the lanes can count.
      const std::uint32_t stop = min(end, i + L::kFull / kBatch * kBatch);
      std::uint32_t sum[kCounted] = {};
      for (; i < stop; i += kBatch) {
        std::uint32_t word[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const std::uint32_t at = min(i + j, stop - 1);
          word[j] = *reinterpret_cast<const std::uint32_t*>(in.packed + static_cast<std::size_t>(ranking.order[at]) * in.stride + row);
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          if (i + j >= stop) continue;
#pragma unroll
          for (int c = 0; c < kFractions; ++c) sum[1 + c] += word[j] >> (L::kBits - 1 - c) & L::kOnes;
          const std::uint32_t budgets = word[j] & L::kBudget;
          const std::uint32_t inside = L::at_most(budgets, static_cast<std::uint32_t>(p));
          sum[0] += inside;
          if (inside == L::kOnes) continue;
#pragma unroll
          for (int lane = 0; lane < L::kRows; ++lane) {
            const int q = static_cast<int>(budgets >> (lane * L::kBits) & Packing<Packed>::kNever);
            if (q > p && q < counts) ++slot(q, lane);
          }
        }
      }
      i = stop;
#pragma unroll
      for (int c = 0; c < kCounted; ++c)
#pragma unroll
        for (int lane = 0; lane < L::kRows; ++lane)
          total[c][lane] += sum[c] >> (lane * L::kBits) & ((1u << L::kBits) - 1u);
    }
#pragma unroll
    for (int lane = 0; lane < L::kRows; ++lane) {
      write(0, p, lane, total[0][lane]);
#pragma unroll
      for (int c = 1; c < kCounted; ++c) write(c, p, lane, total[c][lane]);
    }
  }
  for (int b = 0; b < counts; ++b)
    for (int lane = 0; lane < L::kRows; ++lane) {
      const std::size_t part = static_cast<std::size_t>(blockIdx.z) * in.rankings_in_call + blockIdx.y;
      in.partial[(part * kCounted * counts + b) * in.stride + row + lane] += slot(b, lane);
    }
}

/// Sums over chunks and budgets.
template <typename Packed>
__global__ void sum_kernel(OverlapArguments<Packed> in) {
  const RankingOnDevice ranking = in.rankings[blockIdx.y];
  const int row = static_cast<int>(ranking.row_begin + blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= static_cast<int>(ranking.row_end)) return;
  const int counts = in.counts_per_ranking, counted = static_cast<int>(blockIdx.z);
  std::uint32_t sum = 0;
  for (int b = 0; b < counts; ++b) {
    for (int k = 0; k < kChunks; ++k) {
      const std::size_t part = static_cast<std::size_t>(k) * in.rankings_in_call + blockIdx.y;
      sum += in.partial[((part * kCounted + counted) * counts + b) * in.stride + row];
    }
    const std::size_t at = (static_cast<std::size_t>(blockIdx.y) * counts + b) * in.stride + row;
    if (counted == 0) {
      in.agree[at] = sum;
    } else {
      in.found[static_cast<std::size_t>(counted - 1) * in.fraction_stride + at] = sum;
    }
  }
}

}  // namespace

int overlap_chunks() { return kChunks; }

template <typename Rank, typename Packed>
void launch_pack(const Rank* ranks, const std::uint32_t* needed_prompt, const std::uint32_t* counts, int count, const Sizes& size, Packed* packed,
                 cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((size.stride + 127) / 128), static_cast<unsigned>(size.prompt < 1024 ? size.prompt : 1024));
  pack_kernel<<<grid, 128, static_cast<std::size_t>(count) * sizeof(std::uint32_t), stream>>>(ranks, needed_prompt, counts, count, size, packed);
  check(cudaGetLastError(), "pack_kernel");
}

template <typename Packed>
void launch_overlap(const OverlapArguments<Packed>& arguments, int most_rows, cudaStream_t stream) {
  constexpr int kRows = Lanes<Packed>::kRows;
  const std::size_t bytes = static_cast<std::size_t>(arguments.counts_per_ranking) * kRows * kThreads * sizeof(std::uint16_t);
  check(cudaFuncSetAttribute(count_kernel<Packed>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "cudaFuncSetAttribute");
  const auto tiles = static_cast<unsigned>((most_rows + kRows + kThreads * kRows - 1) / (kThreads * kRows));
  const auto rankings = static_cast<unsigned>(arguments.rankings_in_call);
  count_kernel<Packed><<<dim3(tiles, rankings, kChunks), kThreads, bytes, stream>>>(arguments);
  check(cudaGetLastError(), "count_kernel");
  sum_kernel<Packed><<<dim3(static_cast<unsigned>((most_rows + 127) / 128), rankings, kCounted), 128, 0, stream>>>(arguments);
  check(cudaGetLastError(), "sum_kernel");
}

template void launch_pack(const std::uint16_t*, const std::uint32_t*, const std::uint32_t*, int, const Sizes&, std::uint8_t*, cudaStream_t);
template void launch_pack(const std::uint16_t*, const std::uint32_t*, const std::uint32_t*, int, const Sizes&, std::uint16_t*, cudaStream_t);
template void launch_pack(const std::uint32_t*, const std::uint32_t*, const std::uint32_t*, int, const Sizes&, std::uint8_t*, cudaStream_t);
template void launch_pack(const std::uint32_t*, const std::uint32_t*, const std::uint32_t*, int, const Sizes&, std::uint16_t*, cudaStream_t);
template void launch_overlap(const OverlapArguments<std::uint8_t>&, int, cudaStream_t);
template void launch_overlap(const OverlapArguments<std::uint16_t>&, int, cudaStream_t);

}  // namespace kvsim::cuda
