// Joining part files into the results of a run: results.h5, results.csv, layers.csv, summary.csv, kept.h5.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "analysis/part_set.h"
#include "analysis/run_record.h"
#include "sim/results.h"

namespace kvsim {

struct MergeOptions {
  bool allow_mixed = false;  // parts of different instruction paths may stand in one file
  bool partial = false;      // missing units are left out instead of being an error
};

/// What a merge did.
struct MergeOutcome {
  std::size_t units = 0, parts = 0, rows = 0, failures = 0;
  std::vector<std::string> missing;   // "essay layer 5: 48 of 96 cells", also of a merge that threw nothing
  std::vector<std::string> problems;  // parts that do not count, one line each
  bool kept = false;                  // kept.h5 was written
};

/// Joins the parts of the run folders into `out` (made when needed; may be one of the folders). All folders
/// must hold the same run: their records may differ in machine, paths and shard only. Rows come out in the
/// order of analysis/SCHEMA.md whatever the order in which parts were made, so /rows and the CSV files are
/// equal byte for byte. The files appear together at the end or not at all. Throws UserError for records that
/// differ, two parts that answer the same cell differently, parts of several instruction paths, missing cells
/// (listing them), and a full disk.
MergeOutcome merge_results(const std::vector<std::string>& folders, const std::string& out,
                           const MergeOptions& options = {});
/// The same where the parts of `folders` are known already.
MergeOutcome merge_results(const PartSet& parts, const std::vector<std::string>& folders,
                           const std::string& out, const MergeOptions& options = {});

/// What a merge of these folders would miss; writes nothing.
MergeOutcome inspect_run(const std::vector<std::string>& folders);

}  // namespace kvsim
