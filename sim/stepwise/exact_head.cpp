// Exact attention of one KV head with ranks over all visible tokens.
#include <algorithm>
#include <limits>

#include "sim/stepwise/tile_measure.h"

namespace kvsim {

ExactHead::ExactHead(const HeadBlock& block, const LayerContext& layer, StepRange steps) : steps_(block, layer, steps, false) {
  if (steps_.weights().rows < std::numeric_limits<std::uint16_t>::max()) {
    rank_all(layer, ranks16_);
  } else {
    rank_all(layer, ranks32_);
  }
}

template <typename Rank>
void ExactHead::rank_all(const LayerContext& layer, Matrix<Rank>& ranks) {
  const MatrixView<const float> weights = steps_.weights();
  ranks = Matrix<Rank>(weights.rows, steps_.rows(), 2 * kRowPad);
  RankOutput<Rank> out{ranks.view(), {}, {}};
  std::array<std::vector<std::uint32_t>, kMassFractions.size()> all;  // with every token ranked, both counts are the same
  for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
    needed_[c].assign(weights.stride, 0);
    all[c].assign(weights.stride, 0);
    out.needed_total[c] = needed_[c];
    out.needed_prompt[c] = all[c];
  }
  const auto tiles = static_cast<std::int64_t>((steps_.rows() + kRowPad - 1) / kRowPad);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::size_t begin = static_cast<std::size_t>(i) * kRowPad;
    rank_rows(weights, weights.rows, steps_.position(), layer.rule.window, begin, std::min(steps_.rows(), begin + kRowPad), out);
  }
}

std::size_t ExactHead::bytes_needed(const LayerGeometry& g, std::size_t steps) {
  const std::size_t tokens = g.prompt + g.decode;
  const std::size_t rank_bytes = tokens < std::numeric_limits<std::uint16_t>::max() ? 2 : 4;
  return ExactSteps::bytes_needed(g, steps, false) + round_up(g.group * steps, 2 * kRowPad) * tokens * rank_bytes;
}

void CellRows::reset(std::size_t rows, std::size_t value_dim, bool with_delta) {
  for (auto& v : values) v.assign(rows, 0.0f);
  readable = 0;
  most_readable = 0;
  if (with_delta) delta = Matrix<float>(value_dim, rows, kRowPad);
}

}  // namespace kvsim
