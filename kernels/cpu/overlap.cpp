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

/// Rows of one pass: two vectors of 16-bit ranks (AVX-512), four of 32 bits.
inline constexpr std::size_t kStrip = 16;

/// counted[row] += 1 for every token of order[begin .. end) whose rank is below limit[row], one strip of
/// rows. Counts fit the rank type, as there are fewer prompt tokens than it has values.
template <typename Rank>
HWY_INLINE void count_strip(MatrixView<const Rank> ranks, const TokenIndex* HWY_RESTRICT order,
                            std::size_t begin, std::size_t end, std::size_t row,
                            const Rank* HWY_RESTRICT limit, Rank* HWY_RESTRICT counted) {
  const hn::CappedTag<Rank, kStrip> d;
  constexpr std::size_t kLanes = std::min<std::size_t>(kStrip, HWY_LANES(Rank));
  constexpr std::size_t kVecs = kStrip / kLanes;
  hn::Vec<decltype(d)> bound[kVecs], sum[kVecs];
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVecs; ++i) {
    bound[i] = hn::LoadU(d, limit + i * kLanes);
    sum[i] = hn::LoadU(d, counted + i * kLanes);
  }
  for (std::size_t t = begin; t < end; ++t) {
    const Rank* at = ranks.row(order[t]) + row;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kVecs; ++i) {
      const auto below = hn::Lt(hn::LoadU(d, at + i * kLanes), bound[i]);
      sum[i] = hn::Sub(sum[i], hn::VecFromMask(d, below));
    }
  }
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kVecs; ++i) hn::StoreU(sum[i], d, counted + i * kLanes);
}

template <typename Rank>
void overlap_strip(MatrixView<const Rank> ranks, std::span<const TokenIndex> order,
                   std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                   std::size_t row_begin, std::size_t row, std::size_t rows,
                   MatrixView<std::uint32_t> overlap) {
  Rank limit[kStrip];
  Rank counted[kStrip] = {};
  const bool one_limit = limits.rows == 1;
  const auto load_limits = [&](std::size_t s) {
    for (std::size_t r = 0; r < kStrip; ++r) {
      const std::uint32_t bound = r < rows ? limits(s, row + r) : 0;
      limit[r] = static_cast<Rank>(std::min<std::uint32_t>(bound, std::numeric_limits<Rank>::max()));
    }
  };
  load_limits(0);
  std::size_t begin = 0;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (!one_limit) {
      load_limits(s);
      std::fill(counted, counted + kStrip, Rank{0});
      begin = 0;
    }
    count_strip<Rank>(ranks, order.data(), begin, counts[s], row, limit, counted);
    begin = counts[s];
    for (std::size_t r = 0; r < rows; ++r) overlap(s, row - row_begin + r) = counted[r];
  }
}

template <typename Rank>
void overlap_path(MatrixView<const Rank> ranks, std::span<const TokenIndex> order,
                  std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                  std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  for (std::size_t row = row_begin; row < row_end; row += kStrip) {
    overlap_strip<Rank>(ranks, order, counts, limits, row_begin, row, std::min(kStrip, row_end - row),
                        overlap);
  }
}

void overlap_16(MatrixView<const std::uint16_t> ranks, std::span<const TokenIndex> order,
                std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  overlap_path<std::uint16_t>(ranks, order, counts, limits, row_begin, row_end, overlap);
}

void overlap_32(MatrixView<const std::uint32_t> ranks, std::span<const TokenIndex> order,
                std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  overlap_path<std::uint32_t>(ranks, order, counts, limits, row_begin, row_end, overlap);
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
