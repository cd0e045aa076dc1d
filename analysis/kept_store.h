// kept.h5: which positions every variant kept.
#pragma once

#include <string>

#include "analysis/part_set.h"
#include "traces/h5/file.h"

namespace kvsim {

/// True when any part holds kept sets.
bool has_kept_sets(const PartSet& parts);

/// Writes /cells/{trace,variant,budget_tokens} and /kept/<cell>/<layer>/{indices,offsets}; cells in the order
/// trace, variant, budget.
void write_kept_sets(h5::File& file, const PartSet& parts);

/// Writes /detail/cell/* and /detail/<metric> [cell, step] in row order where the parts hold per-step values;
/// a shorter trace's steps end in NaN.
void write_step_details(h5::File& file, const PartSet& parts);

/// Writes /trace_detail/cell/* and /trace_detail/<metric> [cell, step] where the parts hold per-step values
/// and metrics of whole traces are chosen; cells in the order trace, variant, budget.
void write_trace_details(h5::File& file, const PartSet& parts);

}  // namespace kvsim
