// Whose attention a score looks at: the query sources of compose and of the presets (reference, section 7.1,
// C1).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "policies/lookahead.h"
#include "policies/policy.h"

namespace kvsim {

/// One source of queries.
struct QueryPart {
  enum class Kind : std::uint8_t {
    all,        // every prompt query
    window,     // the last `count` prompt queries
    current,    // the last prompt query
    proxy,      // the first `first` and the last `count` prompt queries (NACL)
    lookahead,  // the first `count` pseudo queries of `pass`
    oracle      // the first `count` true decode queries: the bound of every such method
  };
  Kind kind = Kind::window;
  std::uint32_t count = 64;
  std::uint32_t first = 0;
  PassChoice pass = {};
  /// lookahead: every row sees the whole prompt (causal), or the triangle that the authors' code lays over
  /// the newest prompt columns (repo): row i of R does not see the newest R - 1 - i, windows before it
  /// included.
  bool repo_mask = false;
};

/// Sources one after the other; their rows count equally.
using QueryParts = std::vector<QueryPart>;

/// What they read, and the widest window.
Need query_needs(const QueryParts& parts);
std::uint32_t query_window(const QueryParts& parts);
/// Whether they guess the coming queries: a window, pseudo queries.
bool guesses_queries(const QueryParts& parts);
bool reads_future(const QueryParts& parts);
/// The pseudo queries among the sources; null without any.
const QueryPart* lookahead_part(const QueryParts& parts);

/// Throws UserError, naming `policy`, where the sources do not go together or do not exist in such a layer.
void check_query(std::string_view policy, const QueryParts& parts);
void check_query(std::string_view policy, const QueryParts& parts, const LayerGeometry& layer);

/// The rows of all sources, pseudo queries from `pass`. Not for QueryPart::Kind::all.
std::vector<QueryRows> query_rows(const QueryParts& parts, const std::string& pass);
/// The same as a word of a key for HeadFeatures::shared.
std::string rows_key(const QueryRows& rows);
/// First key that row `i` of `n` does not see because it stands behind it; decoded keys count for true decode
/// queries.
std::size_t visible_end(const QueryRows& rows, std::size_t i, std::size_t n, const LayerGeometry& layer);
/// How many keys the row sees.
std::size_t visible_keys(const QueryRows& rows, std::size_t i, std::size_t n, const LayerGeometry& layer);

}  // namespace kvsim
