// Statistics of recordings as stats.csv and stats.h5: tidy tables, one row per figure of a query head.
#pragma once

#include <string>
#include <vector>

#include "sim/trace_statistics.h"

namespace kvsim {

/// The statistics of one trace.
struct TraceStatistics {
  std::string path, model;
  std::uint32_t group = 1;  // query heads per KV head
  std::uint64_t prompt_len = 0, decode_len = 0;
  std::vector<StatisticRow> rows;
};

/// Writes both files into `folder` (made when needed); they appear complete or not at all. Throws UserError
/// on a full disk or a folder that cannot be written.
void write_statistics(const std::string& folder, const std::vector<TraceStatistics>& traces,
                      std::uint32_t top);

}  // namespace kvsim
