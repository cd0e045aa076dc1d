// Checks of first passes (lookahead) and of the second pass over the prompt.
#pragma once

#include "traces/check.h"
#include "traces/h5/file.h"
#include "traces/trace_reader.h"

namespace kvsim {

/// Statistics of a second pass are means or maxima of attention: never negative, and without weights at most
/// 1. Findings go to `report`.
void check_second_pass(const h5::File& file, const TraceInfo& info, const LayerInfo& layer,
                       CheckReport& report);

/// Where the first pseudo token is the first decoded token too, its query in the model's first layer has seen
/// no attention yet, so it must be that of the first decode step.
void check_lookahead(const h5::File& file, const TraceReader& reader, CheckReport& report);

}  // namespace kvsim
