// Making a trace of arrays that another program saved.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "traces/trace_writer.h"

namespace kvsim {

struct ConvertOptions {
  std::vector<std::string> sources;  // .npz and safetensors files; their arrays are taken together
  std::map<std::string, std::string>
      metadata;  // overrides what the files say: prompt_len, model, softmax_scale, ...
};

/// Writes a trace. Arrays are named as the trace's datasets with dots ("layers.0.key"), see traces/FORMAT.md
/// ("Converting"). Element types are kept; nothing is rounded. Throws UserError (file, array, what was found,
/// what was expected) on unknown names, missing arrays, wrong types or shapes, and on anything that a trace
/// must not be.
void convert_to_trace(const ConvertOptions& options, const std::string& target,
                      const ByteProgress& progress = {});

}  // namespace kvsim
