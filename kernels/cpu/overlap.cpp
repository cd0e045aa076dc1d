// Overlaps of a ranking with every row's own ranks: vector compares with rows in the lanes.
#include "kernels/replay.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/cpu/targets.h"
#include "kernels/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/overlap.cpp"
#include <hwy/foreach_target.h>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvsim::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Rows of one vector unit of work, and of the widest strip.
inline constexpr std::size_t kUnit = 16;
inline constexpr std::size_t kStrip = 48;

/// With limits that differ by snapshot, counting anew at each costs sum(counts) compares, a histogram a fixed
/// price per element that is worth so many of them (measured with AVX-512; with AVX2 it is a little less).
inline constexpr std::size_t kHistogramWorth = 20;

template <typename Rank>
struct OverlapInput {
  MatrixView<const Rank> ranks;
  std::span<const TokenIndex> order;
  std::span<const std::uint32_t> counts;
  MatrixView<const std::uint32_t> limits;
};

/// counted[row] += 1 for every token of order[begin .. end) whose rank is below limit[row], kUnits units of
/// rows. Counts fit the rank type, as there are fewer prompt tokens than it has values.
template <typename Rank, std::size_t kUnits>
HWY_NOINLINE void count_strip(MatrixView<const Rank> ranks, const TokenIndex* HWY_RESTRICT order,
                              std::size_t begin, std::size_t end, std::size_t row,
                              const Rank* HWY_RESTRICT limit, Rank* HWY_RESTRICT counted) {
  const hn::CappedTag<Rank, kUnit> d;
  using V = hn::Vec<decltype(d)>;
  constexpr std::size_t kLanes = std::min<std::size_t>(kUnit, HWY_LANES(Rank));
  constexpr std::size_t kVecs = kUnits * kUnit / kLanes;
  V bound[kVecs], sum[kVecs];
  for (std::size_t i = 0; i < kVecs; ++i) {
    bound[i] = hn::LoadU(d, limit + i * kLanes);
    sum[i] = hn::LoadU(d, counted + i * kLanes);
  }
  constexpr std::size_t kAhead = 12;  // tokens whose lines are fetched early: they lie anywhere in the tile
  const V one = hn::Set(d, Rank{1});
  for (std::size_t t = begin; t < end; ++t) {
    const Rank* at = ranks.row(order[t]) + row;
    if (t + kAhead < end) {
      const Rank* ahead = ranks.row(order[t + kAhead]) + row;
      __builtin_prefetch(ahead);
      __builtin_prefetch(ahead + kUnits * kUnit - 1);
    }
#pragma GCC unroll 6
    for (std::size_t i = 0; i < kVecs; ++i) {
      const auto below = hn::Lt(hn::LoadU(d, at + i * kLanes), bound[i]);
      sum[i] = hn::IfThenElse(below, hn::Add(sum[i], one), sum[i]);
    }
  }
  for (std::size_t i = 0; i < kVecs; ++i) hn::StoreU(sum[i], d, counted + i * kLanes);
}

/// Counts order[begin .. end) against one limit per row.
template <typename Rank>
HWY_INLINE void count_rows(const OverlapInput<Rank>& in, std::size_t begin, std::size_t end, std::size_t row,
                           std::size_t rows, const Rank* limit, Rank* counted) {
  if (rows > 2 * kUnit)
    return count_strip<Rank, 3>(in.ranks, in.order.data(), begin, end, row, limit, counted);
  if (rows > kUnit) return count_strip<Rank, 2>(in.ranks, in.order.data(), begin, end, row, limit, counted);
  count_strip<Rank, 1>(in.ranks, in.order.data(), begin, end, row, limit, counted);
}

template <typename Rank>
void recount(const OverlapInput<Rank>& in, std::size_t row, std::size_t rows,
             MatrixView<std::uint32_t> overlap, std::size_t column) {
  Rank limit[kStrip];
  Rank counted[kStrip] = {};
  const bool one_limit = in.limits.rows == 1;
  std::size_t begin = 0;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    if (s == 0 || !one_limit) {
      for (std::size_t r = 0; r < kStrip; ++r) {
        const std::uint32_t bound = r < rows ? in.limits(s, row + r) : 0;
        limit[r] = static_cast<Rank>(std::min<std::uint32_t>(bound, std::numeric_limits<Rank>::max()));
      }
    }
    if (!one_limit) {
      std::fill(counted, counted + kStrip, Rank{0});
      begin = 0;
    }
    count_rows(in, begin, in.counts[s], row, rows, limit, counted);
    begin = in.counts[s];
    for (std::size_t r = 0; r < rows; ++r) overlap(s, column + r) = counted[r];
  }
}

/// For limits that rise from snapshot to snapshot: bucket[rank] = the first snapshot whose limit exceeds the
/// rank.
template <typename Rank>
void fill_buckets(const OverlapInput<Rank>& in, std::size_t row, std::uint16_t* bucket) {
  std::size_t rank = 0;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    const std::size_t limit = std::min<std::size_t>(in.limits(s, row), in.ranks.rows);
    for (; rank < limit; ++rank) bucket[rank] = static_cast<std::uint16_t>(s);
  }
  std::fill(bucket + rank, bucket + in.ranks.rows + 1, static_cast<std::uint16_t>(in.counts.size()));
}

/// max without a branch, which random ranks would mispredict.
HWY_INLINE std::size_t larger(std::size_t a, std::size_t b) {
  return a ^ ((a ^ b) & (std::size_t{0} - static_cast<std::size_t>(a < b)));
}

/// Every element counts from snapshot max(its policy bucket, its rank's bucket) on; `table` is the distance
/// between the rows' tables, 0 where all rows share their limits. A shared table is raised to the policy's
/// bucket as that grows, so that no maximum is left to take. Bins are [snapshot][row] of the rank type: they
/// fit the first-level cache.
template <typename Rank, bool kShared>
HWY_NOINLINE void histogram(const OverlapInput<Rank>& in, std::size_t row, std::size_t rows,
                            std::size_t table, std::uint16_t* HWY_RESTRICT buckets,
                            MatrixView<std::uint32_t> overlap, std::size_t column) {
  std::vector<Rank> bins((in.counts.size() + 1) * kStrip, 0);
  Rank* HWY_RESTRICT bin = bins.data();
  const std::size_t hidden = in.ranks.rows;
  const TokenIndex* HWY_RESTRICT order = in.order.data();
  constexpr std::size_t kAhead = 4;
  std::size_t t = 0;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    if (kShared) {
      std::fill_n(buckets, std::min<std::size_t>(in.limits(s, row), hidden), static_cast<std::uint16_t>(s));
    }
    for (const std::size_t end = in.counts[s]; t < end; ++t) {
      const Rank* HWY_RESTRICT at = in.ranks.row(order[t]) + row;
      if (t + kAhead < in.order.size()) {
        const Rank* ahead = in.ranks.row(order[t + kAhead]) + row;
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + rows - 1);
      }
      for (std::size_t r = 0; r < rows; ++r) {
        const std::size_t rank = at[r];
        const std::size_t clipped =
            rank ^ ((rank ^ hidden) & (std::size_t{0} - static_cast<std::size_t>(rank > hidden)));
        const std::size_t bucket = kShared ? buckets[clipped] : larger(s, buckets[r * table + clipped]);
        ++bin[bucket * kStrip + r];
      }
    }
  }
  for (std::size_t r = 0; r < rows; ++r) {
    std::uint32_t sum = 0;
    for (std::size_t s = 0; s < in.counts.size(); ++s) overlap(s, column + r) = sum += bins[s * kStrip + r];
  }
}

template <typename Rank>
bool limits_rise(const OverlapInput<Rank>& in, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t s = 1; s < in.limits.rows; ++s) {
    for (std::size_t r = row_begin; r < row_end; ++r) {
      if (in.limits(s, r) < in.limits(s - 1, r)) return false;
    }
  }
  return true;
}

template <typename Rank>
bool limits_shared(const OverlapInput<Rank>& in, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t s = 0; s < in.limits.rows; ++s) {
    for (std::size_t r = row_begin; r < row_end; ++r) {
      if (in.limits(s, r) != in.limits(s, row_begin)) return false;
    }
  }
  return true;
}

template <typename Rank>
void overlap_path(const OverlapInput<Rank>& in, std::size_t row_begin, std::size_t row_end,
                  MatrixView<std::uint32_t> overlap) {
  std::uint64_t compares = 0;
  for (const std::uint32_t count : in.counts) compares += count;
  const bool many = in.limits.rows > 1 && compares > kHistogramWorth * std::uint64_t{in.counts.back()} &&
                    in.counts.size() < std::numeric_limits<std::uint16_t>::max();
  if (!many || !limits_rise(in, row_begin, row_end)) {
    for (std::size_t row = row_begin; row < row_end; row += kStrip) {
      recount(in, row, std::min(kStrip, row_end - row), overlap, row - row_begin);
    }
    return;
  }
  const bool shared = limits_shared(in, row_begin, row_end);
  const std::size_t table = in.ranks.rows + 1;
  std::vector<std::uint16_t> buckets(shared ? table : table * kStrip);
  for (std::size_t row = row_begin; row < row_end; row += kStrip) {
    const std::size_t rows = std::min(kStrip, row_end - row);
    for (std::size_t r = 0; r < (shared ? 1 : rows); ++r)
      fill_buckets(in, row + r, buckets.data() + r * table);
    if (shared)
      histogram<Rank, true>(in, row, rows, 0, buckets.data(), overlap, row - row_begin);
    else
      histogram<Rank, false>(in, row, rows, table, buckets.data(), overlap, row - row_begin);
  }
}

void overlap_16(MatrixView<const std::uint16_t> ranks, std::span<const TokenIndex> order,
                std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  overlap_path<std::uint16_t>({ranks, order, counts, limits}, row_begin, row_end, overlap);
}

void overlap_32(MatrixView<const std::uint32_t> ranks, std::span<const TokenIndex> order,
                std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  overlap_path<std::uint32_t>({ranks, order, counts, limits}, row_begin, row_end, overlap);
}

}  // namespace kvsim::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/cpu/curve_checks.h"

namespace kvsim {

HWY_EXPORT(overlap_16);
HWY_EXPORT(overlap_32);

template <typename Rank>
void overlap_counts(MatrixView<const Rank> ranks, std::span<const TokenIndex> order,
                    std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                    std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  check_tile(row_begin, row_end, ranks.stride);
  KVSIM_CHECK(std::is_sorted(counts.begin(), counts.end()), "the {} counts do not ascend", counts.size());
  KVSIM_CHECK(counts.empty() || counts.back() <= order.size(), "count {} of {} ranked tokens",
              counts.empty() ? 0 : counts.back(), order.size());
  KVSIM_CHECK(limits.rows == 1 || limits.rows == counts.size(), "{} rows of limits for {} counts",
              limits.rows, counts.size());
  KVSIM_CHECK(
      limits.stride >= row_end && overlap.stride >= row_end - row_begin && overlap.rows >= counts.size(),
      "limits are {} x {}, overlaps {} x {}", limits.rows, limits.stride, overlap.rows, overlap.stride);
  if (counts.empty() || row_begin == row_end) return;
  if constexpr (sizeof(Rank) == 2) {
    HWY_DYNAMIC_DISPATCH(overlap_16)(ranks, order, counts, limits, row_begin, row_end, overlap);
  } else {
    HWY_DYNAMIC_DISPATCH(overlap_32)(ranks, order, counts, limits, row_begin, row_end, overlap);
  }
}

template void overlap_counts(MatrixView<const std::uint16_t>, std::span<const TokenIndex>,
                             std::span<const std::uint32_t>, MatrixView<const std::uint32_t>, std::size_t,
                             std::size_t, MatrixView<std::uint32_t>);
template void overlap_counts(MatrixView<const std::uint32_t>, std::span<const TokenIndex>,
                             std::span<const std::uint32_t>, MatrixView<const std::uint32_t>, std::size_t,
                             std::size_t, MatrixView<std::uint32_t>);

}  // namespace kvsim
#endif  // HWY_ONCE
