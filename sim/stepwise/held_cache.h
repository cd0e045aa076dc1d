// The tokens of one cache while it is replayed, and which steps of the current tile could read them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/view.h"
#include "sim/exact_steps.h"

namespace kvsim {

/// evicted_at of a token that never left, and of one that left before the first decode step.
inline constexpr std::uint32_t kNeverEvicted = 0xFFFFFFFFu;
inline constexpr std::uint32_t kEvictedInPrompt = 0xFFFFFFFEu;

/// Steps of a tile, a bit each.
using StepLanes = std::uint16_t;
static_assert(kStepBlock <= 16);

/// Slots are the held tokens in ascending position. A tile is a run of up to kStepBlock decode steps; for every token that
/// some step of the tile could read the cache knows which steps those are.
class HeldCache {
 public:
  /// `drops`: removed tokens never come back; otherwise they are hidden and keep their slots.
  HeldCache(std::size_t tokens, bool drops) : drops_(drops), lanes_(tokens, 0), evicted_at_(tokens, kNeverEvicted) {}

  std::span<const TokenIndex> positions() const { return positions_; }
  bool drops() const { return drops_; }
  bool visible(std::size_t slot) const { return hidden_.empty() || hidden_[slot] == 0; }
  std::size_t visible_count() const { return positions_.size() - hidden_count_; }

  /// Tokens [first, last) enter before the decode.
  void enter_prompt(TokenIndex first, TokenIndex last);
  void begin_tile(std::size_t first_step);
  /// The token of decode step `step` enters.
  void enter_step(TokenIndex position, std::size_t step);

  /// Slots (ascending) leave after step `step`, or before the decode (`step` < 0). `evicted`: by a policy, not because a
  /// sliding window moved on.
  void remove(std::span<const std::uint32_t> slots, std::int64_t step, bool evicted);
  /// With masks: exactly these slots (ascending) are hidden from the next step on.
  void hide(std::span<const std::uint32_t> slots, std::int64_t step);
  /// A slot's stored value changes after step `step`: steps up to it read the old one. `from` is the recorded value matrix.
  void change_value(std::uint32_t slot, std::span<const float> value, MatrixView<const float> from, std::int64_t step);

  /// Counts what the cache holds now towards the peak.
  void note_peak() { peak_ = std::max(peak_, visible_count()); }
  std::size_t peak() const { return peak_; }
  /// Values as stored: the recorded ones, or this cache's own where something was merged.
  MatrixView<const float> values(MatrixView<const float> recorded) const { return own_values_.empty() ? recorded : own_values_.view(); }

  bool has_own_values() const { return !own_values_.empty(); }

  /// Tokens that some step of the tile could read, ascending, and by which steps.
  std::span<const TokenIndex> touched() const { return touched_; }
  StepLanes lanes(TokenIndex position) const { return lanes_[position]; }
  /// The same with steps that read an earlier value; 0 for untouched tokens.
  StepLanes all_lanes(TokenIndex position) const;
  /// Earlier values of tokens whose value changed within the tile.
  struct OldValue {
    TokenIndex position = 0;
    StepLanes lanes = 0;
    std::vector<float> value;
  };
  const std::vector<OldValue>& old_values() const { return old_values_; }

  std::span<const std::uint32_t> evicted_at() const { return evicted_at_; }
  std::size_t evicted() const { return evicted_; }

  bool clamped = false;
  std::int64_t near_ties = 0;

 private:
  /// Lanes of the steps up to `step` of the current tile.
  StepLanes until(std::int64_t step) const;

  bool drops_ = true;
  std::vector<TokenIndex> positions_;
  std::vector<std::uint8_t> hidden_;  // [slots] with masks, else empty
  std::size_t hidden_count_ = 0, evicted_ = 0, peak_ = 0, tile_step_ = 0;
  bool in_tile_ = false;
  std::vector<StepLanes> lanes_;  // [T + S]
  std::vector<TokenIndex> touched_;
  std::vector<OldValue> old_values_;
  std::vector<std::uint32_t> evicted_at_;  // [T + S]
  Matrix<float> own_values_;

 public:
  HeldCache(HeldCache&&) noexcept = default;
  HeldCache& operator=(HeldCache&&) noexcept = default;
  /// A copy for another capacity, made before the decode and before any merging.
  HeldCache copy() const;
};

}  // namespace kvsim
