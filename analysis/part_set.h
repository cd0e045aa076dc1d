// The parts of one run, found in one or several folders, matched to its units and checked against each other.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "analysis/part_file.h"
#include "analysis/run_record.h"

namespace kvsim {

/// Valid parts by unit, without doubles. Units without parts have no entry.
struct PartSet {
  RunRecord record;
  std::map<UnitId, std::vector<PartInfo>> units;
  std::map<UnitId, std::vector<CellId>> missing;
  std::vector<std::string> problems;           // parts that do not count
  std::vector<std::string> instruction_paths;  // sorted, each once
  std::size_t parts = 0;

  /// "essay layer 5: 48 of 96 cells missing", one per unit.
  std::vector<std::string> missing_text() const;
};

/// Throws UserError when the folders hold different runs, or different results for one unit and batch.
PartSet collect_parts(const std::vector<std::string>& folders);

/// Rows of a unit from all its parts in the order KV head, variant, budget. Equal rows of two parts become
/// one, different ones for one cell are a UserError that names both parts.
std::vector<ResultRow> unit_rows(const std::vector<PartInfo>& parts, const RunDescription& description);
/// The same for layer rows (variant, budget).
std::vector<LayerRow> unit_layer_rows(const std::vector<PartInfo>& parts, const RunDescription& description);

}  // namespace kvsim
