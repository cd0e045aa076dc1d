// What a run still has to do, unit by unit, and the doing of it.
#pragma once

#include <cstdint>
#include <vector>

#include "analysis/part_set.h"
#include "sim/cli/command.h"
#include "sim/cli/run_setup.h"

namespace kvsim {

/// Variants of a unit of one kind (prompt-time or decode-time) that lack the same budgets, so that nothing is
/// computed twice.
struct Job {
  UnitPlan unit;
  std::vector<std::uint32_t> variants, budgets;  // indices into the description
  UnitMemory memory;
  BlockRequest request;
};

/// All variants and budgets of a unit, planned: prompt-time ones, then decode-time ones. Throws UserError
/// where a job does not fit into the memory that a worker has, on the host or on its device.
std::vector<Job> jobs_of_unit(const PreparedRun& run, const UnitPlan& unit);

/// Throws UserError where the folder holds parts of another device: their results differ from this run's in
/// their last bits, which the merge would refuse in the end.
void refuse_other_devices(const PreparedRun& run, const std::vector<PartInfo>& parts);

/// Opens the streams of work of the chosen GPUs: several on each, so that one computes while another waits
/// for the host, but so few that a layer still fits into a stream's share where it fits at all. Throws
/// UserError where a unit fits into no share; with --device auto the CPU does it all then.
void open_devices(PreparedRun& run);

/// What this shard still has to do, in the order of the units.
std::vector<Job> remaining_jobs(const PreparedRun& run, const std::vector<PartInfo>& parts);

struct Outcome {
  ExitCode stopped = kDone;
  std::size_t failed = 0;  // variants of units
};

/// Replays the jobs and writes a part for each. Without GPUs one job after the other, by all threads; with
/// GPUs a worker per stream of work (run.devices), each with its share of the threads. Results depend neither
/// on workers nor on their order.
Outcome run_jobs(const PreparedRun& run, const std::vector<Job>& jobs);

}  // namespace kvsim
