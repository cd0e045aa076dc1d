// What a recording shows about attention over time, before any policy: similarity of consecutive queries, how
// long tokens stay important, mass on the first and the newest tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "traces/trace_reader.h"

namespace kvsim {

/// One figure of one query head, a mean over decode steps t (of queries q_t with exact attention a_t over the
/// V_t tokens that they see). A token is important to q_t when it gets its even share: a_t[i] >= 1 / V_t.
enum class TraceStatistic : std::uint8_t {
  query_similarity,    // cos(q_t, q_{t-k}), rotated as attention reads them (CORM, arXiv 2404.15949);
                       // parameter: k
  top_overlap,         // |top_b(a_t) & top_b(a_{t-k})| / b over the tokens that both see; parameter: k
  top_overlap_chance,  // what two random sets of b would share, b / tokens that both see; parameter: k
  persistence,  // share of what is important to q_t, and seen by q_{t-k}, that was important to q_{t-k}; k
  persistence_window,  // the same for any of q_{t-1} .. q_{t-k}; tokens seen by q_{t-k} (Scissorhands, arXiv
                       // 2305.17118)
  important_share,     // share of the tokens seen that are important: what `persistence` would be by chance;
                       // parameter: 0
  sink_mass,           // attention on the first n tokens; parameter: n
  recent_mass,         // attention on the newest n tokens, the query's own included; parameter: n
};
inline constexpr std::size_t kTraceStatistics = 8;
std::string_view name_of(TraceStatistic statistic);
/// In words, for tables and figures.
std::string_view meaning_of(TraceStatistic statistic);

struct StatisticsOptions {
  std::vector<std::uint32_t> lags{1, 2, 4, 8, 16, 32, 64, 128, 256};  // ascending; those below S are used
  std::uint32_t top = 64;                                             // b
  std::vector<std::uint32_t> masses{1, 4, 16, 64};                    // n, ascending
};

struct StatisticRow {
  std::uint32_t layer = 0;  // the model's own index
  std::uint32_t query_head = 0;
  TraceStatistic statistic = TraceStatistic::query_similarity;
  std::uint32_t parameter = 0;  // lag k or number of tokens n
  double mean = std::numeric_limits<double>::quiet_NaN();
  std::uint64_t count = 0;  // steps that the mean is over; 0: undefined
};

/// All rows of one layer in the order (query head, statistic, parameter). Reads the layer's keys and decode
/// queries; works in memory of (T + S) * S floats per thread beside them. The rows do not depend on the
/// number of threads. Throws UserError where the trace cannot be read and for impossible options.
std::vector<StatisticRow> layer_statistics(const TraceReader& reader, std::size_t layer_ordinal,
                                           const StatisticsOptions& options);

/// The statistics of one query head from its decode queries [S, d], the keys [T + S, d] and its exact
/// attention [tokens, >= S], token-major: column t belongs to step t. `window` 0 or the layer's sliding
/// window.
std::vector<StatisticRow> head_statistics(MatrixView<const float> queries, MatrixView<const float> attention,
                                          std::uint64_t prompt, std::uint32_t window,
                                          const StatisticsOptions& options);

}  // namespace kvsim
