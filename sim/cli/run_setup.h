// From options to a plan: opens the traces, binds the policies, matches needs with what was recorded.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "analysis/run_record.h"
#include "sim/cli/device_choice.h"
#include "sim/cli/run_options.h"
#include "sim/unit.h"
#include "traces/trace_reader.h"

namespace kvsim {

/// Reads arrays of external scores once per file and dataset.
class FileResources final : public Resources {
 public:
  const ExternalArray& array(const std::string& file, const std::string& dataset) override;

 private:
  std::map<std::pair<std::string, std::string>, ExternalArray> arrays_;
};

/// A unit of the plan with what it needs.
struct UnitPlan {
  UnitId id;
  std::size_t trace = 0, layer_ordinal = 0;
  double cost = 0;  // multiply-adds, to balance shards and to estimate
  std::uint64_t bytes = 0;  // of tensors to read
};

/// Everything a run knows before it starts.
struct PreparedRun {
  RunOptions options;
  FileResources resources;
  std::vector<TraceReader> traces;
  std::vector<Variant> variants;
  RunRecord record;  // units of all shards
  std::vector<UnitPlan> units;  // in the order of record.units
  std::string ini;
  DeviceChoice device_choice;
  std::vector<std::unique_ptr<Device>> devices;  // streams of work on GPUs, opened by who runs; empty = the CPU alone

  std::vector<const Variant*> pointers(std::span<const std::uint32_t> of_variants) const;
  bool refused(std::uint32_t trace, std::uint32_t variant) const;
  /// Variants that the trace can serve.
  std::vector<std::uint32_t> served(std::uint32_t trace) const;
};

/// Throws UserError for anything that cannot run; refusals of single variants are in the record.
PreparedRun prepare_run(RunOptions options);

/// The run that holds both what the folder's record says and what `now` adds (--extend).
PreparedRun prepare_extended(PreparedRun now, const RunRecord& before);

/// Deals units, sorted by cost, snake-wise to shards: indices into `units` of this shard, ascending. Depends on the plan
/// and the number of shards only.
std::vector<std::size_t> units_of_shard(const std::vector<UnitPlan>& units, std::uint32_t shard, std::uint32_t shards);

/// Threads of one worker: all, or an equal share of them for every stream of the GPUs.
int threads_of_worker(const PreparedRun& run);

/// Version, compiler, processor, device and so on of this program and machine.
Provenance provenance(const RunOptions& options, const std::string& ini, const DeviceChoice& device);

}  // namespace kvsim
