// Part files: the finished results of one unit, on their own, so that a run can be killed, resumed, sharded
// and merged.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "analysis/run_record.h"
#include "kernels/error.h"
#include "sim/results.h"

namespace kvsim {

/// One (variant, budget) of a unit, as indices into the description (budgets of the unit's trace).
struct CellId {
  std::uint32_t variant = 0, budget = 0;
  friend auto operator<=>(const CellId&, const CellId&) = default;
};

/// DIR/parts/<trace>-<layer:03d>-<batch>.h5
std::string part_path(const std::string& folder, const TraceEntry& trace, std::uint32_t layer,
                      const std::string& batch);

/// Stores everything of a unit, doubles to the last bit, under a temporary name that is forced to disk and
/// renamed. `batch` names what was computed (a hash over variants, budgets, metrics, seed). Makes the folder.
/// Throws UserError when it cannot be stored, e.g. on a full disk; no partial file stays and other parts are
/// untouched.
void write_part(const std::string& folder, const UnitResult& result, const RunDescription& description,
                const std::string& batch);

/// A part of another format version, trace, recording or choice of metrics.
class ForeignPart : public UserError {
 public:
  using UserError::UserError;
};

/// One file of DIR/parts.
struct PartInfo {
  enum class State : std::uint8_t {
    valid,
    damaged,  // cannot be opened or read, or its checksum is wrong
    foreign,  // see ForeignPart
  };
  State state = State::valid;
  std::string path;
  std::string problem;  // one line, when not valid
  UnitId unit;
  std::string batch;
  std::string instruction_path;
  std::uint64_t checksum = 0;  // of the results, timings left out: equal checksums mean equal results
  std::size_t rows = 0, layer_rows = 0;  // of cells that the description holds
  std::vector<CellId>
      cells;  // that it answers, ascending; those that the description does not hold are left out
};

/// Opens and verifies every part in DIR/parts, sorted by unit and batch; temporary files and the run's own
/// record are passed over. With a batch only parts of that batch. A folder that does not exist holds no
/// parts.
std::vector<PartInfo> list_parts(const std::string& folder, const RunDescription& description,
                                 const std::string& batch = {});

/// Everything in one part, with indices of `description` (cells that it does not hold are dropped). Throws
/// UserError when the part is damaged or foreign.
UnitResult read_part(const std::string& path, const RunDescription& description);

/// What is still to do: units of the record with the cells that no valid part answers. Refused variants are
/// not expected.
std::map<UnitId, std::vector<CellId>> missing_cells(const RunRecord& record, std::span<const PartInfo> parts);

/// Distributions of some cells as they are stored (packed_distribution.h): cell i has bytes[begin[i] ..
/// begin[i + 1]), one metric after the other.
struct PackedCells {
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint64_t> begin;
};

/// Reads a part piece by piece, for merging more than fits in memory.
class PartReader {
 public:
  /// The description must outlive the reader. Throws UserError when the part is damaged or foreign.
  PartReader(const std::string& path, const RunDescription& description);
  PartReader(PartReader&&) noexcept;
  ~PartReader();

  /// The first call reads which cells there are, and throws UserError when that makes no sense.
  const PartInfo& info() const;
  /// Reads all results once. Throws UserError when the checksum is wrong.
  void verify() const;
  std::vector<ResultRow> rows() const;
  std::vector<LayerRow> layer_rows() const;
  std::vector<Failure> failures() const;
  /// Those of the cells `wanted`, ascending.
  std::vector<LayerEffect> effects(std::span<const CellId> wanted) const;
  /// Which cells have distributions, in the file's order; distributions(first, count) reads a range of them.
  std::vector<CellId> distribution_cells() const;
  std::vector<CellDistributions> distributions(std::size_t first, std::size_t count) const;
  PackedCells packed_distributions(std::size_t first, std::size_t count) const;
  /// Kept sets without their positions, and with them one by one.
  std::vector<CellId> kept_cells() const;
  std::vector<KeptSet> kept() const;
  std::vector<StepDetail> detail() const;
  std::vector<std::pair<std::string, double>> perf() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// An index of a cell, row or set that the description does not hold.
inline constexpr std::uint32_t kNotInRun = 0xFFFFFFFFu;

}  // namespace kvsim
