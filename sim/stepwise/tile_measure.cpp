// Measures caches over one tile of steps.
//
// A tile's readable sets differ by a few tokens from step to step. So the weights of all tokens that some step could read
// are packed into a panel [token][query head][step], with 0 where a step could not read the token, and one pass of the
// curve kernel gives numerators and kept mass of all steps. With nested capacities every (token, step) belongs to the
// smallest capacity that holds it: one pass with a snapshot per capacity.
#include "sim/stepwise/tile_measure.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/error.h"
#include "sim/stepwise/shifted_positions.h"

namespace kvsim {
namespace {

constexpr std::size_t kLanes = 16;
constexpr float kUndefined = std::numeric_limits<float>::quiet_NaN();

/// A token as some steps of the tile read it.
struct Entry {
  TokenIndex position = 0;
  StepLanes lanes = 0;
  const float* value = nullptr;
};

/// Memory of a thread, reused from tile to tile.
struct Scratch {
  std::vector<Entry> entries;
  std::vector<std::uint32_t> ends;  // [nested]: entries before are in the cache
  std::vector<TokenIndex> identity;
  Matrix<float> panel, shifted, values, exact, tail, error, recall, delta;
  std::vector<float> tail_weight;
  Matrix<std::uint16_t> ranks16;
  Matrix<std::uint32_t> ranks32;
  Matrix<std::uint32_t> limits, agree;
  std::array<Matrix<std::uint32_t>, kMassFractions.size()> needed, found;

  template <typename T>
  static void fit(Matrix<T>& matrix, std::size_t rows, std::size_t cols, std::size_t pad) {
    if (matrix.rows() < rows || matrix.cols() != cols) matrix = Matrix<T>(rows + rows / 4, cols, pad);
  }
  template <typename Rank>
  Matrix<Rank>& ranks() {
    if constexpr (sizeof(Rank) == 2) return ranks16;
    else return ranks32;
  }
};

StepLanes valid_lanes(std::size_t count) { return static_cast<StepLanes>((1u << count) - 1); }

void list_entries(const TileInput& in, std::span<const HeldCache* const> nested, Scratch& scratch) {
  const StepLanes valid = valid_lanes(in.tile.count);
  scratch.entries.clear();
  scratch.ends.clear();
  for (std::size_t i = 0; i < nested.size(); ++i) {
    const HeldCache& cache = *nested[i];
    const MatrixView<const float> values = cache.values(in.block.value.view());
    for (const TokenIndex p : cache.touched()) {
      const StepLanes mine = static_cast<StepLanes>(cache.lanes(p) & valid);
      const StepLanes smaller = i == 0 ? StepLanes(0) : static_cast<StepLanes>(nested[i - 1]->lanes(p) & valid);
      KVSIM_DCHECK((smaller & ~mine) == 0, "position {} is held by a smaller capacity only", p);
      const StepLanes lanes = static_cast<StepLanes>(mine & ~smaller);
      if (lanes != 0) scratch.entries.push_back({p, lanes, values.row(p)});
    }
    for (const HeldCache::OldValue& old : cache.old_values())
      if ((old.lanes & valid) != 0) scratch.entries.push_back({old.position, static_cast<StepLanes>(old.lanes & valid), old.value.data()});
    scratch.ends.push_back(static_cast<std::uint32_t>(scratch.entries.size()));
  }
}

/// to[h * kLanes + lane] = from[column of (h, lane)] for the lanes of the entry, `none` elsewhere.
template <typename T>
void pack_row(const T* from, const TileInput& in, StepLanes lanes, T none, T* to) {
  const std::size_t steps = in.exact.steps().steps().count;
  const std::size_t first = in.tile.first - in.exact.steps().steps().first;
  const bool all = lanes == valid_lanes(kLanes);
  for (std::size_t h = 0; h < in.readers.heads; ++h) {
    const T* row = from + (in.readers.first_head + h) * steps + first;
    T* out = to + h * kLanes;
    if (all) {
      std::copy_n(row, kLanes, out);
      continue;
    }
    for (std::size_t lane = 0; lane < in.tile.count; ++lane) out[lane] = (lanes >> lane & 1) != 0 ? row[lane] : none;
    for (std::size_t lane = in.tile.count; lane < kLanes; ++lane) out[lane] = none;
  }
}

void pack_panels(const TileInput& in, Scratch& scratch) {
  const std::size_t count = scratch.entries.size(), rows = in.readers.heads * kLanes, dv = in.block.value.cols();
  Scratch::fit(scratch.panel, count, rows, kRowPad);
  Scratch::fit(scratch.values, count, dv, 1);
  const MatrixView<const float> weights = in.exact.steps().weights();
  for (std::size_t e = 0; e < count; ++e) {
    const Entry& entry = scratch.entries[e];
    pack_row(weights.row(entry.position), in, entry.lanes, 0.0f, scratch.panel.row(e));
    std::copy_n(entry.value, dv, scratch.values.row(e));
  }
  while (scratch.identity.size() < count) scratch.identity.push_back(static_cast<TokenIndex>(scratch.identity.size()));
}

/// Errors and kept mass of all rows, [nested][rows]; error vectors where they are projected.
void run_products(const TileInput& in, Scratch& scratch, MatrixView<const float> weights, float* delta, std::size_t delta_stride) {
  const std::size_t rows = in.readers.heads * kLanes, count = scratch.entries.size();
  CurveInput curve;
  curve.weights = {weights.data, count, rows, weights.stride};
  curve.values = {scratch.values.data(), count, scratch.values.cols(), scratch.values.stride()};
  curve.order = std::span(scratch.identity).first(count);
  curve.counts = scratch.ends;
  curve.tail_output = scratch.tail.view();
  curve.tail_weight = scratch.tail_weight;
  curve.exact = scratch.exact.view();
  CurveOutput out{scratch.error.view(), scratch.recall.view(), delta, delta_stride};
  curve_pass(curve, 0, rows, out);
}

void prepare_exact(const TileInput& in, std::size_t nested, Scratch& scratch) {
  const std::size_t rows = in.readers.heads * kLanes, dv = in.block.value.cols();
  if (scratch.exact.rows() != dv || scratch.exact.cols() != rows) {
    scratch.exact = Matrix<float>(dv, rows, kRowPad);
    scratch.tail = Matrix<float>(dv, rows, kRowPad);
    scratch.tail_weight.assign(scratch.tail.stride(), 0.0f);
  }
  const MatrixView<const float> outputs = in.exact.outputs(in.block);
  for (std::size_t c = 0; c < dv; ++c) pack_row(outputs.row(c), in, valid_lanes(in.tile.count), 0.0f, scratch.exact.row(c));
  Scratch::fit(scratch.error, nested, rows, kRowPad);
  Scratch::fit(scratch.recall, nested, rows, kRowPad);
  Scratch::fit(scratch.limits, nested, rows, kRowPad);
  Scratch::fit(scratch.agree, nested, rows, kRowPad);
  for (auto& found : scratch.found) Scratch::fit(found, nested, rows, kRowPad);
}

/// Row of (query head h, lane) among the rows of the chunk.
std::size_t chunk_row(const TileInput& in, std::size_t h, std::size_t lane) {
  const StepRange& chunk = in.exact.steps().steps();
  return (in.readers.first_head + h) * chunk.count + (in.tile.first - chunk.first) + lane;
}

template <typename Rank>
void count_ranks(const TileInput& in, std::span<const std::array<std::uint32_t, kLanes>> readable, Scratch& scratch) {
  const std::size_t rows = in.readers.heads * kLanes, count = scratch.entries.size();
  Matrix<Rank>& ranks = scratch.ranks<Rank>();
  Scratch::fit(ranks, count, rows, 2 * kRowPad);
  const MatrixView<const Rank> all = in.exact.ranks<Rank>();
  for (std::size_t e = 0; e < count; ++e)
    pack_row(all.row(scratch.entries[e].position), in, scratch.entries[e].lanes, std::numeric_limits<Rank>::max(), ranks.row(e));
  const MatrixView<const std::uint32_t> limits{scratch.limits.data(), scratch.ends.size(), rows, scratch.limits.stride()};
  std::vector<OverlapQuery> queries{{limits, scratch.agree.view()}};
  for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
    Scratch::fit(scratch.needed[c], 1, rows, kRowPad);
    pack_row(in.exact.needed(c).data(), in, valid_lanes(in.tile.count), 0u, scratch.needed[c].row(0));
    queries.push_back({{scratch.needed[c].data(), 1, rows, scratch.needed[c].stride()}, scratch.found[c].view()});
  }
  // n = held tokens without the step's own, which every policy reads. Its rank is taken out of the row's order: where it
  // stands among the first n, the n best others reach one further.
  const std::size_t prompt = in.layer.geometry.prompt;
  for (std::size_t i = 0; i < scratch.ends.size(); ++i)
    for (std::size_t h = 0; h < in.readers.heads; ++h)
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        std::uint32_t limit = 0;
        if (lane < in.tile.count) {
          const std::uint32_t n = readable[i][lane] - 1;
          const Rank own = all(prompt + in.tile.first + lane, chunk_row(in, h, lane));
          limit = n == 0 ? 0 : n + (own < n ? 1u : 0u);
        }
        scratch.limits(i, h * kLanes + lane) = limit;
      }
  overlap_counts(MatrixView<const Rank>{ranks.data(), count, rows, ranks.stride()}, std::span<const TokenIndex>(scratch.identity).first(count),
                 scratch.ends, queries, 0, rows);
}

/// A row whose kept mass underflowed in the shared softmax: exactly, with its own maximum.
void recompute(const TileInput& in, const HeldCache& cache, std::size_t i, std::size_t h, std::size_t lane, float* delta, Scratch& scratch) {
  std::vector<TokenIndex> held;
  for (const TokenIndex p : cache.touched())
    if ((cache.all_lanes(p) >> lane & 1) != 0) held.push_back(p);
  std::sort(held.begin(), held.end());
  const std::size_t dv = in.block.value.cols(), row = h * kLanes + lane;
  std::vector<double> output(dv);
  // Values merged later in the tile differ from those that this step read: a rounding of a rounding, so left.
  subset_output(in.block.key.view(), cache.values(in.block.value.view()), in.exact.steps().queries().row_span(chunk_row(in, h, lane)),
                in.layer.rule, held, output);
  double error = 0, norm = 0;
  for (std::size_t c = 0; c < dv; ++c) {
    const double o = static_cast<double>(scratch.exact(c, row));
    error += (output[c] - o) * (output[c] - o);
    norm += o * o;
    if (delta != nullptr) delta[c * scratch.exact.stride() + row] = static_cast<float>(output[c] - o);
  }
  scratch.error(i, row) = static_cast<float>(norm > 0 ? std::sqrt(error / norm) : std::sqrt(error));
}

/// Tokens that each step of the tile could read.
std::array<std::uint32_t, kLanes> count_readable(const HeldCache& cache) {
  std::array<std::uint32_t, kLanes> readable{};
  const auto add = [&readable](StepLanes lanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) readable[lane] += lanes >> lane & 1u;
  };
  for (const TokenIndex p : cache.touched()) add(cache.lanes(p));
  for (const HeldCache::OldValue& old : cache.old_values()) add(old.lanes);
  return readable;
}

void store_rows(const TileInput& in, std::size_t i, std::span<const std::uint32_t> readable,
                const float* delta, Scratch& scratch, CellRows& out) {
  const std::size_t prompt = in.layer.geometry.prompt;
  const auto rank_of_own = [&](std::size_t row, std::size_t lane) -> std::uint32_t {
    const TokenIndex p = static_cast<TokenIndex>(prompt + in.tile.first + lane);
    return in.exact.wide() ? in.exact.ranks<std::uint32_t>()(p, row) : in.exact.ranks<std::uint16_t>()(p, row);
  };
  constexpr std::array<std::pair<StepMetric, std::size_t>, 3> kMisses{
      {{StepMetric::miss_rate, 1}, {StepMetric::miss_rate_50, 0}, {StepMetric::miss_rate_99, 2}}};
  const auto set = [&](StepMetric metric, std::size_t row, float value) { out.values[static_cast<std::size_t>(metric)][row] = value; };
  for (std::size_t h = 0; h < in.readers.heads; ++h)
    for (std::size_t lane = 0; lane < in.tile.count; ++lane) {
      const std::size_t at = h * kLanes + lane, row = chunk_row(in, h, lane);
      const std::uint32_t n = readable[lane] - 1, limit = scratch.limits(i, at);
      const std::uint32_t agree = scratch.agree(i, at) - (rank_of_own(row, lane) < limit ? 1u : 0u);
      set(StepMetric::output_error, row, scratch.error(i, at));
      set(StepMetric::attention_recall, row, scratch.recall(i, at));
      set(StepMetric::query_consistency, row, n == 0 ? kUndefined : static_cast<float>(agree) / static_cast<float>(n));
      for (const auto& [metric, c] : kMisses) {
        const std::uint32_t needed = scratch.needed[c](0, at);
        set(metric, row, static_cast<float>(needed - scratch.found[c](i, at)) / static_cast<float>(needed));
      }
      out.readable += readable[lane];
      out.most_readable = std::max(out.most_readable, readable[lane]);
      if (delta != nullptr)
        for (std::size_t c = 0; c < in.block.value.cols(); ++c)
          out.delta(c, row) = delta[c * scratch.exact.stride() + at];
    }
}

}  // namespace

void measure_tile(const TileInput& in, std::span<const HeldCache* const> nested, std::span<CellRows* const> out) {
  thread_local Scratch scratch;
  list_entries(in, nested, scratch);
  pack_panels(in, scratch);
  prepare_exact(in, nested.size(), scratch);
  const std::size_t dv = in.block.value.cols();
  const bool project = !out[0]->delta.empty();
  const std::size_t delta_stride = dv * scratch.exact.stride();
  std::vector<float> delta(project ? nested.size() * delta_stride : 0);
  run_products(in, scratch, scratch.panel.view(), project ? delta.data() : nullptr, delta_stride);
  std::vector<std::array<std::uint32_t, kLanes>> readable;
  for (const HeldCache* cache : nested) readable.push_back(count_readable(*cache));
  if (in.exact.wide()) {
    count_ranks<std::uint32_t>(in, readable, scratch);
  } else {
    count_ranks<std::uint16_t>(in, readable, scratch);
  }
  if (in.shifts_positions) {
    for (std::size_t i = 0; i < nested.size(); ++i) {
      float* one = project ? delta.data() + i * delta_stride : nullptr;
      shifted_errors(in, *nested[i], scratch.exact.view(), scratch.error.row(i), one);
    }
  }
  for (std::size_t i = 0; i < nested.size(); ++i) {
    float* one = project ? delta.data() + i * delta_stride : nullptr;
    for (std::size_t h = 0; h < in.readers.heads; ++h)
      for (std::size_t lane = 0; lane < in.tile.count; ++lane)
        if (std::isnan(scratch.error(i, h * kLanes + lane))) recompute(in, *nested[i], i, h, lane, one, scratch);
    store_rows(in, i, readable[i], one, scratch, *out[i]);
  }
}

}  // namespace kvsim
