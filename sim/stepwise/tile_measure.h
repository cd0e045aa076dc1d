// Measures caches over one tile of steps: errors, recall, agreement and misses from one product per cache.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "sim/head_measure.h"
#include "sim/stepwise/event_view.h"

namespace kvsim {

/// Exact attention of one KV head over a range of steps, with ranks and needed sets over all visible tokens: with a
/// decode-time capacity decoded tokens can be missing too.
class ExactHead {
 public:
  ExactHead(const HeadBlock& block, const LayerContext& layer, StepRange steps);
  const ExactSteps& steps() const { return steps_; }
  MatrixView<const float> outputs(const HeadBlock& block) const { return steps_.curve_input(block).exact; }
  bool wide() const { return !ranks32_.empty(); }
  template <typename Rank>
  MatrixView<const Rank> ranks() const {
    if constexpr (sizeof(Rank) == 2) return ranks16_.view();
    else return ranks32_.view();
  }
  std::span<const std::uint32_t> needed(std::size_t fraction) const { return needed_[fraction]; }

  static std::size_t bytes_needed(const LayerGeometry& geometry, std::size_t steps);

 private:
  template <typename Rank>
  void rank_all(const LayerContext& layer, Matrix<Rank>& ranks);

  ExactSteps steps_;
  Matrix<std::uint16_t> ranks16_;
  Matrix<std::uint32_t> ranks32_;
  std::array<std::vector<std::uint32_t>, kMassFractions.size()> needed_;
};

/// Step values of one cell on one KV head over a chunk of steps: [group * steps], row = head * steps + step of the chunk.
struct CellRows {
  std::array<std::vector<float>, kStepMetrics> values;
  std::uint64_t readable = 0;       // tokens that steps could read, summed over query heads and steps
  std::uint32_t most_readable = 0;
  Matrix<float> delta;              // o' - o, [value_dim, rows], where errors are projected

  void reset(std::size_t rows, std::size_t value_dim, bool with_delta);
};

/// What one tile of one cache (or of the nested caches of several capacities) is measured with.
struct TileInput {
  const LayerContext& layer;
  const HeadBlock& block;
  const ExactHead& exact;
  CacheReaders readers;
  StepRange tile;  // inside exact.steps().steps()
  bool shifts_positions = false;
};

/// `nested`: caches over the same readers, each tile's readable sets a subset of the next one's (checked). out[i] receives
/// what nested[i] gives. One product over the union, with a snapshot per cache.
void measure_tile(const TileInput& in, std::span<const HeldCache* const> nested, std::span<CellRows* const> out);

}  // namespace kvsim
