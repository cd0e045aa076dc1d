// The tokens of one cache while it is replayed.
#include "sim/stepwise/held_cache.h"

#include <algorithm>

#include "kernels/error.h"
#include "policies/stepwise/choose.h"

namespace kvsim {

StepLanes HeldCache::until(std::int64_t step) const {
  const std::int64_t lane = step - static_cast<std::int64_t>(tile_step_);
  if (!in_tile_ || lane < 0) return 0;
  return static_cast<StepLanes>((2u << lane) - 1);
}

StepLanes HeldCache::all_lanes(TokenIndex position) const {
  StepLanes lanes = lanes_[position];
  for (const OldValue& old : old_values_)
    if (old.position == position) lanes = static_cast<StepLanes>(lanes | old.lanes);
  return lanes;
}

HeldCache HeldCache::copy() const {
  KVSIM_CHECK(own_values_.empty() && !in_tile_, "a cache is copied after the decode began ({} tokens)", positions_.size());
  HeldCache other(lanes_.size(), drops_);
  other.positions_ = positions_;
  other.hidden_ = hidden_;
  other.hidden_count_ = hidden_count_;
  other.evicted_ = evicted_;
  other.peak_ = peak_;
  other.evicted_at_ = evicted_at_;
  return other;
}

void HeldCache::enter_prompt(TokenIndex first, TokenIndex last) {
  for (TokenIndex p = first; p < last; ++p) positions_.push_back(p);
  if (!drops_) hidden_.resize(positions_.size(), 0);
}

void HeldCache::begin_tile(std::size_t first_step) {
  for (const TokenIndex p : touched_) lanes_[p] = 0;
  touched_.assign(positions_.begin(), positions_.end());
  old_values_.clear();
  tile_step_ = first_step;
  in_tile_ = true;
  for (std::size_t s = 0; s < positions_.size(); ++s) lanes_[positions_[s]] = visible(s) ? StepLanes(0xFFFF) : StepLanes(0);
}

void HeldCache::enter_step(TokenIndex position, std::size_t step) {
  positions_.push_back(position);
  if (!drops_) hidden_.push_back(0);
  touched_.push_back(position);
  lanes_[position] = static_cast<StepLanes>(~until(static_cast<std::int64_t>(step) - 1));
}

void HeldCache::remove(std::span<const std::uint32_t> slots, std::int64_t step, bool evicted) {
  const StepLanes seen = until(step);
  for (const std::uint32_t slot : slots) {
    const TokenIndex p = positions_[slot];
    lanes_[p] &= seen;
    evicted_at_[p] = step < 0 ? kEvictedInPrompt : static_cast<std::uint32_t>(step);
    if (!hidden_.empty()) hidden_count_ -= hidden_[slot];
  }
  evicted_ += evicted ? slots.size() : 0;
  erase_slots(positions_, slots);
  if (!hidden_.empty()) erase_slots(hidden_, slots);
}

void HeldCache::hide(std::span<const std::uint32_t> slots, std::int64_t step) {
  const StepLanes seen = until(step);
  std::size_t next = 0;
  for (std::size_t s = 0; s < positions_.size(); ++s) {
    const bool now = next < slots.size() && slots[next] == s;
    next += now ? 1 : 0;
    if (now == (hidden_[s] != 0)) continue;
    hidden_[s] = now ? 1 : 0;
    StepLanes& lanes = lanes_[positions_[s]];
    lanes = now ? static_cast<StepLanes>(lanes & seen) : static_cast<StepLanes>(lanes | static_cast<StepLanes>(~seen));
  }
  hidden_count_ = slots.size();
}

void HeldCache::change_value(std::uint32_t slot, std::span<const float> value, MatrixView<const float> from, std::int64_t step) {
  if (own_values_.empty()) {
    own_values_ = Matrix<float>(from.rows, from.cols);
    for (std::size_t r = 0; r < from.rows; ++r) std::copy_n(from.row(r), from.cols, own_values_.row(r));
  }
  KVSIM_CHECK(value.size() == own_values_.cols(), "a value of {} channels for {}", value.size(), own_values_.cols());
  const TokenIndex p = positions_[slot];
  const StepLanes seen = static_cast<StepLanes>(lanes_[p] & until(step));
  if (seen != 0) {
    old_values_.push_back({p, seen, {own_values_.row(p), own_values_.row(p) + own_values_.cols()}});
    lanes_[p] = static_cast<StepLanes>(lanes_[p] & ~seen);
  }
  std::copy(value.begin(), value.end(), own_values_.row(p));
}

}  // namespace kvsim
