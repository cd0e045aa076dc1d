// The parts that scores are made of, and their application in a given order; named policies are presets of
// them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policies/policy.h"
#include "policies/query_part.h"
#include "policies/redundancy.h"
#include "policies/row_fold.h"
#include "policies/value_weight.h"

namespace kvsim {

/// What a token is scored by (reference, section 7.1, C2).
enum class Base : std::uint8_t {
  attention,
  logit,
  above,
  below,  // as Pair
  obd_joint,
  obd_value,
  obd_key,
  obd_no_cross,  // loss of the output when key, value or both are pruned (OBCache); summed over the queries
  position,
  knorm,
  keydiff
};
constexpr bool reads_pairs(Base base) { return base <= Base::below; }
constexpr bool reads_outputs(Base base) { return base > Base::below && base < Base::position; }
constexpr bool reads_queries(Base base) { return base < Base::position; }
/// How the query heads of a group become one score (C5).
enum class Group : std::uint8_t { mean, max, sum, first, logit_max };

inline constexpr std::array<std::string_view, 4> kGroupChoices{"mean", "max", "sum", "first"};
inline constexpr std::array<std::string_view, 2> kPoolChoices{"avg", "max"};
inline constexpr std::array<std::string_view, 2> kUnitChoices{"kv", "query"};

/// One step of the ordered list that turns queries into a score (C3 to C7, C9). First what changes single
/// (query, key) pairs, then exactly one step over the queries, then any steps on what is one number per token
/// and query head.
struct Reducer {
  enum class Kind : std::uint8_t {
    softmax,  // pairs: softmax over the tokens older than the protected recent ones, or over all
    fold,     // over the queries
    avg,      // pooling over positions: stride 1, zero padding, divisor always `width`
    max,      // pooling over positions: stride 1
    group,    // joins the query heads of the group; logit_max joins pairs
    value,    // weighs by the values here rather than at the end
    sum1,     // divides by the sum over the tokens
    minus     // the other way round: what is counted speaks against the token
  };
  Kind kind = Kind::fold;
  Fold fold = Fold::mean;
  double gamma = 200;       // of Fold::meanvar
  std::uint32_t width = 1;  // of a pooling, odd
  Group group = Group::mean;
  bool older = false;  // of softmax
  ValuePart value = {};
};

inline Reducer fold_step(Fold fold) { return {.kind = Reducer::Kind::fold, .fold = fold}; }
inline Reducer pool_step(bool average, std::uint32_t width) {
  return {.kind = average ? Reducer::Kind::avg : Reducer::Kind::max, .width = width};
}
inline Reducer group_step(Group group) { return {.kind = Reducer::Kind::group, .group = group}; }

/// Everything that a score without side conditions is made of.
struct Recipe {
  QueryParts query;
  Base base = Base::position;
  std::vector<Reducer>
      reduce;       // in this order; joins of the group are left out where the unit is a query head
  ValuePart value;  // after all of them
  std::optional<RedundancyPart> redundancy;  // last of all
  std::uint32_t sinks = 0;
  std::uint32_t recent = 0;
  std::vector<TokenIndex> forced;  // further tokens that are always kept, where the prompt has them
  Unit unit = Unit::kv;

  Need needs() const;
  std::uint32_t window() const { return query_window(query); }
  /// Whether the score takes more than means of a window's attention: see reads_rows.
  bool reads_rows() const;
  /// Whether every budget may have an order of its own: pseudo queries of several first passes.
  bool by_budget() const;
  /// Throws UserError, naming `policy`, where the parts make no sense together (reference, section 7.6).
  void check_parts(std::string_view policy) const;
  /// Throws UserError, naming `policy`, where such a layer cannot be scored.
  void check(std::string_view policy, const LayerGeometry& layer) const { check_query(policy, query, layer); }
  /// Fills `out` as Policy::score does. The last `recent` tokens are cut off before any pooling, as kvpress
  /// does, and left to lift_protected. With by_budget(), the scores of all passes that a budget of the run
  /// takes stand in UnitScores::extra, ascending in capacity, and the first of them in `score`.
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

/// -|k|: tokens with small keys draw attention (arXiv:2406.11430).
std::vector<double> key_norm_scores(MatrixView<const float> keys);
/// -cos(key, mean of the normalised keys): distinct keys are kept (arXiv:2504.15364).
std::vector<double> key_difference_scores(MatrixView<const float> keys);

/// A score as it is ranked.
std::vector<float> to_scores(const std::vector<double>& row);

}  // namespace kvsim
