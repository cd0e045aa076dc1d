// What queries of recorded prompts look like on average: filters and statistics for policies that take them
// from a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace kvsim {

/// Gathered over the prompts of several traces of one model; first dimension = recorded layers, in their
/// order.
struct QueryLibrary {
  std::uint64_t layers = 0, query_heads = 0, kv_heads = 0, channels = 0;
  std::uint32_t sinks = 0;        // first tokens left out of mean and covariance
  std::vector<float> filters;     // [layers, KV heads, channels]: Q-Filters, see QueryFilter
  std::vector<float> mean;        // [layers, query heads, channels], before the rotary embedding
  std::vector<float> covariance;  // [layers, query heads, channels, channels], divisor n - 1
};

/// Reads the traces head by head; `progress` is called after every head. Throws UserError where a trace lacks
/// prompt queries, or its model has another shape or other recorded layers than the first one's.
QueryLibrary gather_queries(const std::vector<std::string>& traces, std::uint32_t sinks,
                            const std::function<void()>& progress);

}  // namespace kvsim
