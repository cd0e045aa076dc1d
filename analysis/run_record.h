// What a run folder says about itself: the plan of the whole run, so that it can be resumed, extended and
// merged.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sim/results.h"

namespace kvsim {

/// A unit of work: index into RunDescription::traces, and the model's own layer index.
struct UnitId {
  std::uint32_t trace = 0, layer = 0;
  friend auto operator<=>(const UnitId&, const UnitId&) = default;
};

/// A variant that a trace cannot serve; its cells are not expected and stand under /failures.
struct Refusal {
  std::uint32_t trace = 0, variant = 0;
  std::string message;
};

/// The recorded first pass whose pseudo queries a variant reads at one budget.
struct PassUse {
  std::uint32_t trace = 0, variant = 0, budget_tokens = 0;
  std::string pass;
};

/// The plan of a whole run (of all its shards).
struct RunRecord {
  RunDescription description;
  std::vector<UnitId> units;  // traces as given, layers ascending
  std::vector<Refusal> refusals;
  std::vector<PassUse> passes;  // trace, variant, budget order; empty where no policy reads pseudo queries
};

/// Where a run folder keeps its record and its parts.
std::string record_path(const std::string& folder);
std::string parts_folder(const std::string& folder);

/// Writes the record into the run folder, durably; an older one is replaced. Throws UserError where two
/// traces have one name or two variants one label, and when the disk is full.
void write_description(const std::string& folder, const RunRecord& record);
bool has_description(const std::string& folder);
/// Throws UserError for a missing, damaged, foreign or newer record.
RunRecord read_description(const std::string& folder);

/// What keeps `now` from continuing `before`, one line per difference ("policy h2o() is new"); empty when the
/// same parts serve both. Paths, machine, threads and command line do not count.
std::vector<std::string> differences(const RunRecord& before, const RunRecord& now);

/// The plan that holds both: traces, variants and budgets of `before`, then those that only `now` has. Throws
/// UserError where they contradict each other (another trace of the same name, other metrics, another seed).
RunRecord extended(const RunRecord& before, const RunRecord& now);

/// Names of the chosen metrics of one level, in order. Throws UserError for a name this version does not
/// know.
std::vector<MetricInfo> chosen_metrics(const RunDescription& description, MetricInfo::Level level);

}  // namespace kvsim
