// Which parts of a run are there, which of them count, and what is left to do.
#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <tuple>

#include "analysis/part_file.h"
#include "kernels/error.h"

namespace kvsim {
namespace {

/// Opens one part; what is wrong with it goes into the answer instead of an exception.
PartInfo inspect(const std::string& path, const RunDescription& description) {
  PartInfo info;
  info.path = path;
  try {
    const PartReader reader(path, description);
    reader.verify();
    return reader.info();
  } catch (const ForeignPart& error) {
    info.state = PartInfo::State::foreign;
    info.problem = error.what();
  } catch (const UserError& error) {
    info.state = PartInfo::State::damaged;
    info.problem = error.what();
  }
  return info;
}

bool is_part_name(const std::string& name) {
  return name.ends_with(".h5") && name != "run.h5" && !name.starts_with('.');
}

}  // namespace

std::vector<PartInfo> list_parts(const std::string& folder, const RunDescription& description,
                                 const std::string& batch) {
  std::vector<PartInfo> parts;
  std::error_code error;
  std::filesystem::directory_iterator entries(parts_folder(folder), error);
  if (error) return parts;
  const std::string ending = "-" + batch + ".h5";
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (is_part_name(name) && (batch.empty() || name.ends_with(ending))) {
      parts.push_back(inspect(entry.path().string(), description));
    }
  }
  // The order of a folder's entries is the file system's own.
  std::sort(parts.begin(), parts.end(), [](const PartInfo& a, const PartInfo& b) {
    return std::tie(a.unit, a.batch, a.path) < std::tie(b.unit, b.batch, b.path);
  });
  return parts;
}

std::map<UnitId, std::vector<CellId>> missing_cells(const RunRecord& record,
                                                    std::span<const PartInfo> parts) {
  std::set<std::pair<std::uint32_t, std::uint32_t>> refused;
  for (const Refusal& refusal : record.refusals) refused.emplace(refusal.trace, refusal.variant);
  std::map<UnitId, std::vector<CellId>> answered;
  for (const PartInfo& part : parts) {
    if (part.state != PartInfo::State::valid) continue;
    auto& cells = answered[part.unit];
    cells.insert(cells.end(), part.cells.begin(), part.cells.end());
  }
  std::map<UnitId, std::vector<CellId>> missing;
  const auto variants = static_cast<std::uint32_t>(record.description.variants.size());
  for (const UnitId& unit : record.units) {
    auto& done = answered[unit];
    std::sort(done.begin(), done.end());
    const auto budgets = static_cast<std::uint32_t>(record.description.traces[unit.trace].budgets.size());
    std::vector<CellId> open;
    for (std::uint32_t v = 0; v < variants; ++v) {
      if (refused.contains({unit.trace, v})) continue;
      for (std::uint32_t b = 0; b < budgets; ++b) {
        if (!std::binary_search(done.begin(), done.end(), CellId{v, b})) open.push_back({v, b});
      }
    }
    if (!open.empty()) missing.emplace(unit, std::move(open));
  }
  return missing;
}

}  // namespace kvsim
