// Part files: writing and reading the results of one unit.
#include "analysis/part_file.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "analysis/durable_file.h"
#include "analysis/packed_distribution.h"
#include "analysis/result_header.h"
#include "analysis/write_guard.h"
#include "kernels/error.h"
#include "sim/tasks.h"
#include "traces/h5/file.h"
#include "traces/h5/pending_file.h"

namespace kvsim {
namespace {

constexpr std::string_view kPartFormat = "kvsim-part";
constexpr const char* kUnits[] = {"kv", "query", "layer"};

/// A running 64-bit checksum over columns; a changed, missing or moved byte changes it.
class Checksum {
 public:
  void add(const void* data, std::size_t bytes) {
    const auto* at = static_cast<const unsigned char*>(data);
    mix(bytes);
    for (; bytes >= 8; at += 8, bytes -= 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, at, 8);
      mix(word);
    }
    std::uint64_t rest = 0;
    std::memcpy(&rest, at, bytes);
    mix(rest);
  }
  template <typename T>
  void add(const std::vector<T>& column) {
    add(column.data(), column.size() * sizeof(T));
  }
  void add(const std::vector<std::string>& column) {
    mix(column.size());
    for (const std::string& text : column) add(text.data(), text.size());
  }
  std::uint64_t value() const { return hash_; }

 private:
  void mix(std::uint64_t word) {
    hash_ = std::rotl((hash_ ^ word) * 0x9E3779B97F4A7C15ull, 29) * 0xBF58476D1CE4E5B9ull;
    hash_ ^= hash_ >> 32;
  }
  std::uint64_t hash_ = 0x94D049BB133111EBull;
};

/// Columns of a part and the order of its checksum. One list serves writing, reading and verifying: `visit`
/// is called with every dataset name and its vector.
struct Columns {
  std::vector<std::string> specs, requests, metrics;
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint32_t> row_head, row_variant, row_budget;
  std::vector<double> row_resident, row_peak, row_evicted, row_values;
  std::vector<std::uint8_t> row_clamped;
  std::vector<std::int64_t> row_ties;
  std::vector<std::uint32_t> layer_variant, layer_budget;
  std::vector<double> layer_resident, layer_values;
  std::vector<std::uint32_t> cell_variant, cell_budget;
  std::vector<std::uint64_t> cell_begin;  // [cells + 1], into cell_bytes
  std::vector<std::uint8_t> cell_bytes;
  std::vector<std::uint32_t> effect_variant, effect_budget, effect_samples;
  std::vector<double> effect_depth;
  std::vector<std::uint64_t> response_count, norm_count;  // how many numbers each effect has
  std::vector<float> response, projected, relative;
  std::vector<std::uint32_t> failed_variant;
  std::vector<std::string> failure;
  std::vector<std::uint32_t> kept_variant, kept_budget;
  std::vector<std::uint8_t> kept_unit, kept_entries;
  std::vector<std::uint64_t> kept_indices, kept_offsets, kept_evicted;  // how many each set has
  std::vector<std::uint32_t> indices;
  std::vector<std::uint64_t> offsets;
  std::vector<std::uint32_t> evicted_at;
  std::vector<std::uint32_t> detail_head, detail_variant, detail_budget, detail_metric, detail_steps;
  std::vector<float> steps;

  template <typename Self, typename Visit>
  static void visit(Self& c, Visit&& visit) {
    visit("variants/spec", c.specs);
    visit("budgets/request", c.requests);
    visit("budgets/tokens", c.tokens);
    visit("metrics", c.metrics);
    visit("rows/kv_head", c.row_head);
    visit("rows/variant", c.row_variant);
    visit("rows/budget", c.row_budget);
    visit("rows/resident_tokens", c.row_resident);
    visit("rows/peak_tokens", c.row_peak);
    visit("rows/evicted", c.row_evicted);
    visit("rows/clamped", c.row_clamped);
    visit("rows/near_ties", c.row_ties);
    visit("rows/values", c.row_values);
    visit("layer_rows/variant", c.layer_variant);
    visit("layer_rows/budget", c.layer_budget);
    visit("layer_rows/resident_tokens", c.layer_resident);
    visit("layer_rows/values", c.layer_values);
    visit("cells/variant", c.cell_variant);
    visit("cells/budget", c.cell_budget);
    visit("cells/begin", c.cell_begin);
    visit("cells/distributions", c.cell_bytes);
    visit("effects/variant", c.effect_variant);
    visit("effects/budget", c.effect_budget);
    visit("effects/samples", c.effect_samples);
    visit("effects/depth", c.effect_depth);
    visit("effects/response_count", c.response_count);
    visit("effects/norm_count", c.norm_count);
    visit("effects/response", c.response);
    visit("effects/projected", c.projected);
    visit("effects/relative", c.relative);
    visit("failures/variant", c.failed_variant);
    visit("failures/message", c.failure);
    visit("kept/variant", c.kept_variant);
    visit("kept/budget", c.kept_budget);
    visit("kept/unit", c.kept_unit);
    visit("kept/entries", c.kept_entries);
    visit("kept/index_count", c.kept_indices);
    visit("kept/offset_count", c.kept_offsets);
    visit("kept/indices", c.indices);
    visit("kept/offsets", c.offsets);
    visit("kept/evicted_count", c.kept_evicted);
    visit("kept/evicted_at", c.evicted_at);
    visit("detail/kv_head", c.detail_head);
    visit("detail/variant", c.detail_variant);
    visit("detail/budget", c.detail_budget);
    visit("detail/metric", c.detail_metric);
    visit("detail/step_count", c.detail_steps);
    visit("detail/steps", c.steps);
  }
};

template <typename T>
void read_into(const h5::Group& file, const char* name, std::vector<T>& column) {
  if constexpr (std::is_same_v<T, std::string>) {
    column = file.read_strings(name);
  } else {
    column = file.read_column<T>(name);
  }
}

void add_rows(const UnitResult& result, std::size_t metrics, Columns& c) {
  for (const ResultRow& row : result.rows) {
    KVSIM_CHECK(row.values.size() == metrics, "{} values for {} row metrics", row.values.size(), metrics);
    c.row_head.push_back(row.kv_head);
    c.row_variant.push_back(row.variant);
    c.row_budget.push_back(row.budget);
    c.row_resident.push_back(row.resident_tokens);
    c.row_peak.push_back(row.peak_tokens);
    c.row_evicted.push_back(row.evicted);
    c.row_clamped.push_back(row.clamped ? 1 : 0);
    c.row_ties.push_back(row.near_ties);
    c.row_values.insert(c.row_values.end(), row.values.begin(), row.values.end());
  }
}

void add_layer_rows(const UnitResult& result, std::size_t metrics, Columns& c) {
  for (const LayerRow& row : result.layer_rows) {
    KVSIM_CHECK(row.values.size() == metrics, "{} values for {} layer metrics", row.values.size(), metrics);
    c.layer_variant.push_back(row.variant);
    c.layer_budget.push_back(row.budget);
    c.layer_resident.push_back(row.resident_tokens);
    c.layer_values.insert(c.layer_values.end(), row.values.begin(), row.values.end());
  }
}

void add_cells(const UnitResult& result, std::size_t metrics, Columns& c) {
  std::vector<std::vector<std::uint8_t>> packed(result.cells.size());
  const auto errors = run_on_all_threads(result.cells.size(), [&](std::size_t i) {
    const CellDistributions& cell = result.cells[i];
    KVSIM_CHECK(cell.metrics.size() == metrics, "{} distributions for {} metrics", cell.metrics.size(),
                metrics);
    for (const Distribution& distribution : cell.metrics) pack(distribution, packed[i]);
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  c.cell_begin.push_back(0);
  for (std::size_t i = 0; i < packed.size(); ++i) {
    c.cell_variant.push_back(result.cells[i].variant);
    c.cell_budget.push_back(result.cells[i].budget);
    c.cell_bytes.insert(c.cell_bytes.end(), packed[i].begin(), packed[i].end());
    c.cell_begin.push_back(c.cell_bytes.size());
  }
}

void add_effects(const UnitResult& result, Columns& c) {
  for (const LayerEffect& effect : result.effects) {
    KVSIM_CHECK(effect.projected.size() == effect.relative.size(), "{} norms and {} relative ones",
                effect.projected.size(), effect.relative.size());
    c.effect_variant.push_back(effect.variant);
    c.effect_budget.push_back(effect.budget);
    c.effect_samples.push_back(effect.samples);
    c.effect_depth.push_back(effect.depth);
    c.response_count.push_back(effect.response.size());
    c.norm_count.push_back(effect.projected.size());
    c.response.insert(c.response.end(), effect.response.begin(), effect.response.end());
    c.projected.insert(c.projected.end(), effect.projected.begin(), effect.projected.end());
    c.relative.insert(c.relative.end(), effect.relative.begin(), effect.relative.end());
  }
}

void add_kept(const UnitResult& result, Columns& c) {
  for (const KeptSet& kept : result.kept) {
    const auto* unit = std::find(std::begin(kUnits), std::end(kUnits), kept.unit);
    KVSIM_CHECK(unit != std::end(kUnits), "kept sets of unit '{}'", kept.unit);
    const auto* entries = std::find(kEntryStates.begin(), kEntryStates.end(), kept.entries);
    KVSIM_CHECK(entries != kEntryStates.end(), "kept entries '{}'", kept.entries);
    c.kept_entries.push_back(static_cast<std::uint8_t>(entries - kEntryStates.begin()));
    c.kept_variant.push_back(kept.variant);
    c.kept_budget.push_back(kept.budget);
    c.kept_unit.push_back(static_cast<std::uint8_t>(unit - std::begin(kUnits)));
    c.kept_indices.push_back(kept.indices.size());
    c.kept_offsets.push_back(kept.offsets.size());
    c.indices.insert(c.indices.end(), kept.indices.begin(), kept.indices.end());
    c.offsets.insert(c.offsets.end(), kept.offsets.begin(), kept.offsets.end());
    c.kept_evicted.push_back(kept.evicted_at.size());
    c.evicted_at.insert(c.evicted_at.end(), kept.evicted_at.begin(), kept.evicted_at.end());
  }
}

void add_detail(const UnitResult& result, Columns& c) {
  for (const StepDetail& detail : result.detail) {
    c.detail_head.push_back(detail.kv_head);
    c.detail_variant.push_back(detail.variant);
    c.detail_budget.push_back(detail.budget);
    c.detail_metric.push_back(detail.metric);
    c.detail_steps.push_back(static_cast<std::uint32_t>(detail.steps.size()));
    c.steps.insert(c.steps.end(), detail.steps.begin(), detail.steps.end());
  }
}

Columns columns_of(const UnitResult& result, const RunDescription& description) {
  Columns c;
  for (const VariantEntry& variant : description.variants) c.specs.push_back(variant.spec);
  for (const BudgetPoint& budget : description.traces[result.trace].budgets) {
    c.requests.push_back(budget.request);
    c.tokens.push_back(budget.tokens);
  }
  c.metrics = description.metrics;
  const std::size_t row_metrics = chosen_metrics(description, MetricInfo::Level::row).size();
  const std::size_t layer_metrics = chosen_metrics(description, MetricInfo::Level::layer).size();
  add_rows(result, row_metrics, c);
  add_layer_rows(result, layer_metrics, c);
  add_cells(result, row_metrics + layer_metrics, c);
  for (const Failure& failure : result.failures) {
    c.failed_variant.push_back(failure.variant);
    c.failure.push_back(failure.message);
  }
  add_effects(result, c);
  add_kept(result, c);
  add_detail(result, c);
  return c;
}

/// Names become file names: letters, digits, '.', '_', '-' stay; where others were replaced a hash tells
/// equal results apart.
std::string file_name_of(const std::string& name) {
  std::string safe = name;
  for (char& c : safe) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_' && c != '-') c = '_';
  }
  if (safe.starts_with('.')) safe[0] = '_';
  if (safe == name) return safe;
  Checksum hash;
  hash.add(name.data(), name.size());
  return fmt::format("{}.{:08x}", safe, hash.value() >> 32);
}

[[noreturn]] void fail_damaged(const std::string& path, std::string_view what) {
  throw UserError("{}: is damaged: {}; delete it and run again", path, what);
}

}  // namespace

std::string part_path(const std::string& folder, const TraceEntry& trace, std::uint32_t layer,
                      const std::string& batch) {
  return fmt::format("{}/{}-{:03d}-{}.h5", parts_folder(folder), file_name_of(trace.name), layer, batch);
}

void write_part(const std::string& folder, const UnitResult& result, const RunDescription& description,
                const std::string& batch) {
  const TraceEntry& trace = description.traces[result.trace];
  const Columns columns = columns_of(result, description);
  Checksum checksum;
  Columns::visit(columns, [&](const char*, const auto& column) { checksum.add(column); });
  make_folder(parts_folder(folder));
  h5::PendingFile pending(part_path(folder, trace, result.layer, batch));
  h5::File file = h5::File::create(pending.path(), h5::File::Create::replace);
  WriteGuard guard(file);
  write_format(file, kPartFormat);
  file.set_attribute("trace", trace.name);
  file.set_attribute("digest", trace.digest);
  file.set_attribute("digest_key", trace.digest_key);
  file.set_attribute("layer", result.layer);
  file.set_attribute("batch", batch);
  file.set_attribute("instruction_path", description.provenance.instruction_path);
  file.set_attribute("checksum", checksum.value());
  Columns::visit(columns, [&](const char* name, const auto& column) { file.write_column(name, column); });
  std::vector<std::string> stage;
  std::vector<double> seconds;
  for (const auto& [name, value] : result.perf) {
    stage.push_back(name);
    seconds.push_back(value);
  }
  file.write_column("perf/stage", stage);
  file.write_column("perf/seconds", seconds);
  close_guarded(file, guard);
  pending.commit();
}

struct PartReader::State {
  h5::File file;
  const RunDescription& description;
  PartInfo info;
  std::vector<std::uint32_t> variant_of, budget_of;  // the part's indices -> the description's, or kNotInRun
  std::size_t row_metrics = 0, layer_metrics = 0;
  bool listed = false;  // cells and numbers of rows are in info: most readers never ask

  State(const std::string& path, const RunDescription& run) : file(h5::File::open(path)), description(run) {}

  template <typename T>
  std::vector<T> column(const char* name) const {
    return file.read_column<T>(name);
  }
  /// A column of indices, mapped.
  std::vector<std::uint32_t> mapped(const char* name, const std::vector<std::uint32_t>& map) const {
    std::vector<std::uint32_t> values = column<std::uint32_t>(name);
    for (std::uint32_t& value : values) {
      if (value >= map.size())
        fail_damaged(info.path, fmt::format("/{} holds {}, expected below {}", name, value, map.size()));
      value = map[value];
    }
    return values;
  }
  void check(bool good, const char* what) const {
    if (!good) fail_damaged(info.path, what);
  }
  [[noreturn]] void fail_foreign(const std::string& what) const {
    throw ForeignPart("{}: does not belong to this run: {}", info.path, what);
  }

  void identify() {
    try {
      check_format(file, kPartFormat);
    } catch (const UserError& error) {
      throw ForeignPart("{}", error.what());
    }
    const std::string trace = file.string_attribute("trace");
    const auto& traces = description.traces;
    const auto found =
        std::find_if(traces.begin(), traces.end(), [&](const TraceEntry& t) { return t.name == trace; });
    if (found == traces.end()) fail_foreign(fmt::format("it is of trace '{}'", trace));
    info.unit = {static_cast<std::uint32_t>(found - traces.begin()),
                 static_cast<std::uint32_t>(file.int_attribute("layer"))};
    info.batch = file.string_attribute("batch");
    info.instruction_path = file.string_attribute("instruction_path");
    info.checksum = static_cast<std::uint64_t>(file.int_attribute("checksum"));
    if (static_cast<std::uint64_t>(file.int_attribute("digest_key")) != found->digest_key) {
      fail_foreign(fmt::format("trace '{}' has changed since (digest {}, now {})", trace,
                               file.string_attribute("digest"), found->digest));
    }
    if (file.read_strings("metrics") != description.metrics) fail_foreign("it holds other metrics");
  }

  void map_names() {
    std::unordered_map<std::string, std::uint32_t> variants, budgets;
    for (std::uint32_t v = 0; v < description.variants.size(); ++v)
      variants.emplace(description.variants[v].spec, v);
    const auto& points = description.traces[info.unit.trace].budgets;
    for (std::uint32_t b = 0; b < points.size(); ++b)
      budgets.emplace(fmt::format("{} {}", points[b].tokens, points[b].request), b);
    for (const std::string& spec : file.read_strings("variants/spec")) {
      const auto found = variants.find(spec);
      variant_of.push_back(found == variants.end() ? kNotInRun : found->second);
    }
    const auto request = file.read_strings("budgets/request");
    const auto tokens = column<std::uint32_t>("budgets/tokens");
    check(request.size() == tokens.size(), "the columns of /budgets differ in length");
    for (std::size_t i = 0; i < request.size(); ++i) {
      const auto found = budgets.find(fmt::format("{} {}", tokens[i], request[i]));
      budget_of.push_back(found == budgets.end() ? kNotInRun : found->second);
    }
    row_metrics = chosen_metrics(description, MetricInfo::Level::row).size();
    layer_metrics = chosen_metrics(description, MetricInfo::Level::layer).size();
  }

  std::vector<CellId> cells_at(const char* variant_name, const char* budget_name) const {
    const auto variant = mapped(variant_name, variant_of);
    const auto budget = mapped(budget_name, budget_of);
    check(variant.size() == budget.size(), "columns of one table differ in length");
    std::vector<CellId> cells(variant.size());
    for (std::size_t i = 0; i < cells.size(); ++i) {
      const bool known = variant[i] != kNotInRun && budget[i] != kNotInRun;
      cells[i] = known ? CellId{variant[i], budget[i]} : CellId{kNotInRun, kNotInRun};
    }
    return cells;
  }

  void list_cells() {
    const auto known = [](const CellId& cell) { return cell.variant != kNotInRun; };
    const auto layer_cells = cells_at("layer_rows/variant", "layer_rows/budget");
    info.layer_rows = static_cast<std::size_t>(std::count_if(layer_cells.begin(), layer_cells.end(), known));
    info.cells = cells_at("rows/variant", "rows/budget");
    info.rows = static_cast<std::size_t>(std::count_if(info.cells.begin(), info.cells.end(), known));
    const auto budgets = static_cast<std::uint32_t>(description.traces[info.unit.trace].budgets.size());
    for (const std::uint32_t variant : mapped("failures/variant", variant_of)) {
      for (std::uint32_t b = 0; variant != kNotInRun && b < budgets; ++b) info.cells.push_back({variant, b});
    }
    std::erase_if(info.cells, [&](const CellId& cell) { return !known(cell); });
    std::sort(info.cells.begin(), info.cells.end());
    info.cells.erase(std::unique(info.cells.begin(), info.cells.end()), info.cells.end());
  }
};

PartReader::PartReader(const std::string& path, const RunDescription& description)
    : state_(std::make_unique<State>(path, description)) {
  state_->info.path = path;
  state_->identify();
  state_->map_names();
}
PartReader::PartReader(PartReader&&) noexcept = default;
PartReader::~PartReader() = default;

const PartInfo& PartReader::info() const {
  if (!state_->listed) state_->list_cells();
  state_->listed = true;
  return state_->info;
}

void PartReader::verify() const {
  Checksum checksum;
  Columns columns;
  Columns::visit(columns, [&](const char* name, auto& column) {
    read_into(state_->file, name, column);
    checksum.add(column);
    column = {};
  });
  state_->check(checksum.value() == state_->info.checksum, "its checksum is wrong");
}

std::vector<ResultRow> PartReader::rows() const {
  const State& s = *state_;
  const auto cells = s.cells_at("rows/variant", "rows/budget");
  const auto head = s.column<std::uint32_t>("rows/kv_head");
  const auto resident = s.column<double>("rows/resident_tokens");
  const auto peak = s.column<double>("rows/peak_tokens");
  const auto evicted = s.column<double>("rows/evicted");
  const auto clamped = s.column<std::uint8_t>("rows/clamped");
  const auto ties = s.column<std::int64_t>("rows/near_ties");
  const auto values = s.column<double>("rows/values");
  const std::size_t n = cells.size(), m = s.row_metrics;
  s.check(head.size() == n && resident.size() == n && peak.size() == n && evicted.size() == n &&
              clamped.size() == n && ties.size() == n && values.size() == n * m,
          "the columns of /rows differ in length");
  std::vector<ResultRow> rows;
  rows.reserve(n);
  for (std::size_t i = 0; i < n; ++i) {
    if (cells[i].variant == kNotInRun) continue;
    const auto* first = values.data() + i * m;
    rows.push_back({head[i],
                    cells[i].variant,
                    cells[i].budget,
                    resident[i],
                    peak[i],
                    evicted[i],
                    clamped[i] != 0,
                    ties[i],
                    {first, first + m}});
  }
  return rows;
}

std::vector<LayerRow> PartReader::layer_rows() const {
  const State& s = *state_;
  const auto cells = s.cells_at("layer_rows/variant", "layer_rows/budget");
  const auto resident = s.column<double>("layer_rows/resident_tokens");
  const auto values = s.column<double>("layer_rows/values");
  const std::size_t m = s.layer_metrics;
  s.check(resident.size() == cells.size() && values.size() == cells.size() * m,
          "the columns of /layer_rows differ in length");
  std::vector<LayerRow> rows;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (cells[i].variant == kNotInRun) continue;
    const auto* first = values.data() + i * m;
    rows.push_back({cells[i].variant, cells[i].budget, resident[i], {first, first + m}});
  }
  return rows;
}

std::vector<Failure> PartReader::failures() const {
  const State& s = *state_;
  const auto variant = s.mapped("failures/variant", s.variant_of);
  auto message = s.file.read_strings("failures/message");
  s.check(variant.size() == message.size(), "the columns of /failures differ in length");
  std::vector<Failure> failures;
  for (std::size_t i = 0; i < variant.size(); ++i) {
    if (variant[i] != kNotInRun) failures.push_back({variant[i], std::move(message[i])});
  }
  return failures;
}

std::vector<CellId> PartReader::distribution_cells() const {
  return state_->cells_at("cells/variant", "cells/budget");
}

PackedCells PartReader::packed_distributions(std::size_t first, std::size_t count) const {
  const State& s = *state_;
  PackedCells cells;
  cells.begin = s.column<std::uint64_t>("cells/begin");
  s.check(first + count < cells.begin.size(), "/cells/begin has fewer entries than there are cells");
  const h5::Dataset stored = s.file.dataset("cells/distributions");
  s.check(std::is_sorted(cells.begin.begin(), cells.begin.end()) && stored.shape().size() == 1 &&
              cells.begin.back() == stored.shape()[0],
          "/cells/begin does not cut /cells/distributions");
  const auto from = cells.begin.begin() + static_cast<std::ptrdiff_t>(first);
  cells.begin = {from, from + static_cast<std::ptrdiff_t>(count) + 1};
  const std::uint64_t offset = cells.begin.front(), size = cells.begin.back() - offset;
  for (std::uint64_t& begin : cells.begin) begin -= offset;
  if (size > 0) cells.bytes = stored.read<std::uint8_t>(std::span(&offset, 1), std::span(&size, 1));
  return cells;
}

std::vector<CellDistributions> PartReader::distributions(std::size_t first, std::size_t count) const {
  const State& s = *state_;
  const auto cells = distribution_cells();
  KVSIM_CHECK(first + count <= cells.size(), "cells {} + {} of {}", first, count, cells.size());
  const PackedCells packed = packed_distributions(first, count);
  std::span<const std::uint8_t> rest(packed.bytes);
  std::vector<CellDistributions> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    out[i].variant = cells[first + i].variant;
    out[i].budget = cells[first + i].budget;
    out[i].metrics.resize(s.row_metrics + s.layer_metrics);
    for (Distribution& distribution : out[i].metrics)
      s.check(unpack(rest, distribution), "a distribution makes no sense");
  }
  return out;
}

std::vector<LayerEffect> PartReader::effects(std::span<const CellId> wanted) const {
  const State& s = *state_;
  const auto cells = s.cells_at("effects/variant", "effects/budget");
  const auto samples = s.column<std::uint32_t>("effects/samples");
  const auto depth = s.column<double>("effects/depth");
  const auto responses = s.column<std::uint64_t>("effects/response_count");
  const auto norms = s.column<std::uint64_t>("effects/norm_count");
  s.check(samples.size() == cells.size() && depth.size() == cells.size() &&
              responses.size() == cells.size() && norms.size() == cells.size(),
          "the columns of /effects differ in length");
  // Where the numbers of every cell begin, and the range of cells that holds all the wanted ones: read at once.
  std::vector<std::uint64_t> response_at{0}, norm_at{0};
  std::size_t first = cells.size(), last = 0;
  const auto is_wanted = [&](std::size_t i) {
    return cells[i].variant != kNotInRun && std::binary_search(wanted.begin(), wanted.end(), cells[i]);
  };
  for (std::size_t i = 0; i < cells.size(); ++i) {
    response_at.push_back(response_at.back() + responses[i]);
    norm_at.push_back(norm_at.back() + norms[i]);
    if (!is_wanted(i)) continue;
    first = std::min(first, i);
    last = i + 1;
  }
  if (first >= last) return {};
  const auto numbers = [&](const char* name, const std::vector<std::uint64_t>& at) {
    const h5::Dataset stored = s.file.dataset(name);
    s.check(stored.shape().size() == 1 && at.back() == stored.shape()[0] && std::is_sorted(at.begin(), at.end()),
            "/effects makes no sense");
    const std::uint64_t offset = at[first], count = at[last] - offset;
    return count == 0 ? std::vector<float>() : stored.read<float>(std::span(&offset, 1), std::span(&count, 1));
  };
  const auto response = numbers("effects/response", response_at), projected = numbers("effects/projected", norm_at),
             relative = numbers("effects/relative", norm_at);
  const auto part = [first](const std::vector<float>& all, const std::vector<std::uint64_t>& at, std::size_t i) {
    const auto begin = all.begin() - static_cast<std::ptrdiff_t>(at[first]);
    return std::vector<float>(begin + static_cast<std::ptrdiff_t>(at[i]), begin + static_cast<std::ptrdiff_t>(at[i + 1]));
  };
  std::vector<LayerEffect> effects;
  for (std::size_t i = first; i < last; ++i) {
    if (!is_wanted(i)) continue;
    effects.push_back({cells[i].variant, cells[i].budget, samples[i], depth[i], part(response, response_at, i),
                       part(projected, norm_at, i), part(relative, norm_at, i)});
  }
  return effects;
}

std::vector<CellId> PartReader::kept_cells() const { return state_->cells_at("kept/variant", "kept/budget"); }

std::vector<KeptSet> PartReader::kept() const {
  const State& s = *state_;
  const auto cells = kept_cells();
  const auto unit = s.column<std::uint8_t>("kept/unit");
  const auto entries = s.column<std::uint8_t>("kept/entries");
  const auto index_count = s.column<std::uint64_t>("kept/index_count");
  const auto offset_count = s.column<std::uint64_t>("kept/offset_count");
  const auto indices = s.column<std::uint32_t>("kept/indices");
  const auto offsets = s.column<std::uint64_t>("kept/offsets");
  const auto evicted_count = s.column<std::uint64_t>("kept/evicted_count");
  const auto evicted_at = s.column<std::uint32_t>("kept/evicted_at");
  const std::size_t n = cells.size();
  s.check(unit.size() == n && entries.size() == n && index_count.size() == n && offset_count.size() == n &&
              evicted_count.size() == n,
          "the columns of /kept differ in length");
  std::vector<KeptSet> kept;
  std::size_t at = 0, offset_at = 0, evicted = 0;
  for (std::size_t i = 0; i < n; ++i) {
    s.check(unit[i] < std::size(kUnits) && entries[i] < kEntryStates.size() &&
                index_count[i] <= indices.size() - at && offset_count[i] <= offsets.size() - offset_at &&
                evicted_count[i] <= evicted_at.size() - evicted,
            "/kept makes no sense");
    if (cells[i].variant != kNotInRun) {
      const auto* first = indices.data() + at;
      const auto* first_offset = offsets.data() + offset_at;
      const auto* first_evicted = evicted_at.data() + evicted;
      kept.push_back({cells[i].variant,
                      cells[i].budget,
                      kUnits[unit[i]],
                      {first, first + index_count[i]},
                      {first_offset, first_offset + offset_count[i]},
                      {first_evicted, first_evicted + evicted_count[i]},
                      kEntryStates[entries[i]]});
    }
    at += index_count[i];
    offset_at += offset_count[i];
    evicted += evicted_count[i];
  }
  return kept;
}

std::vector<StepDetail> PartReader::detail() const {
  const State& s = *state_;
  const auto cells = s.cells_at("detail/variant", "detail/budget");
  const auto head = s.column<std::uint32_t>("detail/kv_head");
  const auto metric = s.column<std::uint32_t>("detail/metric");
  const auto count = s.column<std::uint32_t>("detail/step_count");
  const auto steps = s.column<float>("detail/steps");
  const std::size_t n = cells.size();
  s.check(head.size() == n && metric.size() == n && count.size() == n,
          "the columns of /detail differ in length");
  std::vector<StepDetail> detail;
  std::size_t at = 0;
  for (std::size_t i = 0; i < n; ++i) {
    s.check(metric[i] < s.row_metrics && count[i] <= steps.size() - at, "/detail makes no sense");
    if (cells[i].variant != kNotInRun) {
      const auto* first = steps.data() + at;
      detail.push_back({head[i], cells[i].variant, cells[i].budget, metric[i], {first, first + count[i]}});
    }
    at += count[i];
  }
  return detail;
}

std::vector<std::pair<std::string, double>> PartReader::perf() const {
  const auto stage = state_->file.read_strings("perf/stage");
  const auto seconds = state_->column<double>("perf/seconds");
  state_->check(stage.size() == seconds.size(), "the columns of /perf differ in length");
  std::vector<std::pair<std::string, double>> perf;
  for (std::size_t i = 0; i < stage.size(); ++i) perf.emplace_back(stage[i], seconds[i]);
  return perf;
}

UnitResult read_part(const std::string& path, const RunDescription& description) {
  const PartReader reader(path, description);
  reader.verify();
  UnitResult result;
  result.trace = reader.info().unit.trace;
  result.layer = reader.info().unit.layer;
  result.rows = reader.rows();
  result.layer_rows = reader.layer_rows();
  result.cells = reader.distributions(0, reader.distribution_cells().size());
  std::erase_if(result.cells, [](const CellDistributions& cell) { return cell.variant == kNotInRun; });
  result.effects = reader.effects(reader.info().cells);
  result.failures = reader.failures();
  result.kept = reader.kept();
  result.detail = reader.detail();
  result.perf = reader.perf();
  return result;
}

}  // namespace kvsim
