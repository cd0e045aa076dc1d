// Overlaps of a ranking with every row's own ranks: vector compares with rows in the lanes.
#include "kernels/replay.h"

#include <algorithm>
#include <limits>
#include <type_traits>
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

/// Rows of the widest strip of compares (two vectors of 16-bit ranks), and of a strip of the histogram.
inline constexpr std::size_t kStrip = HWY_MAX_BYTES >= 64 ? 64 : 32;
inline constexpr std::size_t kHistogramStrip = 48;
/// Limits that one reading of the ranks is compared with; their counts stay in registers.
inline constexpr std::size_t kLimits = 4;
/// Tokens that all limits meet before further tokens are read: a strip's ranks stay in the second-level
/// cache.
inline constexpr std::size_t kTokens = 1024;

/// With limits that differ by snapshot, comparing costs sum(counts), a histogram a fixed price per element
/// that is worth so many compares (measured).
inline constexpr std::size_t kHistogramWorth = HWY_MAX_BYTES >= 64 ? 60 : 30;

template <typename Rank>
struct OverlapInput {
  MatrixView<const Rank> ranks;
  std::span<const TokenIndex> order;
  std::span<const std::uint32_t> counts;
};

/// Tokens that follow those being counted, which lie anywhere in the matrix: first, first + step, ... below
/// count are fetched into the second-level cache.
struct Ahead {
  std::size_t count = 0;
  std::size_t first = 0;
  std::size_t step = 1;
};

/// counted[c][row] += 1 for every token of order[0 .. tokens) whose rank is below limit[c][row], c < kCount,
/// kWidth rows from `row` on; both tables are [kCount][kStrip]. Meanwhile a share of the tokens that come
/// next is fetched. Counts fit the rank type, as there are fewer prompt tokens than it has values.
template <typename Rank, std::size_t kWidth, std::size_t kCount>
HWY_NOINLINE void count_strip(MatrixView<const Rank> ranks, const TokenIndex* HWY_RESTRICT order,
                              std::size_t tokens, Ahead ahead, std::size_t row,
                              const Rank* HWY_RESTRICT limit, Rank* HWY_RESTRICT counted) {
  const hn::CappedTag<Rank, kWidth> d;
  using V = hn::Vec<decltype(d)>;
  constexpr std::size_t kLanes = std::min<std::size_t>(kWidth, HWY_LANES(Rank));
  constexpr std::size_t kVecs = std::min<std::size_t>(2, kWidth / kLanes);
  const V one = hn::Set(d, Rank{1});
  for (std::size_t part = 0; part < kWidth; part += kVecs * kLanes) {
    V sum[kCount][kVecs];
    for (std::size_t c = 0; c < kCount; ++c) {
      for (std::size_t i = 0; i < kVecs; ++i)
        sum[c][i] = hn::LoadU(d, counted + c * kStrip + part + i * kLanes);
    }
    std::size_t next = ahead.first;
    for (std::size_t t = 0; t < tokens; ++t, next += ahead.step) {
      const Rank* HWY_RESTRICT at = ranks.row(order[t]) + row + part;
      if (next < ahead.count) {
        const Rank* line = ranks.row(order[tokens + next]) + row + part;
        __builtin_prefetch(line, 0, 2);
        __builtin_prefetch(line + kVecs * kLanes - 1, 0, 2);
      }
#pragma GCC unroll 2
      for (std::size_t i = 0; i < kVecs; ++i) {
        const V rank = hn::LoadU(d, at + i * kLanes);
#pragma GCC unroll 4
        for (std::size_t c = 0; c < kCount; ++c) {
          const auto below = hn::Lt(rank, hn::LoadU(d, limit + c * kStrip + part + i * kLanes));
          sum[c][i] = hn::IfThenElse(below, hn::Add(sum[c][i], one), sum[c][i]);
        }
      }
    }
    for (std::size_t c = 0; c < kCount; ++c) {
      for (std::size_t i = 0; i < kVecs; ++i)
        hn::StoreU(sum[c][i], d, counted + c * kStrip + part + i * kLanes);
    }
  }
}

/// Counts order[begin .. end) against the first `limits` rows of the tables; order[end .. after) come next.
template <typename Rank, std::size_t kWidth>
HWY_INLINE void count_limits(const OverlapInput<Rank>& in, std::size_t begin, std::size_t end,
                             std::size_t after, std::size_t row, std::size_t limits, const Rank* limit,
                             Rank* counted) {
  for (std::size_t first = begin; first < end; first += kTokens) {
    const TokenIndex* order = in.order.data() + first;
    const std::size_t tokens = std::min(kTokens, end - first);
    const std::size_t next = (first + tokens == end ? after : end) - first - tokens;
    Ahead ahead{std::min(kTokens, next), 0, (limits + kLimits - 1) / kLimits};
    for (std::size_t c = 0; c < limits; c += kLimits, ++ahead.first) {
      const Rank* HWY_RESTRICT below = limit + c * kStrip;
      Rank* HWY_RESTRICT count = counted + c * kStrip;
      switch (std::min(kLimits, limits - c)) {
        case 1:
          count_strip<Rank, kWidth, 1>(in.ranks, order, tokens, ahead, row, below, count);
          break;
        case 2:
          count_strip<Rank, kWidth, 2>(in.ranks, order, tokens, ahead, row, below, count);
          break;
        case 3:
          count_strip<Rank, kWidth, 3>(in.ranks, order, tokens, ahead, row, below, count);
          break;
        default:
          count_strip<Rank, kWidth, kLimits>(in.ranks, order, tokens, ahead, row, below, count);
      }
    }
  }
}

/// One limit of a query: compared with every token up to snapshot `last`.
struct Counter {
  const OverlapQuery* query;
  std::size_t limit_row;  // of the query's limits
  std::size_t last;
  bool every;  // writes its count at every snapshot, otherwise at the last one only
};

/// The counters of all queries, those that live longest first, so that the live ones are always a prefix.
std::vector<Counter> counters_of(std::span<const OverlapQuery* const> queries, std::size_t snapshots) {
  std::vector<Counter> counters;
  for (const OverlapQuery* query : queries)
    if (query->limits.rows == 1) counters.push_back({query, 0, snapshots - 1, true});
  for (std::size_t s = snapshots; s-- > 0;)
    for (const OverlapQuery* query : queries)
      if (query->limits.rows != 1) counters.push_back({query, s, s, false});
  return counters;
}

/// The tables of one strip, kept from strip to strip.
template <typename Rank>
struct StripTables {
  explicit StripTables(std::size_t counters) : limit(counters * kStrip), counted(counters * kStrip) {}
  std::vector<Rank> limit, counted;  // [counters][kStrip]
};

template <typename Rank, std::size_t kWidth>
void count_strips(const OverlapInput<Rank>& in, std::span<const Counter> counters, std::size_t row,
                  std::size_t rows, std::size_t column, StripTables<Rank>& tables) {
  for (std::size_t c = 0; c < counters.size(); ++c) {
    const std::uint32_t* from = counters[c].query->limits.row(counters[c].limit_row) + row;
    for (std::size_t r = 0; r < kWidth; ++r) {
      const std::uint32_t bound = r < rows ? from[r] : 0;
      tables.limit[c * kStrip + r] =
          static_cast<Rank>(std::min<std::uint32_t>(bound, std::numeric_limits<Rank>::max()));
    }
  }
  std::fill(tables.counted.begin(), tables.counted.end(), Rank{0});
  std::size_t live = counters.size();
  for (std::size_t s = 0, begin = 0; s < in.counts.size(); begin = in.counts[s++]) {
    const std::size_t after = in.counts[std::min(s + 1, in.counts.size() - 1)];
    count_limits<Rank, kWidth>(in, begin, in.counts[s], after, row, live, tables.limit.data(),
                               tables.counted.data());
    for (std::size_t c = 0; c < live; ++c) {
      if (!counters[c].every && counters[c].last != s) continue;
      std::copy_n(tables.counted.data() + c * kStrip, rows, counters[c].query->overlap.row(s) + column);
    }
    while (live > 0 && counters[live - 1].last == s) --live;
  }
}

template <typename Rank>
void compare_all(const OverlapInput<Rank>& in, std::span<const OverlapQuery* const> queries,
                 std::size_t row_begin, std::size_t row_end) {
  const std::vector<Counter> counters = counters_of(queries, in.counts.size());
  StripTables<Rank> tables(counters.size());
  for (std::size_t row = row_begin; row < row_end;) {
    const std::size_t left = row_end - row;
    const auto strip = [&](auto width) {
      constexpr std::size_t kWidth = decltype(width)::value;
      count_strips<Rank, kWidth>(in, counters, row, std::min(kWidth, left), row - row_begin, tables);
      row += kWidth;
    };
    // Matrices are padded to 16 rows: a wider strip is taken only where 16 times as many rows are left.
    if (left > kStrip - 16)
      strip(std::integral_constant<std::size_t, kStrip>());
    else if (left > 16)
      strip(std::integral_constant<std::size_t, 32>());
    else
      strip(std::integral_constant<std::size_t, 16>());
  }
}

/// For limits that rise from snapshot to snapshot: place[rank] = where the bins of the first snapshot whose
/// limit exceeds the rank begin.
template <typename Rank, typename Place>
void fill_places(const OverlapInput<Rank>& in, MatrixView<const std::uint32_t> limits, std::size_t row,
                 Place* place) {
  std::size_t rank = 0;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    const std::size_t limit = std::min<std::size_t>(limits(s, row), in.ranks.rows);
    for (; rank < limit; ++rank) place[rank] = static_cast<Place>(s * kHistogramStrip);
  }
  std::fill(place + rank, place + in.ranks.rows + 1, static_cast<Place>(in.counts.size() * kHistogramStrip));
}

/// max without a branch, which random ranks would mispredict.
HWY_INLINE std::size_t larger(std::size_t a, std::size_t b) {
  return a ^ ((a ^ b) & (std::size_t{0} - static_cast<std::size_t>(a < b)));
}

/// Every element counts from snapshot max(its policy bucket, its rank's bucket) on; `table` is the distance
/// between the rows' tables, 0 where all rows share their limits. A shared table is raised to the policy's
/// bucket as that grows, so that no maximum is left to take. Bins are [snapshot][row] of the rank type: they
/// fit the first-level cache beside the table.
template <typename Rank, typename Place, bool kShared>
HWY_NOINLINE void histogram(const OverlapInput<Rank>& in, const OverlapQuery& query, std::size_t row,
                            std::size_t rows, std::size_t table, Place* HWY_RESTRICT places,
                            std::size_t column) {
  const hn::CappedTag<Rank, kRowPad> d;
  constexpr std::size_t kLanes = std::min<std::size_t>(kRowPad, HWY_LANES(Rank));
  std::vector<Rank> bins((in.counts.size() + 1) * kHistogramStrip, 0);
  Rank* HWY_RESTRICT bin = bins.data();
  const auto hidden = hn::Set(d, static_cast<Rank>(in.ranks.rows));
  const TokenIndex* HWY_RESTRICT order = in.order.data();
  const std::size_t padded = round_up(rows, kRowPad);
  HWY_ALIGN Rank clipped[kHistogramStrip];
  std::size_t t = 0;
  for (std::size_t s = 0; s < in.counts.size(); ++s) {
    const auto least = static_cast<Place>(s * kHistogramStrip);
    if (kShared) std::fill_n(places, std::min<std::size_t>(query.limits(s, row), in.ranks.rows), least);
    for (const std::size_t end = in.counts[s]; t < end; ++t) {
      constexpr std::size_t kAhead = 16;
      const Rank* ahead = in.ranks.row(order[std::min(t + kAhead, in.order.size() - 1)]) + row;
      __builtin_prefetch(ahead);
      __builtin_prefetch(ahead + padded - 1);
      const Rank* HWY_RESTRICT at = in.ranks.row(order[t]) + row;
      for (std::size_t r = 0; r < padded; r += kLanes)
        hn::Store(hn::Min(hn::LoadU(d, at + r), hidden), d, clipped + r);
      for (std::size_t first = 0; first < padded; first += kRowPad) {
#pragma GCC unroll 16
        for (std::size_t r = first; r < first + kRowPad; ++r) {
          const std::size_t place = places[kShared ? clipped[r] : r * table + clipped[r]];
          ++bin[(kShared ? place : larger(least, place)) + r];
        }
      }
    }
  }
  for (std::size_t r = 0; r < rows; ++r) {
    std::uint32_t sum = 0;
    for (std::size_t s = 0; s < in.counts.size(); ++s)
      query.overlap(s, column + r) = sum += bins[s * kHistogramStrip + r];
  }
}

bool limits_rise(MatrixView<const std::uint32_t> limits, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t s = 1; s < limits.rows; ++s) {
    for (std::size_t r = row_begin; r < row_end; ++r) {
      if (limits(s, r) < limits(s - 1, r)) return false;
    }
  }
  return true;
}

bool limits_shared(MatrixView<const std::uint32_t> limits, std::size_t row_begin, std::size_t row_end) {
  for (std::size_t s = 0; s < limits.rows; ++s) {
    for (std::size_t r = row_begin; r < row_end; ++r) {
      if (limits(s, r) != limits(s, row_begin)) return false;
    }
  }
  return true;
}

template <typename Rank, typename Place>
void histogram_all(const OverlapInput<Rank>& in, const OverlapQuery& query, std::size_t row_begin,
                   std::size_t row_end) {
  const bool shared = limits_shared(query.limits, row_begin, row_end);
  const std::size_t table = in.ranks.rows + 1;
  std::vector<Place> places(shared ? table : table * kHistogramStrip);
  for (std::size_t row = row_begin; row < row_end; row += kHistogramStrip) {
    const std::size_t rows = std::min(kHistogramStrip, row_end - row);
    for (std::size_t r = 0; r < (shared ? 1 : rows); ++r)
      fill_places(in, query.limits, row + r, places.data() + r * table);
    if (shared)
      histogram<Rank, Place, true>(in, query, row, rows, 0, places.data(), row - row_begin);
    else
      histogram<Rank, Place, false>(in, query, row, rows, table, places.data(), row - row_begin);
  }
}

template <typename Rank>
void overlap_path(const OverlapInput<Rank>& in, std::span<const OverlapQuery> queries, std::size_t row_begin,
                  std::size_t row_end) {
  std::uint64_t compares = 0;
  for (const std::uint32_t count : in.counts) compares += count;
  const bool many = compares > kHistogramWorth * std::uint64_t{in.counts.back()};
  const bool narrow = (in.counts.size() + 1) * kHistogramStrip <= std::numeric_limits<std::uint16_t>::max();
  std::vector<const OverlapQuery*> compared;
  for (const OverlapQuery& query : queries) {
    if (!many || query.limits.rows == 1 || !limits_rise(query.limits, row_begin, row_end))
      compared.push_back(&query);
    else if (narrow)
      histogram_all<Rank, std::uint16_t>(in, query, row_begin, row_end);
    else
      histogram_all<Rank, std::uint32_t>(in, query, row_begin, row_end);
  }
  if (!compared.empty()) compare_all<Rank>(in, compared, row_begin, row_end);
}

void overlap_16(MatrixView<const std::uint16_t> ranks, std::span<const TokenIndex> order,
                std::span<const std::uint32_t> counts, std::span<const OverlapQuery> queries,
                std::size_t row_begin, std::size_t row_end) {
  overlap_path<std::uint16_t>({ranks, order, counts}, queries, row_begin, row_end);
}

void overlap_32(MatrixView<const std::uint32_t> ranks, std::span<const TokenIndex> order,
                std::span<const std::uint32_t> counts, std::span<const OverlapQuery> queries,
                std::size_t row_begin, std::size_t row_end) {
  overlap_path<std::uint32_t>({ranks, order, counts}, queries, row_begin, row_end);
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
                    std::span<const std::uint32_t> counts, std::span<const OverlapQuery> queries,
                    std::size_t row_begin, std::size_t row_end) {
  check_tile(row_begin, row_end, ranks.stride);
  KVSIM_CHECK(std::is_sorted(counts.begin(), counts.end()), "the {} counts do not ascend", counts.size());
  KVSIM_CHECK(counts.empty() || counts.back() <= order.size(), "count {} of {} ranked tokens",
              counts.empty() ? 0 : counts.back(), order.size());
  for (const auto& [limits, overlap] : queries) {
    KVSIM_CHECK(limits.rows == 1 || limits.rows == counts.size(), "{} rows of limits for {} counts",
                limits.rows, counts.size());
    KVSIM_CHECK(
        limits.stride >= row_end && overlap.stride >= row_end - row_begin && overlap.rows >= counts.size(),
        "limits are {} x {}, overlaps {} x {}", limits.rows, limits.stride, overlap.rows, overlap.stride);
  }
  if (counts.empty() || row_begin == row_end) return;
  if constexpr (sizeof(Rank) == 2) {
    HWY_DYNAMIC_DISPATCH(overlap_16)(ranks, order, counts, queries, row_begin, row_end);
  } else {
    HWY_DYNAMIC_DISPATCH(overlap_32)(ranks, order, counts, queries, row_begin, row_end);
  }
}

template void overlap_counts(MatrixView<const std::uint16_t>, std::span<const TokenIndex>,
                             std::span<const std::uint32_t>, std::span<const OverlapQuery>, std::size_t,
                             std::size_t);
template void overlap_counts(MatrixView<const std::uint32_t>, std::span<const TokenIndex>,
                             std::span<const std::uint32_t>, std::span<const OverlapQuery>, std::size_t,
                             std::size_t);

}  // namespace kvsim
#endif  // HWY_ONCE
