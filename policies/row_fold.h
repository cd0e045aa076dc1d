// From the attention of several queries to one number per token: base quantities and reductions over queries
// (reference, section 7.1, C2 to C4).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "policies/query_part.h"

namespace kvsim {

/// What a (query, key) pair contributes.
enum class Pair : std::uint8_t {
  attention,  // a: softmax over all that the query sees
  logit,      // s: scaled dot product, before any soft-capping; keys that the query does not see are left out
  above,      // 1 where a >= 1/t, t = keys that the query sees: more than its fair share
  below       // 1 where a < 1/t
};

/// How the queries become one number.
enum class Fold : std::uint8_t {
  mean,
  sum,
  meanvar,  // mean + gamma * unbiased variance (CAKE)
  last,     // the newest row
  largest,
  squares,   // sum of squares
  variance,  // unbiased
  count,     // sum of an indicator
  visible    // sum over the queries divided by how many of them see the key; query=all only
};

/// Everything that the row of a query head is made of before pooling: the key under which it is shared.
struct RowFold {
  QueryParts query;
  std::string pass;  // of the pseudo queries among them
  Pair pair = Pair::attention;
  Fold fold = Fold::mean;
  double gamma = 0;        // of meanvar
  bool logit_max = false;  // maximum of the logits over the group before anything else; one row for all heads
  bool softmax = false;    // softmax again, over the tokens older than the newest `older` ones
  std::uint32_t older = 0;
};

/// What it reads.
Need fold_needs(const RowFold& fold);
/// Whether it asks for single rows of its queries: not where their mean, or a sum over the whole prompt, is
/// all it takes.
bool fold_reads_rows(const RowFold& fold);

/// The folded row of a query head of the group, [T], computed once for all variants.
std::span<const float> folded_row(const HeadFeatures& head, const RowFold& fold, std::size_t query_head);

/// Logits of a set of rows, token-major [T, rows], computed once: scaled, not soft-capped, -infinity where
/// the row does not see the key.
std::span<const float> shared_logits(const HeadFeatures& head, const QueryRows& rows, std::size_t query_head);

}  // namespace kvsim
