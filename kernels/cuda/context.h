// The state of an open device that its heads share: streams, memory, staging, and scratch that no head keeps.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/pool.h"
#include "kernels/cuda/staging.h"

namespace kvsim::cuda {

/// A softmax before it is joined, for loading and for `attend`.
struct SoftmaxSpace {
  explicit SoftmaxSpace(Pool& pool)
      : part(pool), exponent(pool), slice_sum(pool), most(pool), inverse(pool) {}
  Softmax fit(const Sizes& size);
  Buffer<float> part;
  Buffer<int> exponent;
  Buffer<double> slice_sum;
  Buffer<int> most;
  Buffer<double> inverse;
};

/// What describes rankings, and their results, on both sides.
struct MeasureSpace {
  explicit MeasureSpace(Pool& pool)
      : words(pool),
        segments(pool),
        packed(pool),
        own_order(pool),
        error(pool),
        recall(pool),
        delta(pool),
        agree(pool),
        found(pool) {}
  Pinned<std::uint32_t> host_words;
  Buffer<std::uint32_t> words;  // everything that describes the rankings of a call
  Buffer<std::uint8_t> segments, packed;
  Buffer<unsigned char> own_order;  // scratch of its kernels
  Buffer<float> error, recall, delta;
  Buffer<std::uint32_t> agree, found;
  Pinned<float> host_error, host_recall, host_delta;
  Pinned<std::uint32_t> host_agree, host_found;
};

struct Context {
  Context(int device, std::size_t limit)
      : index(device),
        pool(device, limit, stream),
        shipments{Shipment(pool), Shipment(pool)},
        queries(pool),
        position(pool),
        output_partial(pool),
        long_ranks(pool),
        softmax(pool),
        attended(pool),
        sums(pool),
        measure(pool) {}

  int index;
  Stream stream, uploads, downloads;
  Pool pool;
  std::array<Shipment, 2> shipments;
  std::size_t loads = 0;
  Buffer<float> queries;
  Buffer<std::uint32_t> position;
  Buffer<double> output_partial;
  Buffer<unsigned char> long_ranks;
  SoftmaxSpace softmax;
  Buffer<float> attended;  // weights of queries that are no decode queries
  Buffer<double> sums;
  Pinned<double> host_sums;
  MeasureSpace measure;
  // Ends of the parts of the last load and the last curves.
  Event load_start, unpacked, attended_keys, summed, ranked, measure_start, described, counted, curved,
      downloaded;
};

/// Ranks lie in 16 bits up to so many prompt tokens: one value is left for "not visible".
inline constexpr std::size_t kNarrowRanks = 65534;
/// Tokens x rows that are sorted in memory at once.
inline constexpr std::size_t kLongRankElements = std::size_t{1} << 24;

/// Rows that are sorted in memory at once, 0 where rows are short enough for shared memory.
inline std::size_t long_rank_rows(std::size_t rows, std::size_t tokens) {
  if (tokens <= static_cast<std::size_t>(kMostShortTokens)) return 0;
  const std::size_t fit = kLongRankElements / tokens;
  return fit == 0 ? 1 : fit < rows ? fit : rows;
}

}  // namespace kvsim::cuda
