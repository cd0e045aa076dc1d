// What a ranking policy keeps in one layer: an order per unit and a count per budget.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "policies/policy.h"
#include "policies/stepwise/stepwise_policy.h"
#include "sim/results.h"

namespace kvsim {

/// A policy with its parameters, as one line of a sweep.
struct Variant {
  std::unique_ptr<Policy> policy;            // a prompt-time policy, or
  std::unique_ptr<StepwisePolicy> stepwise;  // a decode-time one: one of the two
  VariantEntry entry;
};

/// One unit's kept sets: at budget i the first counts[i] tokens of order. An allocator may take a token back from one
/// unit when the budget grows, so counts need not ascend; kernels want them ascending: counts[i] = ascending[place[i]].
struct UnitSelection {
  std::vector<TokenIndex> order;          // [T]
  std::vector<std::uint32_t> counts;      // [budgets]
  std::vector<std::uint32_t> ascending;   // [budgets]
  std::vector<std::size_t> place;         // [budgets]
  std::vector<std::int64_t> near_ties;  // [budgets]
  std::size_t protected_count = 0;    // leading tokens of order that the policy protects

  /// Fills ascending and place from counts.
  void sort_counts();
  bool in_order() const { return counts == ascending; }
};

/// Kept sets of one layer at those budgets of a run that cut the same orders; units as in LayerScores.
struct LayerSelection {
  Unit unit = Unit::kv;
  std::vector<UnitSelection> units;                // their counts are those of `budgets`
  std::vector<std::vector<TokenIndex>> hindsight;  // [units][T] for windowed policies, else empty
  std::vector<std::size_t> budgets;                // places in the run's list of budgets, ascending

  /// The unit that query head `head` of KV head `kv` reads.
  const UnitSelection& of(std::size_t kv, std::size_t head, std::size_t group) const {
    return units[unit_index(kv, head, group)];
  }
  std::size_t unit_index(std::size_t kv, std::size_t head, std::size_t group) const {
    return unit == Unit::query ? kv * group + head : kv;
  }
};

/// One variant's kept sets in one layer: one part where a single order serves every budget, else one part for every run
/// of budgets that share their orders.
struct Selection {
  std::vector<LayerSelection> parts;
  std::vector<double> stop_signal;  // [budgets of the run] for policies with one (StopSignal), else empty
  LayerRanking ranking;             // the scores and their orders, from which the parts were cut

  struct Place {
    const LayerSelection& part;
    std::size_t budget;  // inside the part
  };
  Place at(std::size_t budget) const;
  Unit unit() const { return parts.front().unit; }
};

/// What is ranked and cut.
struct SelectionInput {
  LayerScores scores;
  LayerScores hindsight;  // of the same policy given the true decode queries; without units where that is undefined
  std::span<const std::vector<float>> summaries;  // LayerRanking::summaries
};

/// Two scores closer than this share of the larger one count as a near tie: another instruction path or device may order
/// them the other way round.
inline constexpr float kNearTie = 1e-6f;

/// Sorts and allocates. Budgets ascending; counts are checked to be monotone where the policy claims to be nested. An order
/// of a budget that does not begin with the protected tokens protects nothing there, and near ties are counted only where
/// the order is that of the scores.
Selection select_layer(const Policy& policy, const LayerGeometry& layer, SelectionInput input,
                       std::span<const BudgetPoint> budgets);

/// The kept positions of one budget, ascending inside each unit.
KeptSet kept_set(const Selection& selection, std::uint32_t variant, std::uint32_t budget);

const char* unit_name(Unit unit);

}  // namespace kvsim
