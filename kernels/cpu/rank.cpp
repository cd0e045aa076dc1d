// Orders the weights of every row: a radix sort per row, ranks of the prompt tokens, and needed sets.
#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "kernels/cpu/curve_checks.h"
#include "kernels/cpu/radix_sort.h"
#include "kernels/cpu/strip_stride.h"
#include "kernels/error.h"
#include "kernels/replay.h"

namespace kvsim {
namespace {

/// Rows that are read out of the token-major matrix together: one cache line of weights.
constexpr std::size_t kStrip = kRowPad;
constexpr std::size_t kFetchAhead = 24;  // tokens: each stands in another line, often in another page
constexpr std::uint32_t kLargestKey = 0x7fffffffu;  // weights are not negative, so 31 bits order them

/// Tokens that a row sees: first .. last - 1.
struct Visible {
  std::size_t first = 0;
  std::size_t last = 0;
};

Visible visible(TokenIndex position, std::uint32_t window, std::size_t tokens) {
  const std::size_t last = std::min<std::size_t>(position + std::size_t{1}, tokens);
  const std::size_t first = window == 0 || position < window ? 0 : position + std::size_t{1} - window;
  return {std::min(first, last), last};
}

/// A strip of rows, transposed.
template <typename Rank>
struct Strip {
  explicit Strip(std::size_t tokens)
      : keys(kStrip, strip_stride<std::uint32_t>(tokens)), ranks(kStrip, strip_stride<Rank>(tokens)) {}
  Matrix<std::uint32_t> keys;  // [row][token], ascending = largest weight first
  Matrix<Rank> ranks;          // [row][token]
  double total[kStrip] = {};   // weight of all tokens; those that a row does not see weigh 0
  SortBuffers sort;
};

/// Reads kStrip rows from `row` on; padding rows come along.
template <typename Rank>
void load_strip(MatrixView<const float> weights, std::size_t row, Strip<Rank>& strip) {
  double total[kStrip] = {};
  std::uint32_t* keys = strip.keys.data();
  const std::size_t stride = strip.keys.stride();
  for (std::size_t t = 0; t < weights.rows; ++t) {
    const float* w = weights.row(t) + row;
    if (t + kFetchAhead < weights.rows) __builtin_prefetch(weights.row(t + kFetchAhead) + row);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kStrip; ++r) {
      keys[r * stride + t] = kLargestKey - std::bit_cast<std::uint32_t>(w[r] + 0.0f);
    }
    for (std::size_t r = 0; r < kStrip; ++r) total[r] += static_cast<double>(w[r]);
  }
  std::copy_n(total, kStrip, strip.total);
}

double weight_of(SortEntry entry) {
  return static_cast<double>(std::bit_cast<float>(kLargestKey - static_cast<std::uint32_t>(entry >> 32)));
}

/// How many of the sorted entries hold `wanted`, from `taken` entries that hold `mass` on; both are moved
/// along. Eight at a time: weights are floats, so their sums in double are all but exact in any order.
std::size_t take_until(const SortEntry* entries, std::size_t n, double wanted, std::size_t& taken,
                       double& mass) {
  constexpr std::size_t kChunk = 8;
  while (taken + kChunk <= n) {
    double part[kChunk];
    for (std::size_t i = 0; i < kChunk; ++i) part[i] = weight_of(entries[taken + i]);
    const double next =
        mass + (((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7])));
    if (next >= wanted) break;
    mass = next;
    taken += kChunk;
  }
  while (taken < n && (taken == 0 || mass < wanted)) mass += weight_of(entries[taken++]);
  return taken;
}

template <typename Rank>
void rank_row(Strip<Rank>& strip, std::size_t r, Visible seen, std::size_t prompt, std::size_t row,
              const RankOutput<Rank>& out) {
  const std::uint32_t* keys = strip.keys.row(r);
  SortBuffers& sort = strip.sort;
  const std::size_t n = seen.last - seen.first;
  sort.entries.resize(strip.keys.cols());
  for (std::size_t i = 0; i < n; ++i) {
    sort.entries[i] = static_cast<SortEntry>(keys[seen.first + i]) << 32 | (seen.first + i);
  }
  sort_spread_entries(sort, n);

  const SortEntry* entries = sort.entries.data();
  Rank* ranks = strip.ranks.row(r);
  std::fill_n(ranks, std::min(seen.first, prompt), std::numeric_limits<Rank>::max());
  if (seen.last < prompt) std::fill(ranks + seen.last, ranks + prompt, std::numeric_limits<Rank>::max());
  std::size_t next = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t token = static_cast<TokenIndex>(entries[i]);
    ranks[token] = static_cast<Rank>(next);  // of a decode token: never read
    next += token < prompt ? 1 : 0;
  }
  std::size_t taken = 0;
  double mass = 0.0;
  for (std::size_t f = 0; f < kMassFractions.size(); ++f) {
    const std::size_t needed = take_until(entries, n, kMassFractions[f] * strip.total[r], taken, mass);
    out.needed_total[f][row] = static_cast<std::uint32_t>(needed);
    out.needed_prompt[f][row] = static_cast<std::uint32_t>(std::count_if(
        entries, entries + needed, [&](SortEntry e) { return static_cast<TokenIndex>(e) < prompt; }));
  }
}

template <typename Rank>
void store_ranks(const Strip<Rank>& strip, std::size_t prompt, std::size_t row, std::size_t rows,
                 MatrixView<Rank> ranks) {
  const Rank* from = strip.ranks.data();
  const std::size_t stride = strip.ranks.stride();
  if (rows < kStrip) {
    for (std::size_t t = 0; t < prompt; ++t) {
      for (std::size_t r = 0; r < rows; ++r) ranks.row(t)[row + r] = from[r * stride + t];
    }
    return;
  }
  for (std::size_t t = 0; t < prompt; ++t) {
    Rank* to = ranks.row(t) + row;
    if (t + kFetchAhead < prompt) __builtin_prefetch(ranks.row(t + kFetchAhead) + row, 1);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < kStrip; ++r) to[r] = from[r * stride + t];
  }
}

}  // namespace

template <typename Rank>
void rank_rows(MatrixView<const float> weights, std::size_t prompt, std::span<const TokenIndex> position,
               std::uint32_t window, std::size_t row_begin, std::size_t row_end,
               const RankOutput<Rank>& out) {
  check_tile(row_begin, row_end, weights.stride);
  KVSIM_CHECK(prompt <= weights.rows && prompt < std::numeric_limits<Rank>::max(), "prompt of {} tokens",
              prompt);
  KVSIM_CHECK(out.ranks.rows >= prompt && out.ranks.stride >= row_end, "ranks are {} x {}", out.ranks.rows,
              out.ranks.stride);
  KVSIM_CHECK(position.size() >= row_end, "{} positions for row {}", position.size(), row_end);
  Strip<Rank> strip(weights.rows);
  for (std::size_t row = row_begin; row < row_end; row += kStrip) {
    const std::size_t rows = std::min(kStrip, row_end - row);
    load_strip(weights, row, strip);
    for (std::size_t r = 0; r < rows; ++r) {
      rank_row(strip, r, visible(position[row + r], window, weights.rows), prompt, row + r, out);
    }
    store_ranks(strip, prompt, row, rows, out.ranks);
  }
}

template void rank_rows(MatrixView<const float>, std::size_t, std::span<const TokenIndex>, std::uint32_t,
                        std::size_t, std::size_t, const RankOutput<std::uint16_t>&);
template void rank_rows(MatrixView<const float>, std::size_t, std::span<const TokenIndex>, std::uint32_t,
                        std::size_t, std::size_t, const RankOutput<std::uint32_t>&);

}  // namespace kvsim
