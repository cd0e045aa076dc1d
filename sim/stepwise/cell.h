// One variant at one capacity in one layer: its caches, its states, and what happens to them event by event.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "sim/stepwise/event_view.h"
#include "sim/stepwise/stepwise_unit.h"
#include "sim/stepwise/tile_measure.h"

namespace kvsim {

/// What the cells of a layer share. Everything outlives them.
struct CellLayer {
  const LayerContext& layer;
  std::span<const HeadBlock> blocks;  // [kv heads]
  const StepwiseInputs& inputs;
};

class Cell {
 public:
  Cell(const CellLayer& layer, const StepwisePolicy& policy, std::uint32_t capacity);
  /// The same after a dense prefill, for another capacity.
  Cell copy(std::uint32_t capacity) const;

  std::span<HeldCache> caches() { return caches_; }
  std::span<const HeldCache> caches() const { return caches_; }
  const CacheReaders& readers(std::size_t cache) const { return readers_[cache]; }
  std::size_t caches_per_head() const { return caches_.size() / layer_.blocks.size(); }

  void enter_prompt(TokenIndex first, TokenIndex last);
  /// Tokens that the next query, at `position`, cannot see for the layer's sliding window leave.
  void leave_window(TokenIndex position, std::int64_t step);
  /// Something happened: `rows` [kv heads]; `prompt_sums` [kv heads][group] or empty.
  void begin_event(StepPhase phase, std::size_t step, std::span<const EventRows> rows,
                   std::span<const std::vector<std::span<const float>>> prompt_sums = {});
  /// The states see the event.
  void observe();
  /// Asks the states for an eviction where one is due, after step `step` or before the decode (-1).
  void evict(std::int64_t step);
  /// One decode step: the token enters, the policy sees it and, when due, evicts.
  void run_step(std::size_t step, std::span<const EventRows> rows);
  /// After a tile: adds up what is counted over whole tiles.
  void count_tile(std::size_t steps);
  /// Frees what only events need.
  void close_views() { views_.clear(); }

  std::vector<CellRows> rows;              // [kv heads], of the current chunk
  std::vector<double> projected_squares, sketched_squares;  // [steps so far]
  std::vector<double> response;            // [samples * steps], see SampledResponse
  std::vector<std::uint64_t> evidence, distinct;  // [kv heads]

 private:
  void open_views();
  void apply(std::size_t cache, StepState& state, std::size_t place, Eviction& out, std::int64_t step);
  bool is_due(std::size_t cache) const;

  CellLayer layer_;
  const StepwisePolicy* policy_;
  std::uint32_t capacity_;
  std::vector<CacheReaders> readers_;
  std::vector<HeldCache> caches_;
  std::vector<std::unique_ptr<StepState>> states_;  // one per cache, or one
  std::vector<std::size_t> watched_;                // [caches], slots that the states have seen
  std::vector<EventView> views_;
  std::vector<const CacheView*> view_pointers_;
};

}  // namespace kvsim
