// Replays one unit, a layer of a trace: all variants, all budgets, all heads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sim/exact_steps.h"
#include "sim/results.h"
#include "sim/selection.h"
#include "traces/trace.h"
#include "traces/trace_reader.h"

namespace kvsim {

/// Hands out the KV heads of the unit, 0 .. H-1, as often as UnitSettings::passes() says.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  virtual HeadBlock next() = 0;
};

/// How a unit is cut to fit into memory. Results do not depend on it.
struct UnitMemory {
  bool hold = true;               // all heads of the layer stay in memory between scoring and measuring
  std::size_t step_chunk = 0;     // decode steps whose weights are held at once; a multiple of kStepBlock, or all
  std::size_t variant_batch = 0;  // variants scored and measured together
  std::uint64_t bytes = 0;        // estimated peak
  /// How often the heads are read: twice per batch, or once when they are held.
  std::size_t passes(std::size_t variants) const { return hold ? 1 : 2 * ((variants + variant_batch - 1) / variant_batch); }
};

/// What the layers of a trace told a model-wide variant before any of them is allocated.
struct ModelSummaries {
  std::vector<std::vector<float>> layers;  // what Policy::summarise gave, recorded layers in ascending order
  std::string failure;                     // why the variant failed on one of them, else empty
};

/// What is measured on a unit.
struct UnitSettings {
  std::vector<const Variant*> variants;
  /// Per variant, null for those that are not model-wide; may be empty where none is, or where this layer is all there is.
  std::vector<const ModelSummaries*> summaries;
  std::vector<BudgetPoint> budgets;  // ascending
  std::vector<std::string> metrics;  // chosen names, in registered order
  bool save_kept = false;
  bool detail = false;
  bool fail_fast = false;
  UnitMemory memory;
  Device* device = nullptr;  // that computes what it can; null = the CPU does all
};

/// Chosen metric names by level, in registered order.
std::vector<std::string> metrics_of_level(std::span<const std::string> chosen, MetricInfo::Level level);

/// Geometry, logit rule, evidence of the layer.
LayerContext make_layer_context(const TraceInfo& trace, std::size_t layer_ordinal);

/// Why `policy` cannot run on this layer, with the kvsim-record option that would help; empty when it can.
std::string missing_need(const Policy& policy, const TraceInfo& trace, const LayerInfo& layer);

/// What the metrics read of every head, where the layer holds it: output projections, sensitivities.
BlockRequest metrics_request(const LayerInfo& layer, std::span<const std::string> metrics);

/// Union of what the variants and the metrics read.
BlockRequest block_request(std::span<const Variant* const> variants, const TraceInfo& trace, const LayerInfo& layer,
                           std::span<const std::string> metrics);

/// Fits a unit into `limit` bytes, and into the memory of `device` where it is not null. Throws UserError with the number
/// needed when nothing fits.
UnitMemory plan_memory(const LayerContext& layer, const BlockRequest& request, std::span<const Variant* const> variants,
                       std::size_t budgets, std::span<const std::string> metrics, std::size_t hidden, int threads, std::uint64_t limit,
                       const Device* device = nullptr);

/// Runs the unit; variants and budgets are numbered as in the settings. A variant that throws UserError becomes a failure and the others go on (unless fail_fast).
UnitResult replay_unit(const LayerContext& layer, const UnitSettings& settings, BlockSource& source);

/// Scores the unit with its variants, all model-wide, and appends a layer to the summaries of each [variants]. The heads
/// come once for every batch of variants. A variant that throws UserError gets a failure and is left out from then on.
void add_summaries(const LayerContext& layer, const UnitSettings& settings, BlockSource& source, std::span<ModelSummaries> summaries);

}  // namespace kvsim
