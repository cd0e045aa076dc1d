// The part of a check that compares recorded with recomputed attention.
#pragma once

#include "traces/check.h"
#include "traces/trace_reader.h"

namespace kvsim {

/// Largest deviation of a recorded probability that a trace of this element type may show: rounding of the
/// model's own logits and probabilities, about 2^-8 (bfloat16) or 2^-11 (float16) of logits of a few tens.
double attention_tolerance(DType type);
/// Largest deviation of a row's sum from 1.
double row_sum_tolerance(DType type);

/// Compares the recorded attention of one layer, if there is any; adds findings and notes.
void check_attention(const TraceReader& reader, std::size_t layer_ordinal, CheckReport& report);

}  // namespace kvsim
