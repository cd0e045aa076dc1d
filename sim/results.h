// What a replay produces, unit by unit: rows, layer rows, counts for quantiles, failures, kept sets.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/view.h"

namespace kvsim {

/// A metric as the results name it. The registered order is the column order.
struct MetricInfo {
  enum class Level : std::uint8_t { row, layer, trace };
  std::string_view name, unit, summary, formula;
  bool higher_is_better = false;
  Level level = Level::row;
};
const std::vector<MetricInfo>& all_metrics();
/// row, layer, trace
std::string_view level_name(MetricInfo::Level level);

/// One budget as asked for ("5%", "128") and what it is in tokens for one trace.
struct BudgetPoint {
  std::string request;
  std::uint32_t tokens = 0;
};

struct TraceEntry {
  std::string name, path, digest, model, dtype;
  std::uint64_t digest_key = 0;
  std::uint64_t layers = 0, query_heads = 0, kv_heads = 0, head_dim = 0, prompt = 0, decode = 0;
  std::vector<BudgetPoint> budgets;  // ascending in tokens
};

struct VariantEntry {
  std::string variant_id;  // 16 hex digits: hash of the canonical spec
  std::string policy, spec, reference;
  bool nested = true, oracle = false, automatic = false;
};

/// Everything that identifies a run and its machine.
struct Provenance {
  std::string tool_version, git_sha, created, command_line, config, compiler, build_flags, cpu, device, instruction_path;
  std::uint64_t seed = 0;
  int threads = 1;
};

struct RunDescription {
  std::vector<TraceEntry> traces;
  std::vector<VariantEntry> variants;
  std::vector<std::string> metrics;  // chosen names, in registered order
  Provenance provenance;
};

/// One (KV head, variant, budget) of a unit. values[i] belongs to the i-th chosen row metric; NaN = undefined.
struct ResultRow {
  std::uint32_t kv_head = 0, variant = 0, budget = 0;  // budget = index into TraceEntry::budgets
  double resident_tokens = 0, peak_tokens = 0, evicted = 0;
  bool clamped = false;
  std::int64_t near_ties = 0;
  std::vector<double> values;
};

/// One (variant, budget) of a unit with the metrics of a whole layer.
struct LayerRow {
  std::uint32_t variant = 0, budget = 0;
  double resident_tokens = 0;
  std::vector<double> values;  // chosen layer metrics
};

/// Distribution of one metric over the (head, step) values of a cell: exact sum, extremes, and counts in fixed
/// log-spaced bins (bin_of), so that parts merge exactly. Sums are taken in a fixed order inside a unit and then over
/// units in order.
struct Distribution {
  std::uint64_t count = 0;
  double sum = 0, min = 0, max = 0;
  std::vector<std::pair<std::int32_t, std::uint64_t>> bins;  // ascending bin numbers

  void add(double value);  // NaN is ignored
  void finish();           // sorts and joins bins; called after the last add
  void merge(const Distribution& other);
  /// Quantile from the bins (lower edge of the bin's middle value), q in [0, 1]; NaN when empty.
  double quantile(double q) const;
  static std::int32_t bin_of(double value);
  static double bin_value(std::int32_t bin);
};

struct CellDistributions {
  std::uint32_t variant = 0, budget = 0;
  std::vector<Distribution> metrics;  // row metrics then layer metrics, as chosen
};

/// What the errors of one layer may do downstream, step by step, for one (variant, budget). The errors are delta = o' - o of
/// all heads of the layer. Vectors are empty where the trace lacks what they are computed from.
struct LayerEffect {
  std::uint32_t variant = 0, budget = 0;
  std::uint32_t samples = 0;
  double depth = 0;              // (the model's own layer number + 1) / number of its layers
  std::vector<float> response;   // [samples * steps] sum over heads of g.delta, g = recorded sensitivities
  std::vector<float> projected;  // [steps] |sum over heads of W_h delta_h|
  std::vector<float> relative;   // [steps] the same over the norm of the residual stream after this layer
};

struct Failure {
  std::uint32_t variant = 0;
  std::string message;
};

/// As recorded; keys or values of the policy's own; recorded ones that are read at other positions.
inline constexpr std::array<const char*, 3> kEntryStates{"recorded", "changed", "moved"};

/// Kept positions of one variant and budget in one layer, units one after the other.
struct KeptSet {
  std::uint32_t variant = 0, budget = 0;
  std::string unit;  // kv, query, layer
  std::vector<std::uint32_t> indices;   // ascending inside a unit
  std::vector<std::uint64_t> offsets;   // [units + 1]
  std::vector<std::uint32_t> evicted_at;  // decode-time policies: [units * (T + S)], else empty; see kNeverEvicted
  std::string entries = kEntryStates[0];  // what the cache holds at the kept positions
};

/// Per-step arrays of one row metric: mean over the group's query heads, [steps].
struct StepDetail {
  std::uint32_t kv_head = 0, variant = 0, budget = 0, metric = 0;  // metric = index into chosen row metrics
  std::vector<float> steps;
};

/// What one unit, a (trace, layer), hands on. Order of rows: KV head, variant, budget.
struct UnitResult {
  std::uint32_t trace = 0, layer = 0;  // layer = the model's own index
  std::vector<ResultRow> rows;
  std::vector<LayerRow> layer_rows;
  std::vector<CellDistributions> cells;  // variant, budget order
  std::vector<LayerEffect> effects;      // variant, budget order; none where the trace holds nothing of what metrics of a trace need
  std::vector<Failure> failures;
  std::vector<KeptSet> kept;
  std::vector<StepDetail> detail;
  std::vector<std::pair<std::string, double>> perf;  // seconds per stage, left out of comparisons
};

}  // namespace kvsim
