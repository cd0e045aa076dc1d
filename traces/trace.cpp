// Derived figures of traces in memory.
#include "traces/trace.h"

namespace kvsim {

std::size_t LayerInfo::prompt_queries(std::size_t prompt) const {
  std::size_t first_decode = 0;
  while (first_decode < query_position.size() && query_position[first_decode] < prompt) ++first_decode;
  std::size_t count = 0;
  while (count < first_decode && query_position[first_decode - 1 - count] + count + 1 == prompt) ++count;
  return count;
}

std::uint64_t HeadBlock::bytes() const {
  std::uint64_t total = key.bytes() + value.bytes() + query.bytes() + query_mean.bytes() +
                        query_covariance.bytes() + output_proj.bytes() + sensitivity.bytes();
  for (const auto* tables : {&attention_stats, &second_pass, &lookahead_query}) {
    for (const auto& [name, table] : *tables) total += table.bytes();
  }
  return total;
}

}  // namespace kvsim
