// Orders the weights of every row: a radix sort per row, ranks of the prompt tokens, and needed sets.
#include <algorithm>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cpu/curve_checks.h"
#include "kernels/error.h"
#include "kernels/order.h"
#include "kernels/replay.h"

namespace kvsim {
namespace {

/// Three digits of 11 bits cover the 32 bits of a key.
constexpr unsigned kDigitBits = 11;
constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
constexpr unsigned kPasses = 3;
/// Rows that are read out of the token-major matrix together: one cache line of weights.
constexpr std::size_t kRowsAtOnce = kRowPad;

/// Ascending keys mean descending scores; the low half is the token.
using Entry = std::uint64_t;

std::uint32_t key_of(float score) { return ~ordered_bits(score); }

/// Stable radix sort of `entries` by their high 32 bits; `spare` is as long. The result is in `entries`.
void sort_entries(std::vector<Entry>& entries, std::vector<Entry>& spare, std::size_t n) {
  std::vector<std::uint32_t> starts(kPasses * kDigits, 0);
  const auto digit = [](Entry entry, unsigned pass) {
    return static_cast<std::size_t>(entry >> (32 + pass * kDigitBits)) & (kDigits - 1);
  };
  for (std::size_t i = 0; i < n; ++i) {
    for (unsigned pass = 0; pass < kPasses; ++pass) ++starts[pass * kDigits + digit(entries[i], pass)];
  }
  for (unsigned pass = 0; pass < kPasses; ++pass) {
    std::uint32_t* start = starts.data() + pass * kDigits;
    if (n > 0 && start[digit(entries[0], pass)] == n) continue;  // all alike: nothing to move
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < kDigits; ++i) sum += std::exchange(start[i], sum);
    for (std::size_t i = 0; i < n; ++i) spare[start[digit(entries[i], pass)]++] = entries[i];
    entries.swap(spare);
  }
}

}  // namespace

void sort_descending(std::span<const float> scores, std::span<TokenIndex> order) {
  KVSIM_CHECK(scores.size() == order.size(), "{} scores, {} places", scores.size(), order.size());
  std::vector<Entry> entries(scores.size());
  std::vector<Entry> spare(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i)
    entries[i] = static_cast<Entry>(key_of(scores[i])) << 32 | i;
  sort_entries(entries, spare, scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) order[i] = static_cast<TokenIndex>(entries[i]);
}

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
  std::vector<Entry> entries(weights.rows);
  std::vector<Entry> spare(weights.rows);
  for (std::size_t row = row_begin; row < row_end; ++row) {
    const std::size_t last = std::min<std::size_t>(position[row] + std::size_t{1}, weights.rows);
    const std::size_t seen_from =
        window == 0 || position[row] < window ? 0 : position[row] + std::size_t{1} - window;
    const std::size_t first = std::min(seen_from, last);
    double total = 0.0;
    for (std::size_t t = first; t < last; ++t) {
      const float w = weights(t, row);
      total += static_cast<double>(w);
      entries[t - first] = static_cast<Entry>(key_of(w)) << 32 | t;
    }
    const std::size_t n = last - first;
    sort_entries(entries, spare, n);
    for (std::size_t t = 0; t < prompt; ++t) out.ranks(t, row) = std::numeric_limits<Rank>::max();
    std::array<bool, kMassFractions.size()> reached{};
    double mass = 0.0;
    std::uint32_t of_prompt = 0;
    const auto settle = [&](std::size_t taken, bool all) {
      for (std::size_t f = 0; f < kMassFractions.size(); ++f) {
        if (reached[f] || (!all && mass < kMassFractions[f] * total)) continue;
        reached[f] = true;
        out.needed_total[f][row] = static_cast<std::uint32_t>(taken);
        out.needed_prompt[f][row] = of_prompt;
      }
    };
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t token = static_cast<TokenIndex>(entries[i]);
      mass += static_cast<double>(weights(token, row));
      if (token < prompt) out.ranks(token, row) = static_cast<Rank>(of_prompt++);
      settle(i + 1, false);
    }
    settle(n, true);
  }
}

template void rank_rows(MatrixView<const float>, std::size_t, std::span<const TokenIndex>, std::uint32_t,
                        std::size_t, std::size_t, const RankOutput<std::uint16_t>&);
template void rank_rows(MatrixView<const float>, std::size_t, std::span<const TokenIndex>, std::uint32_t,
                        std::size_t, std::size_t, const RankOutput<std::uint32_t>&);

}  // namespace kvsim
