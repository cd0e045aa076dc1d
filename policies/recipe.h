// The parts that scores are made of, and their application in a given order; named policies are presets of
// them.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "policies/policy.h"

namespace kvsim {

/// Whose attention is looked at (reference, section 7.1, C1).
enum class QuerySource : std::uint8_t { none, window, all };
/// What a token is scored by (C2).
enum class Base : std::uint8_t { attention, position, knorm, keydiff };
/// How the query heads of a group become one score (C5).
enum class Group : std::uint8_t { mean, max, sum, first };
/// What the score is multiplied by (C7).
enum class ValueNorm : std::uint8_t { none, l1, l2 };

inline constexpr std::array<std::string_view, 4> kGroupChoices{"mean", "max", "sum", "first"};
inline constexpr std::array<std::string_view, 2> kPoolChoices{"avg", "max"};
inline constexpr std::array<std::string_view, 2> kUnitChoices{"kv", "query"};

/// One step of the ordered list that turns attention rows into a score (C4, C6, C5).
struct Reducer {
  enum class Kind : std::uint8_t {
    mean,     // over the queries
    sum,      // over the queries
    visible,  // sum over the queries divided by how many of them see the key
    avg,      // pooling over positions: stride 1, zero padding, divisor always `width`
    max,      // pooling over positions: stride 1
    group     // joins the query heads of the group
  };
  Kind kind = Kind::mean;
  std::uint32_t width = 1;  // of a pooling, odd
  Group group = Group::mean;
};

/// Everything that a score without side conditions is made of.
struct Recipe {
  QuerySource query = QuerySource::none;
  std::uint32_t window = 0;  // of QuerySource::window
  Base base = Base::position;
  std::vector<Reducer>
      reduce;  // applied in this order; joins of the group are left out where the unit is a query head
  ValueNorm value = ValueNorm::none;
  std::uint32_t sinks = 0;
  std::uint32_t recent = 0;
  Unit unit = Unit::kv;

  Need needs() const;
  /// Fills `out` as Policy::score does. The last `recent` tokens are cut off before any pooling, as kvpress
  /// does, and left to lift_protected. Throws UserError, naming `policy`, where the prompt is not longer than
  /// the window.
  void score(const HeadFeatures& head, std::string_view policy, std::span<UnitScores> out) const;
};

/// Attention of a window of `window` queries as snapkv reduces it: mean, pooling, group.
Recipe window_recipe(std::uint32_t window, std::size_t pool, std::uint32_t kernel, std::size_t group,
                     std::size_t unit);

/// Throws UserError where a pooling kernel is even: it would shift the scores.
void check_kernel(std::string_view policy, std::uint32_t kernel);

/// Sinks in order, then the recent tokens from newest to oldest: the order in which a small budget keeps
/// them.
std::vector<TokenIndex> protected_order(std::size_t tokens, std::uint32_t sinks, std::uint32_t recent);

/// Gives protected tokens the score M + 1, M = the largest free score of the whole layer, as kvpress does. It
/// decides nothing for a plain ranking, but enters the sums of wrappers (ada, chunkkv).
void lift_protected(LayerScores& scores);

/// Replaces every unit's scores by their mean over the units, in double and in order: one order for the whole
/// layer.
void share_over_layer(LayerScores& scores);

/// Joins rows[query head][token] into one row, in double, heads in order.
std::vector<double> join_group(const std::vector<std::vector<double>>& rows, Group group);

/// Stride 1; `average` divides by `width` at the borders too (padding counts as zero), otherwise the maximum.
std::vector<double> pooled(const std::vector<double>& row, std::uint32_t width, bool average);

/// Mean over the group of the true decode queries' mean attention, [T]: what the static oracle ranks by.
std::vector<float> decode_reference(const HeadFeatures& head);

/// Norms of the rows of a matrix, in double.
std::vector<double> row_norms(MatrixView<const float> rows, ValueNorm norm);

/// -|k|: tokens with small keys draw attention (arXiv:2406.11430).
std::vector<double> key_norm_scores(MatrixView<const float> keys);
/// -cos(key, mean of the normalised keys): distinct keys are kept (arXiv:2504.15364).
std::vector<double> key_difference_scores(MatrixView<const float> keys);

/// A score as it is ranked.
std::vector<float> to_scores(const std::vector<double>& row);

}  // namespace kvsim
