// Reads the prompt into the caches of all cells: at once, or in blocks with an eviction after each.
#pragma once

#include <optional>
#include <vector>

#include "sim/features.h"
#include "sim/stepwise/cell.h"

namespace kvsim {

/// One variant while it is replayed.
struct StepwiseVariant {
  const StepwisePolicy* policy = nullptr;
  bool failed = false;
  std::string failure;
  std::vector<Cell> cells;  // [budgets]
};

/// Fills the cells of every variant up to the first decode step. Exact attention of prompt queries is computed once, tile by
/// tile, for all that ask for it. A UserError of a policy makes its variant fail.
void run_prefill(const CellLayer& layer, std::span<const BudgetPoint> budgets, std::vector<StepwiseVariant>& variants);

}  // namespace kvsim
