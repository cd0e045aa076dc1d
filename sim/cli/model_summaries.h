// Scores all layers of a trace for the policies that must see the whole model before any layer is allocated.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "sim/cli/run_setup.h"

namespace kvsim {

/// Summaries of the model-wide variants of a run, one trace at a time. They depend on the trace, the variant and the
/// budgets alone, so every shard and every resumed run computes the same ones anew.
class SummaryStore {
 public:
  explicit SummaryStore(const PreparedRun& run) : run_(run) {}

  /// Announces that `variants` will be replayed at `budgets` on a trace; the model-wide ones among them count.
  void announce(std::size_t trace, const std::vector<std::uint32_t>& variants, const std::vector<std::uint32_t>& budgets);
  /// Layers that load() will score, over all traces.
  std::size_t layers() const;
  /// Makes the summaries of a trace, unless it is the one that is held, and drops those of the trace before. Calls
  /// `layer_done` after every layer; false from it stops the work, and load returns false.
  bool load(std::size_t trace, const std::function<bool()>& layer_done);
  /// One entry per variant, null where it is not model-wide; empty when none is.
  std::vector<const ModelSummaries*> of(const std::vector<std::uint32_t>& variants, const std::vector<std::uint32_t>& budgets) const;

 private:
  using Budgets = std::vector<std::uint32_t>;
  using Wanted = std::map<Budgets, std::set<std::uint32_t>>;  // variants that are replayed at these budgets

  const PreparedRun& run_;
  std::map<std::size_t, Wanted> wanted_;  // by trace
  std::size_t held_ = static_cast<std::size_t>(-1);
  std::map<std::pair<Budgets, std::uint32_t>, ModelSummaries> summaries_;  // of the trace that is held
};

/// Model-wide variants among `variants`.
std::vector<std::uint32_t> model_wide_variants(const PreparedRun& run, const std::vector<std::uint32_t>& variants);

/// Memory of a layer's part of the pass.
UnitMemory plan_summaries(const PreparedRun& run, std::size_t trace, std::size_t layer_ordinal,
                          const std::vector<std::uint32_t>& variants, std::size_t budgets);

}  // namespace kvsim
