// Sums over query rows that optimal-brain-damage scores are made of (arXiv:2510.07651).
#pragma once

#include <span>

#include "policies/policy.h"

namespace kvsim {

/// Over the rows r of one query head, for every token, [T] each: a = attention, s = scaled logit, o = output
/// over all that the row sees.
struct ObdSums {
  std::span<const float> weight;  // sum a
  std::span<const float> square;  // sum a^2
  std::span<const float> key;     // sum (a s)^2 |v - o|^2; empty unless outputs were asked for
  std::span<const float> cross;   // sum 2 a^2 s (|v|^2 - v.o); likewise
};

/// Over a set of query rows, e.g. a window of the last rows.count prompt queries. Needs those queries, with
/// `outputs` keys and values too. Shared by all who ask.
ObdSums obd_sums(const HeadFeatures& head, const QueryRows& rows, std::size_t query_head, bool outputs);

/// Over all prompt queries, a tile at a time: no n x n matrix. Needs all queries, with `outputs` keys and
/// values too.
ObdSums obd_sums(const HeadFeatures& head, std::size_t query_head, bool outputs);

}  // namespace kvsim
