// Replays the decode-time policies of one unit, a layer of a trace: prefill, then step by step, all variants and capacities.
#pragma once

#include "policies/stepwise/stepwise_policy.h"
#include "sim/unit.h"

namespace kvsim {

/// Inputs beside the tensors of the heads, owned; only what some variant declares is filled.
struct StepwiseInputs {
  std::vector<std::string> token_text;
  std::vector<std::int32_t> token_id;
  Matrix<float> final_hidden, hidden;
  std::vector<Matrix<float>> retention;
};

/// How a unit is cut to fit into memory. All heads of the layer are held; results do not depend on the chunk.
struct StepwiseMemory {
  std::size_t step_chunk = 0;  // decode steps whose exact attention is held at once; a multiple of kStepBlock, or all
  std::uint64_t bytes = 0;     // estimated peak
};

/// Why `policy` cannot run on this layer, with the kvsim-record option that would help; empty when it can.
std::string missing_step_need(const StepwisePolicy& policy, const TraceInfo& trace, const LayerInfo& layer);

/// Union of what the variants read of every head. All have `stepwise`.
BlockRequest stepwise_block_request(std::span<const Variant* const> variants, const TraceInfo& trace, const LayerInfo& layer,
                                    std::span<const std::string> metrics);

/// Throws UserError with the number needed when nothing fits into `limit` bytes.
StepwiseMemory plan_stepwise_memory(const LayerContext& layer, const BlockRequest& request, std::span<const Variant* const> variants,
                                    std::size_t budgets, std::size_t hidden, int threads, std::uint64_t limit);

/// Runs the unit. settings.variants all have `stepwise`; settings.memory.step_chunk is the chunk. The source hands out every
/// head once. A variant that throws UserError becomes a failure and the others go on (unless fail_fast).
UnitResult replay_stepwise_unit(const LayerContext& layer, const UnitSettings& settings, const StepwiseInputs& inputs, BlockSource& source);

}  // namespace kvsim
