// Attention recordings as request streams: the blocks that every decode step needs, per layer and KV head.
#pragma once

#include <cstdint>
#include <vector>

#include "sim/pages/page_stream.h"
#include "traces/trace.h"

namespace kvsim {

struct AttentionStreamOptions {
  std::uint32_t block = 16;  // tokens per page
  double mass = 0.9;  // a step needs the smallest set of blocks with this share of a query head's attention
  std::uint32_t top_k = 0;          // instead: each query head's k heaviest blocks; 0 = by mass
  std::uint32_t sink_blocks = 1;    // first blocks that are always resident
  std::uint32_t recent_blocks = 1;  // newest blocks that are always resident, the one being written included
};

/// The stream of one (layer, KV head) and what its output error needs.
struct AttentionStream {
  PageStream stream;  // Grouping::sets; sets are unions over the group's query heads; may be moved away
  std::uint64_t pinned = 0;  // sink and recent blocks
  // For every page number (requested pages first, then blocks that no step needed): its block.
  std::vector<std::uint32_t> block_of;
  std::vector<Page> page_of;  // of every block; kNoPage for sink blocks
  AttentionStreamOptions options;
  std::uint64_t prompt = 0, steps = 0;
  std::size_t group = 1;
  Matrix<float> weights;  // [tokens, group * steps] exact attention, kept when asked for
  Matrix<float> value;    // [tokens, dv], likewise
};

/// `head` must hold the queries of the last `prompt_queries` prompt positions and all decode steps;
/// `lookahead` is empty or the pseudo queries of a lookahead, [group * n, d], query head major, at positions
/// T, T+1, ... over the prompt's keys. `with_outputs` keeps weights and values. The attention mass of pages
/// (PageStream::mass) has one row per prompt query, then one per step; PageStream::lookahead one per pseudo
/// query.
AttentionStream attention_stream(const TraceInfo& info, const HeadBlock& head, std::size_t prompt_queries,
                                 MatrixView<const float> lookahead, bool with_outputs,
                                 const AttentionStreamOptions& options);

/// What the same policy does to the outputs when it evicts for good: it starts with the prompt's blocks
/// loaded in order, sees the steps' requests for what it still holds, and nothing ever comes back. Mean over
/// steps and query heads of |o' - o| / |o| (metrics.md, output_error), o' renormalised over what is held.
double output_error_without_recall(const AttentionStream& recording, const PageStream& stream,
                                   const PagePolicy& policy, std::uint64_t slots, std::uint64_t seed);

}  // namespace kvsim
