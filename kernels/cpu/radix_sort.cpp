// The radix sort: counting passes, and an insertion pass that stops when it would take long.
#include "kernels/cpu/radix_sort.h"

#include <algorithm>
#include <utility>

#include "kernels/error.h"
#include "kernels/order.h"

namespace kvsim {
namespace {

constexpr unsigned kDigitBits = 11;
constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
/// Bits of a 31-bit key that two passes leave out.
constexpr unsigned kLeftBits = 9;
/// Moves per entry after which insertion gives up: about what the third pass costs.
constexpr std::size_t kMovesPerEntry = 4;

std::size_t digit(SortEntry entry, unsigned shift) {
  return static_cast<std::size_t>(entry >> shift) & (kDigits - 1);
}

/// Moves entries to their places by one digit; `start` holds the digit's counts.
void scatter(SortBuffers& buffers, std::size_t n, unsigned shift, std::uint32_t* start) {
  if (n > 0 && start[digit(buffers.entries[0], shift)] == n) return;  // all alike: nothing to move
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < kDigits; ++i) sum += std::exchange(start[i], sum);
  const SortEntry* from = buffers.entries.data();
  SortEntry* to = buffers.spare.data();
  for (std::size_t i = 0; i < n; ++i) {
    const SortEntry entry = from[i];
    to[start[digit(entry, shift)]++] = entry;
  }
  buffers.entries.swap(buffers.spare);
}

/// Counts the digits at the given shifts, then scatters by each.
template <std::size_t kPasses>
void radix_passes(SortBuffers& buffers, std::size_t n, const unsigned (&shifts)[kPasses]) {
  buffers.spare.resize(std::max(buffers.spare.size(), buffers.entries.size()));
  buffers.entries.resize(buffers.spare.size());
  buffers.starts.assign(kPasses * kDigits, 0);
  std::uint32_t* starts = buffers.starts.data();
  for (std::size_t i = 0; i < n; ++i) {
    const SortEntry entry = buffers.entries[i];
    for (std::size_t pass = 0; pass < kPasses; ++pass) ++starts[pass * kDigits + digit(entry, shifts[pass])];
  }
  for (std::size_t pass = 0; pass < kPasses; ++pass)
    scatter(buffers, n, shifts[pass], starts + pass * kDigits);
}

/// Stable insertion sort by key of an almost sorted array; false when it takes too many moves, equal keys
/// still as they stood.
bool insert_strays(SortEntry* entries, std::size_t n) {
  std::size_t moves_left = kMovesPerEntry * n;
  for (std::size_t i = 1; i < n; ++i) {
    const SortEntry entry = entries[i];
    if (entries[i - 1] >> 32 <= entry >> 32) continue;
    std::size_t place = i;
    for (; place > 0 && entries[place - 1] >> 32 > entry >> 32; --place) entries[place] = entries[place - 1];
    entries[place] = entry;
    if (i - place > moves_left) return false;
    moves_left -= i - place;
  }
  return true;
}

}  // namespace

void sort_entries(SortBuffers& buffers, std::size_t n) {
  radix_passes(buffers, n, {32, 32 + kDigitBits, 32 + 2 * kDigitBits});
}

void sort_spread_entries(SortBuffers& buffers, std::size_t n) {
  radix_passes(buffers, n, {32 + kLeftBits, 32 + kLeftBits + kDigitBits});
  if (insert_strays(buffers.entries.data(), n)) return;
  // Entries that are equal in the upper bits stand in any order now; equal keys must stand by token again.
  // Insertion moves an entry only past larger keys, so equal keys have kept their order, and a stable sort by
  // all bits is right.
  sort_entries(buffers, n);
}

void sort_descending(std::span<const float> scores, std::span<TokenIndex> order) {
  KVSIM_CHECK(scores.size() == order.size(), "{} scores, {} places", scores.size(), order.size());
  SortBuffers buffers;
  buffers.entries.resize(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    buffers.entries[i] = static_cast<SortEntry>(~ordered_bits(scores[i])) << 32 | i;
  }
  sort_entries(buffers, scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) order[i] = static_cast<TokenIndex>(buffers.entries[i]);
}

}  // namespace kvsim
