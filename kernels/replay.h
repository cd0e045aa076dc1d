// The replay kernels: exact attention of recorded queries, ranks, and one-pass budget curves.
//
// Layout. Everything that belongs to query rows is stored token-major ("rows in the lanes"): weights[token][row], with the
// rows of one KV head side by side (query head major: row = head_in_group * steps + step) and the row stride a multiple
// of kRowPad. Vector code runs across rows, sums run along tokens and channels one after the other with fused
// multiply-adds, so every result is the same to the last bit for any vector width, tile and thread count.
//
// Every function works on a tile of rows [row_begin, row_end), row_begin a multiple of kRowPad, so that callers spread
// tiles over threads as they like. None throws for numbers; sizes are checked with KVSIM_CHECK.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/view.h"

namespace kvsim {

/// Row strides and tile starts are multiples of this many floats (one AVX-512 register).
inline constexpr std::size_t kRowPad = 16;
/// The register tile of the curve kernel; tiles of a multiple of this many rows waste nothing.
inline constexpr std::size_t kRowTile = 48;

/// How a logit becomes of q.k: `scale * q.k`, soft-capped to `softcap * tanh(logit / softcap)` when softcap > 0; a query
/// at p sees keys p - window + 1 .. p, or all keys up to p when window is 0.
struct LogitRule {
  double scale = 1.0;
  double softcap = 0.0;
  std::uint32_t window = 0;
};

/// Exact softmax attention of the rows of a tile over keys 0 .. keys.rows - 1.
///   keys      [tokens, d], float
///   queries   [rows, d], float, row-major
///   position  [rows], where each query stands; keys behind it, or out of its window, get weight 0
///   weights   [tokens, >= rows] token-major; columns row_begin .. round_up(row_end, kRowPad) are written (padding rows: 0)
/// Dot products accumulate in double, so that the weights carry float rounding only (relative error below 1e-6).
void attention_weights(MatrixView<const float> keys, MatrixView<const float> queries,
                       std::span<const TokenIndex> position, const LogitRule& rule, std::size_t row_begin,
                       std::size_t row_end, MatrixView<float> weights);

/// out[c][row] = sum over tokens first .. last-1, in order, of weights[token][row] * values[token][c], rows of the tile;
/// weight_sum[row] = the same sum of the weights (may be empty). `out` is [value_dim, row stride].
void attention_outputs(MatrixView<const float> weights, MatrixView<const float> values, std::size_t first,
                       std::size_t last, std::size_t row_begin, std::size_t row_end, MatrixView<float> out,
                       std::span<float> weight_sum);

/// sum[token] = sum over rows row_begin .. row_end-1 of weights[token][row], in double, in a fixed order that depends
/// only on (row_begin, row_end). No alignment needed.
void column_sums(MatrixView<const float> weights, std::size_t row_begin, std::size_t row_end, std::span<double> sum);

/// The needed sets N(c): the smallest set of visible tokens that holds the fraction c of a row's attention.
inline constexpr std::array<double, 3> kMassFractions{0.5, 0.9, 0.99};

/// Ranks of one tile. Rank = uint16_t (up to 65534 prompt tokens) or uint32_t.
template <typename Rank>
struct RankOutput {
  MatrixView<Rank> ranks;  // [prompt tokens, row stride], the stride a multiple of kRowPad: place of the token among the row's visible prompt tokens by
                           // weight (0 = largest, ties to the earlier position); the largest Rank where it is not visible
  // Per fraction of kMassFractions, [row stride] each:
  std::array<std::span<std::uint32_t>, kMassFractions.size()> needed_total;   // |N(c)| over all visible tokens
  std::array<std::span<std::uint32_t>, kMassFractions.size()> needed_prompt;  // how many of them are prompt tokens:
                                                                              // exactly those of rank < this number
};
/// Orders every row of the tile. `weights` covers prompt and decode tokens [tokens, row stride], none of them negative;
/// visibility follows from position and window, and what a row does not see must weigh 0, as attention_weights leaves it.
template <typename Rank>
void rank_rows(MatrixView<const float> weights, std::size_t prompt, std::span<const TokenIndex> position,
               std::uint32_t window, std::size_t row_begin, std::size_t row_end, const RankOutput<Rank>& out);

/// What one pass over a ranking reads.
struct CurveInput {
  MatrixView<const float> weights;        // [prompt tokens, row stride], exact weights (softmax over all visible keys)
  MatrixView<const float> values;         // [prompt tokens, value_dim]
  std::span<const TokenIndex> order;      // the ranking, best first
  std::span<const std::uint32_t> counts;  // ascending (repeats allowed): after so many tokens a snapshot is taken
  MatrixView<const float> tail_output;    // [value_dim, row stride]: weighted values of the tokens that are always held
  std::span<const float> tail_weight;     // [row stride]: their weight
  MatrixView<const float> exact;          // [value_dim, row stride]: exact outputs
};
/// What it writes, rows counted from row_begin.
struct CurveOutput {
  MatrixView<float> error;   // [counts, tile rows]: |o' - o| / |o|, o' renormalised over what is held; o = 0: |o'|
  MatrixView<float> recall;  // [counts, tile rows]: weight held, tail included
  float* delta = nullptr;    // optional [counts][value_dim][row stride of `exact`]: o' - o at absolute rows (for projected
                             // errors); without meaning where the error is NaN
  std::size_t delta_stride = 0;  // elements between counts
};
/// The whole budget curve of one ranking for a tile of rows in one pass: numerators and denominators accumulate in rank
/// order and are compared with the exact output at every snapshot (the inclusion property of stack algorithms, Mattson
/// et al., 1970). Bits do not depend on which other counts are asked for. A row whose recall at a snapshot is below
/// kRecallFloor has error NaN there: the caller recomputes it with subset_output.
/// Cost 2 * rows * counts.back() * value_dim flops plus counts * rows * value_dim * 4. Calls with 192 rows (four register
/// tiles share one packing of the values) or a multiple are fastest, and weights in memory with huge pages.
void curve_pass(const CurveInput& in, std::size_t row_begin, std::size_t row_end, const CurveOutput& out);

/// Below this kept mass the shared softmax has too few bits left; the cell is recomputed with its own maximum.
inline constexpr float kRecallFloor = 1e-18f;

/// Exact output of one query over the held tokens alone, in double with its own maximum (the slow path of curve_pass).
void subset_output(MatrixView<const float> keys, MatrixView<const float> values, std::span<const float> query,
                   const LogitRule& rule, std::span<const TokenIndex> held, std::span<double> output);

/// The curve where every row has its own order (its own ranks): error and recall as in curve_pass.
template <typename Rank>
void own_order_curve(const CurveInput& in, MatrixView<const Rank> ranks, std::size_t row_begin, std::size_t row_end,
                     const CurveOutput& out);

/// One set of limits to count against, and where its counts go.
struct OverlapQuery {
  MatrixView<const std::uint32_t> limits;  // 1 row (the same limit at every snapshot) or one per snapshot; [.., row stride]
  MatrixView<std::uint32_t> overlap;       // [counts, tile rows], rows counted from row_begin
};
/// overlap[s][row] = how many of order[0 .. counts[s]) have rank < limit(s, row), for every query in one reading of the
/// ranks. A query with one limit costs one compare per element, however many counts; with a limit per snapshot sum(counts)
/// / counts.back() compares, or a histogram where limits rise and that is cheaper.
template <typename Rank>
void overlap_counts(MatrixView<const Rank> ranks, std::span<const TokenIndex> order,
                    std::span<const std::uint32_t> counts, std::span<const OverlapQuery> queries,
                    std::size_t row_begin, std::size_t row_end);

/// The same for one query.
template <typename Rank>
void overlap_counts(MatrixView<const Rank> ranks, std::span<const TokenIndex> order,
                    std::span<const std::uint32_t> counts, MatrixView<const std::uint32_t> limits,
                    std::size_t row_begin, std::size_t row_end, MatrixView<std::uint32_t> overlap) {
  const OverlapQuery query{limits, overlap};
  overlap_counts(ranks, order, counts, std::span(&query, 1), row_begin, row_end);
}

/// out[c][step] += sum over k of a[k][step] * b[k][c]: product of two matrices stored along k, fixed order.
/// a [k, >= steps] with stride a multiple of kRowPad, b [k, cols], out [cols, stride multiple of kRowPad].
void accumulate_product(MatrixView<const float> a, MatrixView<const float> b, MatrixView<float> out);

/// Name of the instruction set that the kernels run on here, e.g. "AVX3_ZEN4" or "AVX2".
std::string_view instruction_path();

}  // namespace kvsim
