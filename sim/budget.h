// Budgets as a person writes them: tokens, percent of the prompt, ranges, or a whole curve.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/results.h"

namespace kvsim {

/// One asked-for budget: `value` tokens, or `value` percent of the prompt.
struct BudgetRequest {
  std::string text;
  double value = 0;
  bool percent = false;
};

/// What --budget holds: single budgets and, with `curve`, 200 log-spaced points per trace.
struct BudgetList {
  std::vector<BudgetRequest> requests;  // as written, doubles removed
  bool curve = false;
};

inline constexpr std::size_t kCurvePoints = 200;

/// Parses "64..4096*2,5%,10%", "curve", "128,256..1024+256". Throws UserError for zero, negative, NaN, fractions of
/// tokens, more than 100%, and empty lists.
BudgetList parse_budgets(const std::vector<std::string>& texts);

/// The points of one trace, ascending in tokens (equal ones in the order asked for). Percent r of a prompt of T tokens is
/// max(1, floor(r/100 * T)) tokens (metrics.md, "Budgets").
std::vector<BudgetPoint> budget_points(const BudgetList& list, std::uint64_t prompt);

}  // namespace kvsim
