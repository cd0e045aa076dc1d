// Keeping the best slots of a cache.
#include "policies/stepwise/choose.h"

#include <cmath>

#include "kernels/error.h"
#include "kernels/order.h"

namespace kvsim {
namespace {

/// Two scores closer than this share of the larger one count as a near tie, as for prompt-time policies.
constexpr float kNear = 1e-6f;

bool near(float a, float b) { return std::abs(a - b) <= kNear * std::max(std::abs(a), std::abs(b)); }

/// Slots [first, last) are free to go; one of them must. No sort: every score may have changed since the last step, so a
/// scan is as good as any queue.
void drop_one(std::span<const float> score, std::size_t first, std::size_t last, Eviction& out) {
  std::size_t lowest = first;
  float second = INFINITY;
  for (std::size_t s = first + 1; s < last; ++s) {
    if (score[s] <= score[lowest]) {  // the later of equals goes
      second = score[lowest];
      lowest = s;
    } else {
      second = std::min(second, score[s]);
    }
  }
  out.slots.push_back(static_cast<std::uint32_t>(lowest));
  if (last - first > 1 && near(score[lowest], second)) ++out.near_ties;
}

void drop_many(std::span<const float> score, std::size_t first, std::size_t last, std::size_t keep, Eviction& out) {
  std::vector<OrderKey> keys;
  keys.reserve(last - first);
  for (std::size_t s = first; s < last; ++s) keys.emplace_back(score[s], static_cast<TokenIndex>(s));
  const auto cut = keys.begin() + static_cast<std::ptrdiff_t>(keep);
  std::nth_element(keys.begin(), cut, keys.end());
  if (keep > 0) {
    const float last_kept = score[std::max_element(keys.begin(), cut)->index()];
    for (auto key = cut; key != keys.end(); ++key) out.near_ties += near(last_kept, score[key->index()]) ? 1 : 0;
  }
  const std::size_t before = out.slots.size();
  for (auto key = cut; key != keys.end(); ++key) out.slots.push_back(key->index());
  std::sort(out.slots.begin() + static_cast<std::ptrdiff_t>(before), out.slots.end());
}

}  // namespace

void keep_best(std::span<const TokenIndex> positions, std::span<const float> score, std::uint32_t capacity,
               Protection protection, Eviction& out) {
  const std::size_t slots = positions.size();
  if (slots <= capacity) return;
  KVSIM_CHECK(score.size() == slots, "{} scores for {} slots", score.size(), slots);
  bool undefined = false;
  for (const float s : score) undefined |= std::isnan(s);
  KVSIM_CHECK(!undefined, "a score of {} slots is not a number", slots);
  const auto first = static_cast<std::size_t>(
      std::lower_bound(positions.begin(), positions.end(), protection.sinks) - positions.begin());
  const std::size_t last = std::max<std::size_t>(first, slots - std::min<std::size_t>(protection.recent, slots));
  const std::size_t kept_always = first + (slots - last);
  if (kept_always > capacity) {
    out.clamped = true;
    const std::size_t front = std::min<std::size_t>(first, capacity);
    for (std::size_t s = front; s < slots - (capacity - front); ++s) out.slots.push_back(static_cast<std::uint32_t>(s));
    return;
  }
  const std::size_t drop = slots - capacity;
  if (drop == 1) {
    drop_one(score, first, last, out);
  } else {
    drop_many(score, first, last, (last - first) - drop, out);
  }
}

}  // namespace kvsim
