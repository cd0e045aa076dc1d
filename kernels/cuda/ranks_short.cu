// Ranks and needed sets of rows whose tokens fit into shared memory: one block orders one row and writes each
// rank once.
//
// Tokens are counted in bins of neighbouring weights, as fine as their number asks for, and placed by
// comparing them with the few others of their bin. Rows with many all but equal weights, which no bins tell
// apart, are sorted digit by digit instead.
#include "kernels/cuda/block_sort.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/raii.h"
#include "kernels/cuda/ranks.cuh"
#include "kernels/cuda/softmax.cuh"

namespace kvsim::cuda {
namespace {

using block::kThreads;

constexpr int kPairs =
    (kMostShortTokens + 1 + 2 * kThreads - 1) / (2 * kThreads);  // of neighbouring tokens, of a thread
constexpr int kItems = 2 * kPairs;
constexpr int kCoarseShift = 16;  // of a key: a coarse bin holds the weights between w and w (1 + 2^-7)
constexpr int kCoarseBins =
    (kUnseen >> kCoarseShift) + 2;                     // no key is larger; one more, where the last begins
constexpr int kCoarseVectors = (kCoarseBins + 7) / 8;  // of 4 words
constexpr int kFineWordsOfThread = 17;                 // odd: no two threads of a warp in one bank
constexpr int kFineWords = kMostShortTokens / 2;  // two bins of 16 bits in a word; no more bins than tokens
constexpr int kAtOnce = 3;                        // pairs of a thread that are read together
constexpr int kMostInBin = 64;
constexpr std::uint32_t kLow = (1u << kCoarseShift) - 1;
static_assert(kFineWordsOfThread * kThreads >= kFineWords && kMostShortTokens <= 0xffff);

struct BinSpace {
  std::uint32_t slot[kMostShortTokens];  // what is left of a key, above; its token, below
  std::uint32_t
      coarse[4 * kCoarseVectors];  // two bins of 16 bits in a word: counts, then where their fine bins begin
  std::uint32_t fine[kFineWords];  // counts, then where the bins begin, then where they end
};
struct Space {
  union {
    BinSpace bins;
    block::SortSpace sort;
    std::uint32_t by_place[kMostShortTokens];  // weights in their order (negative: of the decode), then ranks
  };
  std::uint32_t of_warp[block::kWarps];
  double mass_of_warp[block::kWarps];
  std::uint32_t total_count[kFractions], prompt_count[kFractions];
};

__device__ std::uint32_t half(const std::uint32_t* words, std::uint32_t i) {
  return reinterpret_cast<const std::uint16_t*>(words)[i];
}
/// Adds 1 to a number of 16 bits; what it was.
__device__ std::uint32_t count_half(std::uint32_t* words, std::uint32_t i) {
  return atomicAdd(words + i / 2, 1u << (i % 2 * 16)) >> (i % 2 * 16) & 0xffffu;
}
/// Fine bins of a coarse one: a power of two, for 1 or 2 tokens each.
__device__ std::uint32_t fine_bins(std::uint32_t tokens) {
  return tokens == 0 ? 0u : 1u << (31 - __clz(static_cast<int>(tokens)));
}

/// Turns counts of coarse bins into where their fine bins begin.
__device__ void lay_out_bins(Space& space) {
  constexpr int kOfThread = (kCoarseVectors + kThreads - 1) / kThreads;
  uint4* const words = reinterpret_cast<uint4*>(space.bins.coarse);
  const int first = static_cast<int>(threadIdx.x) * kOfThread, last = min(kCoarseVectors, first + kOfThread);
  std::uint32_t all = 0;
  for (int i = first; i < last; ++i) {
    const uint4 v = words[i];
    for (const std::uint32_t word : {v.x, v.y, v.z, v.w})
      all += fine_bins(word & 0xffffu) + fine_bins(word >> 16);
  }
  std::uint32_t at = block::sum_before(all, space.of_warp);
  const auto begin = [&](std::uint32_t word) {
    const std::uint32_t second = at + fine_bins(word & 0xffffu), both = at | second << 16;
    at = second + fine_bins(word >> 16);
    return both;
  };
  for (int i = first; i < last; ++i) {
    uint4 v = words[i];
    v.x = begin(v.x);
    v.y = begin(v.y);
    v.z = begin(v.z);
    v.w = begin(v.w);
    words[i] = v;
  }
  __syncthreads();
}

/// Turns counts of fine bins into where they begin; false where one holds too many.
__device__ bool begin_bins(Space& space) {
  std::uint32_t* const own = space.bins.fine + threadIdx.x * kFineWordsOfThread;
  const int words = min(kFineWordsOfThread, kFineWords - static_cast<int>(threadIdx.x) * kFineWordsOfThread);
  std::uint32_t all = 0;
  bool crowded = false;
  for (int i = 0; i < words; ++i) {
    const std::uint32_t low = own[i] & 0xffffu, high = own[i] >> 16;
    all += low + high;
    crowded = crowded || low > kMostInBin || high > kMostInBin;
  }
  if (__syncthreads_or(crowded)) return false;
  std::uint32_t at = block::sum_before(all, space.of_warp);
  for (int i = 0; i < words; ++i) {
    const std::uint32_t word = own[i], second = at + (word & 0xffffu);
    own[i] = at | second << 16;
    at = second + (word >> 16);
  }
  __syncthreads();
  return true;
}

/// Calls of(item, token) for the tokens of this thread that a row sees; items count from 0 with the
/// registers.
template <typename Of>
__device__ __forceinline__ void each_token(const Seen& seen, const Of& of) {
  const int base = (seen.first & ~1) + 2 * static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < kItems; ++i)
    if (const int token = base + i / 2 * 2 * kThreads + i % 2; token >= seen.first && token < seen.last)
      of(i, token);
}

/// Finds the places of the thread's tokens in the order; false where bins do not help. each_weight calls
/// of(item, token, weight) as each_token does.
template <typename EachWeight>
__device__ __forceinline__ bool place_by_bins(Space& space, const Seen& seen, const EachWeight& each_weight,
                                              std::uint32_t (&item)[kItems]) {
  BinSpace& bins = space.bins;
  constexpr int kVectors = static_cast<int>((sizeof(bins.coarse) + sizeof(bins.fine)) / sizeof(uint4));
  for (int i = threadIdx.x; i < kVectors; i += kThreads) reinterpret_cast<uint4*>(bins.coarse)[i] = uint4{};
  __syncthreads();
  each_weight([&](int i, int, float w) {
    item[i] = key_of(w);
    count_half(bins.coarse, item[i] >> kCoarseShift);
  });
  __syncthreads();
  lay_out_bins(space);
  each_token(seen, [&](int i, int) {
    const std::uint32_t coarse = item[i] >> kCoarseShift, first = half(bins.coarse, coarse),
                        count = half(bins.coarse, coarse + 1) - first;
    const std::uint32_t fine =
        first + ((item[i] & kLow) >> (kCoarseShift - 31 + __clz(static_cast<int>(count))));
    count_half(bins.fine, fine);
    item[i] = (item[i] & kLow) | fine << kCoarseShift;
  });
  __syncthreads();
  if (!begin_bins(space)) return false;
  const auto in_slot = [&](int i, int token) {
    return item[i] << kCoarseShift | static_cast<std::uint32_t>(token - seen.first);
  };
  each_token(seen, [&](int i, int token) {
    bins.slot[count_half(bins.fine, item[i] >> kCoarseShift)] = in_slot(i, token);
  });
  __syncthreads();
  each_token(seen, [&](int i, int token) {
    const std::uint32_t fine = item[i] >> kCoarseShift, end = half(bins.fine, fine), own = in_slot(i, token);
    const std::uint32_t begin = fine > 0 ? half(bins.fine, fine - 1) : 0u;
    std::uint32_t place = begin;
    if (end - begin > 1)
      for (std::uint32_t other = begin; other < end; ++other) place += bins.slot[other] < own ? 1u : 0u;
    item[i] = place;
  });
  __syncthreads();
  return true;
}

/// The same by a sort: keys of n tokens in space.sort.key become their places.
__device__ __noinline__ void place_by_sort(Space& space, int n) {
  __syncthreads();
  block::sort_row(space.sort, space.of_warp, n, kKeyBits);
  for (int i = threadIdx.x; i < n; i += kThreads)
    space.sort.key[space.sort.order[i]] = static_cast<std::uint32_t>(i);
  __syncthreads();
}

/// Walks the weights in their order: needed sets, and ranks among the tokens of the prompt in place of the
/// weights.
__device__ void walk(Space& space, int n) {
  constexpr std::uint32_t kDecode = 0x80000000u;
  const int rounds = ((n + kThreads - 1) / kThreads) | 1;  // odd: no two threads of a warp in one bank
  const int begin = min(n, static_cast<int>(threadIdx.x) * rounds), end = min(n, begin + rounds);
  double own = 0;
  std::uint32_t of_prompt = 0;
  for (int i = begin; i < end; ++i) {
    own += static_cast<double>(__uint_as_float(space.by_place[i] & ~kDecode));
    of_prompt += space.by_place[i] < kDecode ? 1u : 0u;
  }
  std::uint32_t rank = block::sum_before(of_prompt, space.of_warp);
  double total = 0;
  double before = block::mass_before(own, space.mass_of_warp, total);
  std::uint32_t needed[kFractions] = {}, needed_prompt[kFractions] = {};
  int i = begin;
  for (; i < end && before < kNeededMass[kFractions - 1] * total; ++i) {
    const std::uint32_t bits = space.by_place[i], is_prompt = bits < kDecode ? 1u : 0u;
#pragma unroll
    for (int c = 0; c < kFractions; ++c) {
      const bool is_needed = before < kNeededMass[c] * total;
      needed[c] += is_needed ? 1u : 0u;
      needed_prompt[c] += is_needed ? is_prompt : 0u;
    }
    before += static_cast<double>(__uint_as_float(bits & ~kDecode));
    space.by_place[i] = rank;
    rank += is_prompt;
  }
  for (; i < end; ++i) {  // no set needs these
    const std::uint32_t is_prompt = space.by_place[i] < kDecode ? 1u : 0u;
    space.by_place[i] = rank;
    rank += is_prompt;
  }
#pragma unroll
  for (int c = 0; c < kFractions; ++c) {  // integers: any order gives the same
    if (needed[c] > 0) atomicAdd(&space.total_count[c], needed[c]);
    if (needed_prompt[c] > 0) atomicAdd(&space.prompt_count[c], needed_prompt[c]);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 1)
    short_ranks_kernel(Softmax in, const std::uint32_t* __restrict__ position, Sizes size, unsigned window,
                       Ranks<std::uint16_t> out) {
  extern __shared__ __align__(16) unsigned char bytes[];
  Space& space = *reinterpret_cast<Space*>(bytes);
  const int row = blockIdx.x;
  const Seen seen = seen_by(position[row], window, size.tokens);
  const int n = seen.last - seen.first;
  if (threadIdx.x < kFractions) space.total_count[threadIdx.x] = space.prompt_count[threadIdx.x] = 0;
  const float* const part = in.part + static_cast<std::size_t>(row) * size.token_stride;
  const int* const exponent =
      in.exponent + static_cast<std::size_t>(row) * (size.token_stride / kSoftmaxSlice);
  const int most = in.most[row];
  const Factor of_row = factor_of_row(in.inverse[row]);
  /// Calls of(item, token, weight) as each_token does; tokens are read in pairs, which share a slice.
  const auto each_weight = [&](const auto& of) {
    const int base = (seen.first & ~1) + 2 * static_cast<int>(threadIdx.x);
#pragma unroll
    for (int first = 0; first < kPairs; first += kAtOnce) {
      float2 pair[kAtOnce];
      int power[kAtOnce];
#pragma unroll
      for (int v = 0; v < kAtOnce; ++v) {
        const int token = base + (first + v) * 2 * kThreads;
        const bool present = first + v < kPairs && token < seen.last;
        pair[v] = present ? *reinterpret_cast<const float2*>(part + token) : make_float2(0.0f, 0.0f);
        power[v] = present ? exponent[token / kSoftmaxSlice] : most;
      }
#pragma unroll
      for (int v = 0; v < kAtOnce; ++v) {
        const int token = base + (first + v) * 2 * kThreads, i = 2 * (first + v);
        if (i >= kItems) continue;
        const Factor shared = factor_of_slice(of_row, power[v] - most);
        if (token >= seen.first && token < seen.last) of(i, token, weight_of(pair[v].x, shared));
        if (token + 1 < seen.last) of(i + 1, token + 1, weight_of(pair[v].y, shared));
      }
    }
  };
  std::uint32_t item[kItems];
  if (!place_by_bins(space, seen, each_weight, item)) {
    for (int at = threadIdx.x; at < n; at += kThreads)
      space.sort.key[at] =
          key_of(weight_of(part[seen.first + at],
                           factor_of_slice(of_row, exponent[(seen.first + at) / kSoftmaxSlice] - most)));
    place_by_sort(space, n);
    each_token(seen, [&](int i, int token) { item[i] = space.sort.key[token - seen.first]; });
    __syncthreads();
  }
  each_weight([&](int i, int token, float w) {
    space.by_place[item[i]] = __float_as_uint(w) | (token < size.prompt ? 0u : 0x80000000u);
  });
  __syncthreads();
  walk(space, n);
  std::uint16_t* const ranks = out.ranks + static_cast<std::size_t>(row) * size.rank_stride;
  const int base = seen.first & ~1, end = min(size.rank_stride, base + kPairs * 2 * kThreads);
  for (int token = threadIdx.x; token < size.rank_stride; token += kThreads)
    if (token < base || token >= end) ranks[token] = 0xffffu;
#pragma unroll
  for (int v = 0; v < kPairs; ++v) {
    const int token = base + 2 * (v * kThreads + static_cast<int>(threadIdx.x));
    if (token >= end) continue;
    const auto rank_of = [&](int i, int of) {
      return of >= seen.first && of < min(seen.last, size.prompt) ? space.by_place[item[i]] : 0xffffu;
    };
    *reinterpret_cast<std::uint32_t*>(ranks + token) = rank_of(2 * v, token) | rank_of(2 * v + 1, token + 1)
                                                                                   << 16;
  }
  if (threadIdx.x < kFractions) {
    out.needed_total[threadIdx.x * size.stride + row] = space.total_count[threadIdx.x];
    out.needed_prompt[threadIdx.x * size.stride + row] = space.prompt_count[threadIdx.x];
  }
}

}  // namespace

void launch_short_ranks(const Softmax& softmax, const std::uint32_t* position, const Sizes& size,
                        const Rule& rule, const Ranks<std::uint16_t>& out, cudaStream_t stream) {
  check(cudaFuncSetAttribute(short_ranks_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Space)),
        "cudaFuncSetAttribute");
  short_ranks_kernel<<<static_cast<unsigned>(size.rows), kThreads, sizeof(Space), stream>>>(
      softmax, position, size, rule.window, out);
  check(cudaGetLastError(), "short_ranks_kernel");
}

}  // namespace kvsim::cuda
