// The parts of one run, matched to its units and checked against each other.
#include "analysis/part_set.h"

#include <algorithm>
#include <bit>
#include <set>
#include <tuple>
#include <utility>

#include "kernels/error.h"

namespace kvsim {
namespace {

RunRecord common_record(const std::vector<std::string>& folders) {
  RunRecord record = read_description(folders.front());
  for (std::size_t i = 1; i < folders.size(); ++i) {
    const auto found = differences(record, read_description(folders[i]));
    if (found.empty()) continue;
    throw UserError("{} and {} hold different runs: {}{}", folders.front(), folders[i], found.front(),
                    found.size() == 1 ? "" : fmt::format(", and {} more differences", found.size() - 1));
  }
  return record;
}

void add_part(PartSet& set, PartInfo&& part) {
  if (part.state != PartInfo::State::valid) {
    set.problems.push_back(std::move(part.problem));
    return;
  }
  auto& parts = set.units[part.unit];
  const auto twin =
      std::find_if(parts.begin(), parts.end(), [&](const PartInfo& p) { return p.batch == part.batch; });
  if (twin == parts.end()) {
    ++set.parts;
    parts.push_back(std::move(part));
  } else if (twin->checksum != part.checksum) {
    throw UserError("{} and {} hold different results of the same unit; delete the wrong one", twin->path,
                    part.path);
  }
}

bool same_values(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double x, double y) {
    return std::bit_cast<std::uint64_t>(x) == std::bit_cast<std::uint64_t>(y);
  });
}
bool same_values(const ResultRow& a, const ResultRow& b) {
  return a.resident_tokens == b.resident_tokens && a.peak_tokens == b.peak_tokens && a.evicted == b.evicted &&
         a.clamped == b.clamped && a.near_ties == b.near_ties && same_values(a.values, b.values);
}
bool same_values(const LayerRow& a, const LayerRow& b) {
  return a.resident_tokens == b.resident_tokens && same_values(a.values, b.values);
}
auto key_of(const ResultRow& row) { return std::tuple(row.kv_head, row.variant, row.budget); }
auto key_of(const LayerRow& row) { return std::tuple(row.variant, row.budget); }

template <typename Row, typename Read>
std::vector<Row> joined_rows(const std::vector<PartInfo>& parts, const RunDescription& description,
                             Read read) {
  std::vector<Row> rows;
  std::string paths;
  for (const PartInfo& part : parts) {
    std::vector<Row> some = read(PartReader(part.path, description));
    rows.insert(rows.end(), std::make_move_iterator(some.begin()), std::make_move_iterator(some.end()));
    paths += (paths.empty() ? "" : ", ") + part.path;
  }
  std::stable_sort(rows.begin(), rows.end(),
                   [](const Row& a, const Row& b) { return key_of(a) < key_of(b); });
  std::size_t used = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (used > 0 && key_of(rows[used - 1]) == key_of(rows[i])) {
      if (!same_values(rows[used - 1], rows[i])) {
        throw UserError("two parts answer '{}' differently; delete the wrong one of {}",
                        description.variants[rows[i].variant].spec, paths);
      }
      continue;
    }
    if (used != i) rows[used] = std::move(rows[i]);
    ++used;
  }
  rows.resize(used);
  return rows;
}

}  // namespace

std::vector<std::string> PartSet::missing_text() const {
  std::vector<std::string> lines;
  for (const auto& [unit, cells] : missing) {
    const TraceEntry& trace = record.description.traces[unit.trace];
    const std::size_t all = trace.budgets.size() * record.description.variants.size();
    lines.push_back(units.contains(unit) ? fmt::format("{} layer {} ({} of {} cells)", trace.name, unit.layer,
                                                       cells.size(), all)
                                         : fmt::format("{} layer {}", trace.name, unit.layer));
  }
  return lines;
}

PartSet collect_parts(const std::vector<std::string>& folders) {
  KVSIM_CHECK(!folders.empty(), "no folders");
  PartSet set;
  set.record = common_record(folders);
  std::vector<PartInfo> valid;
  for (const std::string& folder : folders) {
    for (PartInfo& part : list_parts(folder, set.record.description)) add_part(set, std::move(part));
  }
  const std::set<UnitId> planned(set.record.units.begin(), set.record.units.end());
  std::erase_if(set.units, [&](const auto& entry) {
    if (planned.contains(entry.first)) return false;
    for (const PartInfo& part : entry.second)
      set.problems.push_back(part.path + ": its layer is not part of this run");
    return true;
  });
  std::set<std::string> paths;
  for (const auto& [unit, parts] : set.units) {
    for (const PartInfo& part : parts) {
      paths.insert(part.instruction_path);
      valid.push_back(part);
    }
  }
  set.instruction_paths.assign(paths.begin(), paths.end());
  set.missing = missing_cells(set.record, valid);
  return set;
}

std::vector<ResultRow> unit_rows(const std::vector<PartInfo>& parts, const RunDescription& description) {
  return joined_rows<ResultRow>(parts, description, [](const PartReader& reader) { return reader.rows(); });
}

std::vector<LayerRow> unit_layer_rows(const std::vector<PartInfo>& parts, const RunDescription& description) {
  return joined_rows<LayerRow>(parts, description,
                               [](const PartReader& reader) { return reader.layer_rows(); });
}

}  // namespace kvsim
