// kept.h5, and the per-step arrays of results.h5.
#include "analysis/kept_store.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "analysis/result_header.h"
#include "analysis/summary_store.h"
#include "kernels/error.h"

namespace kvsim {
namespace {

using KeptCell = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>;  // trace, variant, budget

std::map<KeptCell, std::size_t> kept_cells(const PartSet& parts) {
  std::map<KeptCell, std::size_t> cells;
  for (const auto& [unit, infos] : parts.units) {
    for (const PartInfo& info : infos) {
      for (const CellId& cell : PartReader(info.path, parts.record.description).kept_cells()) {
        if (cell.variant != kNotInRun) cells.emplace(KeptCell{unit.trace, cell.variant, cell.budget}, 0);
      }
    }
  }
  std::size_t number = 0;
  for (auto& entry : cells) entry.second = number++;
  return cells;
}

void write_cells(h5::File& file, const PartSet& parts, const std::map<KeptCell, std::size_t>& cells) {
  const RunDescription& description = parts.record.description;
  std::vector<std::string> trace, variant;
  std::vector<std::int64_t> tokens;
  for (const auto& entry : cells) {
    const auto& [t, v, b] = entry.first;
    trace.push_back(description.traces[t].name);
    variant.push_back(description.variants[v].spec);
    tokens.push_back(description.traces[t].budgets[b].tokens);
  }
  file.write_column("cells/trace", trace);
  file.write_column("cells/variant", variant);
  file.write_column("cells/budget_tokens", tokens);
}

/// Keys of one unit's per-step values: KV head, variant, budget.
using DetailKey = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>;
using UnitDetail = std::map<DetailKey, std::map<std::uint32_t, std::vector<float>>>;

UnitDetail unit_detail(const std::vector<PartInfo>& infos, const RunDescription& description) {
  UnitDetail detail;
  for (const PartInfo& info : infos) {
    for (StepDetail& some : PartReader(info.path, description).detail()) {
      detail[{some.kv_head, some.variant, some.budget}].emplace(some.metric, std::move(some.steps));
    }
  }
  return detail;
}

struct DetailShape {
  std::uint64_t cells = 0, steps = 0;
  std::set<std::uint32_t> metrics;
};

/// Cells that some part of the trace answers, ascending.
std::vector<CellId> answered_cells(const PartSet& parts, std::uint32_t trace) {
  std::set<CellId> cells;
  for (const auto& [unit, infos] : parts.units)
    if (unit.trace == trace)
      for (const PartInfo& info : infos) cells.insert(info.cells.begin(), info.cells.end());
  return {cells.begin(), cells.end()};
}

DetailShape detail_shape(const PartSet& parts) {
  DetailShape shape;
  for (const auto& entry : parts.units) {
    for (const auto& cell : unit_detail(entry.second, parts.record.description)) {
      ++shape.cells;
      for (const auto& [metric, steps] : cell.second) {
        shape.metrics.insert(metric);
        shape.steps = std::max<std::uint64_t>(shape.steps, steps.size());
      }
    }
  }
  return shape;
}

}  // namespace

bool has_kept_sets(const PartSet& parts) { return !kept_cells(parts).empty(); }

void write_kept_sets(h5::File& file, const PartSet& parts) {
  const auto cells = kept_cells(parts);
  write_format(file, "kvsim-kept");
  write_provenance(file, parts.record.description.provenance);
  write_cells(file, parts, cells);
  for (const auto& [unit, infos] : parts.units) {
    for (const PartInfo& info : infos) {
      for (const KeptSet& kept : PartReader(info.path, parts.record.description).kept()) {
        const std::size_t cell = cells.at({unit.trace, kept.variant, kept.budget});
        const std::string name = fmt::format("kept/{}/{:03d}", cell, unit.layer);
        if (file.has(name)) continue;  // two batches answered the same cell
        h5::Group group = file.create_group(name);
        group.set_attribute("unit", kept.unit);
        group.set_attribute("entries", kept.entries);
        group.write_column("indices", kept.indices);
        group.write_column("offsets", kept.offsets);
        if (!kept.evicted_at.empty()) {  // [units, T + S]
          const h5::Shape origin{0, 0},
              shape{kept.offsets.size() - 1, kept.evicted_at.size() / (kept.offsets.size() - 1)};
          group.create_dataset("evicted_at", h5::Element::uint32, shape)
              .write_raw(origin, shape, std::as_bytes(std::span(kept.evicted_at)));
        }
      }
    }
  }
}

void write_step_details(h5::File& file, const PartSet& parts) {
  const DetailShape shape = detail_shape(parts);
  if (shape.cells == 0) return;
  const RunDescription& description = parts.record.description;
  const auto metrics = chosen_metrics(description, MetricInfo::Level::row);
  std::map<std::uint32_t, h5::Dataset> datasets;
  for (const std::uint32_t m : shape.metrics) {
    const std::string name = fmt::format("detail/{}", metrics[m].name);
    datasets.emplace(m, file.create_dataset(name, h5::Element::float32, {shape.cells, shape.steps}));
  }
  std::vector<std::int32_t> trace, variant, layer, head;
  std::vector<std::int64_t> tokens;
  for (const auto& [unit, infos] : parts.units) {
    for (const auto& [key, values] : unit_detail(infos, description)) {
      for (auto& [m, dataset] : datasets) {
        std::vector<float> line(shape.steps, std::numeric_limits<float>::quiet_NaN());
        if (const auto found = values.find(m); found != values.end()) {
          std::copy(found->second.begin(), found->second.end(), line.begin());
        }
        const h5::Shape offset{trace.size(), 0}, count{1, shape.steps};
        dataset.write_raw(offset, count, std::as_bytes(std::span(line)));
      }
      trace.push_back(static_cast<std::int32_t>(unit.trace));
      layer.push_back(static_cast<std::int32_t>(unit.layer));
      head.push_back(static_cast<std::int32_t>(std::get<0>(key)));
      variant.push_back(static_cast<std::int32_t>(std::get<1>(key)));
      tokens.push_back(description.traces[unit.trace].budgets[std::get<2>(key)].tokens);
    }
  }
  file.write_column("detail/cell/trace", trace);
  file.write_column("detail/cell/variant", variant);
  file.write_column("detail/cell/layer", layer);
  file.write_column("detail/cell/kv_head", head);
  file.write_column("detail/cell/budget_tokens", tokens);
}

void write_trace_details(h5::File& file, const PartSet& parts) {
  const RunDescription& description = parts.record.description;
  const std::vector<MetricInfo> metrics = chosen_metrics(description, MetricInfo::Level::trace);
  // Asked for with --detail steps, whether or not a metric of heads has steps.
  if (metrics.empty() || description.provenance.config.find("\ndetail = steps") == std::string::npos) return;
  std::uint64_t most_steps = 0;
  for (const TraceEntry& trace : description.traces) most_steps = std::max(most_steps, trace.decode);
  std::vector<std::int32_t> trace, variant;
  std::vector<std::int64_t> tokens;
  std::vector<std::vector<float>> values(metrics.size());
  for (std::uint32_t t = 0; t < description.traces.size(); ++t) {
    const std::vector<CellId> cells = answered_cells(parts, t);
    const std::vector<EffectSum> sums = effect_sums(parts, t, cells);
    for (std::size_t i = 0; i < cells.size(); ++i) {
      trace.push_back(static_cast<std::int32_t>(t));
      variant.push_back(static_cast<std::int32_t>(cells[i].variant));
      tokens.push_back(description.traces[t].budgets[cells[i].budget].tokens);
      for (std::size_t m = 0; m < metrics.size(); ++m) {
        const std::vector<double> steps = sums[i].steps(metrics[m].name);
        values[m].insert(values[m].end(), steps.begin(), steps.end());
        values[m].resize(trace.size() * most_steps, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  const h5::Shape origin{0, 0}, all{trace.size(), most_steps};
  for (std::size_t m = 0; m < metrics.size(); ++m)
    file.create_dataset(fmt::format("trace_detail/{}", metrics[m].name), h5::Element::float32, all)
        .write_raw(origin, all, std::as_bytes(std::span(values[m])));
  file.write_column("trace_detail/cell/trace", trace);
  file.write_column("trace_detail/cell/variant", variant);
  file.write_column("trace_detail/cell/budget_tokens", tokens);
}

}  // namespace kvsim
