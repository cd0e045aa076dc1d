// The statistics that let accumulated-attention and expected-attention policies run on windowed recordings.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "traces/synth_head.h"
#include "traces/trace_writer.h"

namespace kvsim::synth {

/// Progress units of one query head's statistics.
std::uint64_t stats_work(std::uint64_t prompt);

/// Writes attention_stats/{sum,sum_sq,sum_over_count} of the full causal prompt attention, computed from the
/// tensors as they are stored, and query_stats/{mean,covariance} of the prompt queries before the rotary
/// embedding, without the first `sinks` tokens (attribute), covariance divided by their number. Cost: layers
/// * query heads * prompt^2 * head_dim.
void write_stats(const World& world, const std::vector<Head>& heads, std::uint32_t layer,
                 std::uint32_t window, int threads, TraceWriter& writer,
                 const std::function<void(std::uint64_t)>& progress);

}  // namespace kvsim::synth
