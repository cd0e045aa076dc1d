// The report on recorded first passes as files: what each pass cost and guessed, and how alike queries are to
// the true ones.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sim/query_alignment.h"

namespace kvsim {

/// One recorded first pass of one trace.
struct PassReport {
  std::string name, method;
  std::uint32_t capacity = 0, window = 0, pseudo_tokens = 0;
  bool stopped_at_eos = false;
  GuessedTokens guessed;
  std::uint64_t steps = 0;        // forward passes
  std::uint64_t cache_bytes = 0;  // the pass's own cache at its largest, over all layers; 0 = not recorded
  std::uint64_t full_bytes = 0;   // the whole prompt's cache, which stays beside it until the pass is done
};

/// One trace.
struct LookaheadReport {
  std::string trace;
  std::vector<PassReport> passes;
  std::vector<std::string> stand_ins;  // names that alignment counts
  std::vector<QueryAlignment> alignment;
};

/// Writes passes.csv, alignment.csv and lookahead.h5 with both tables (analysis/SCHEMA.md) into `folder`,
/// made when needed; they appear complete or not at all.
void write_lookahead_report(const std::string& folder, const std::vector<LookaheadReport>& reports);

}  // namespace kvsim
