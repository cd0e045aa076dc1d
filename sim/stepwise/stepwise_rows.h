// Turns what was measured of decode-time policies into result rows.
#pragma once

#include "sim/stepwise/prefill.h"

namespace kvsim {

/// Adds a chunk's step values of one cell on one KV head: step block by step block, query head, step, as HeadMeasure wants.
void add_rows(const CellRows& rows, StepRange steps, std::size_t group, std::size_t budget, HeadMeasure& measure);

struct EmitSettings {
  const LayerContext& layer;
  const UnitSettings& settings;
  std::span<const double> exact_squares;  // [steps]; empty where no metric of a layer is measured
  bool relative = false;                  // errors are seen against the residual stream
};

/// Rows, distributions, kept sets and step details of one variant, all budgets.
void emit_variant(const EmitSettings& how, std::size_t number, StepwiseVariant& variant, std::vector<HeadMeasure>& measures, UnitResult& result);

}  // namespace kvsim
