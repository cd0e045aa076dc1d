// What a run still has to do, unit by unit, and the doing of it.
#pragma once

#include <cstdint>
#include <vector>

#include "analysis/part_set.h"
#include "sim/cli/command.h"
#include "sim/cli/run_setup.h"

namespace kvsim {

/// Variants of a unit of one kind (prompt-time or decode-time) that lack the same budgets, so that nothing is computed twice.
struct Job {
  UnitPlan unit;
  std::vector<std::uint32_t> variants, budgets;  // indices into the description
  UnitMemory memory;
  BlockRequest request;
};

/// Fits a job into the memory that a worker has, on the host and on its device. Throws UserError where it does not fit.
void plan_job(const PreparedRun& run, Job& job);

/// What this shard still has to do, in the order of the units.
std::vector<Job> remaining_jobs(const PreparedRun& run, const std::vector<PartInfo>& parts);

struct Outcome {
  ExitCode stopped = kDone;
  std::size_t failed = 0;  // variants of units
};

/// Replays the jobs and writes a part for each. Without GPUs one job after the other, by all threads; with GPUs a worker per
/// stream of work (run.devices), each with its share of the threads. Results depend neither on workers nor on their order.
Outcome run_jobs(const PreparedRun& run, const std::vector<Job>& jobs);

}  // namespace kvsim
