// Making a smaller trace of a trace: some layers, some KV heads, the first decode steps; and joining layers
// again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "traces/trace_writer.h"

namespace kvsim {

struct CutOptions {
  std::optional<std::vector<std::uint32_t>> layers;  // the model's layer indices; nothing = all recorded ones
  std::optional<std::vector<std::uint32_t>> heads;   // KV heads; each keeps its group of query heads
  std::optional<std::uint64_t> steps;                // keep the first so many decode steps
  std::string retention_gates;  // a file of gates: retention is computed anew from the recorded hidden states
};

/// Writes the selected part as a trace of its own: tensors, positions, statistics, segments, lookaheads and
/// output projection rows are cut alike. The paths that could not be taken over (branches of a trace whose
/// steps are cut, datasets that the format does not know) are returned. Throws UserError when the source is
/// no trace, a layer, head or step is not in it, gates do not fit, or the target cannot be written.
std::vector<std::string> cut_trace(const std::string& source, const std::string& target,
                                   const CutOptions& options, const ByteProgress& progress = {});

/// Joins traces of the same tokens and geometry that hold different layers. Throws UserError when they differ
/// in more than their layers, or hold a layer twice.
void merge_traces(const std::vector<std::string>& sources, const std::string& target,
                  const ByteProgress& progress = {});

}  // namespace kvsim
