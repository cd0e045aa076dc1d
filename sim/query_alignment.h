// How alike queries that are known at the end of the prompt are to the true decode queries: the prompt's last
// ones and the pseudo queries of recorded first passes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "policies/policy.h"
#include "sim/exact_steps.h"
#include "traces/trace.h"

namespace kvsim {

/// Queries that stand in for the true decode queries.
struct QueryStandIn {
  std::string name;  // window-32, or the name of the pass
  QueryRows rows;
};

/// The last `window` prompt queries (none for 0), and every recorded first pass.
std::vector<QueryStandIn> query_stand_ins(const TraceInfo& trace, std::uint32_t window);

/// Pairs of one stand-in and one true decode query of a query head that stand equally far apart.
struct QueryAlignment {
  std::uint32_t stand_in = 0, layer = 0,
                query_head = 0;  // place in the list; the model's own layer; of all query heads
  std::int32_t distance =
      0;  // position of the true query - position of its stand-in; 0: the same place in the text
  std::uint64_t pairs = 0;
  // Means over the pairs.
  double cosine = 0;            // as attention reads them, after the rotary embedding
  double cosine_unrotated = 0;  // the rotary embedding of both undone
  double logit_error = 0;  // |s' - s| / |s|, s = logits over the prompt keys with their mean taken out, which
                           // softmax does not see
};

/// All stand-ins of one KV head against all decode steps, by query head, stand-in, distance. Logits are taken
/// before a soft cap and, in a layer with a sliding window, over the prompt keys that the first decode step
/// sees. Double precision.
std::vector<QueryAlignment> align_queries(const LayerContext& layer, const HeadBlock& block,
                                          std::span<const QueryStandIn> stand_ins);

/// Mean of some of them, every pair with equal weight; pairs = 0 and NaN where there are none.
QueryAlignment mean_alignment(std::span<const QueryAlignment> all,
                              const std::function<bool(const QueryAlignment&)>& chosen);

/// What a first pass guessed right.
struct GuessedTokens {
  std::size_t compared = 0;  // pseudo tokens with a true token at their place
  std::size_t equal = 0;     // of these, equal to it
  std::size_t leading = 0;   // equal before the first that differs
};
GuessedTokens guessed_tokens(const TraceInfo& trace, const LookaheadInfo& pass);

}  // namespace kvsim
