// Planning of what a run still has to do.
#include "sim/cli/jobs.h"

#include <algorithm>
#include <numeric>

#include "kernels/error.h"
#include "sim/stepwise/stepwise_unit.h"

namespace kvsim {
namespace {

/// Workers of a run: the streams of its GPUs, or one.
std::size_t worker_count(const PreparedRun& run) { return std::max<std::size_t>(run.devices.size(), 1); }

/// The stream with the least memory, for which every job is planned; null without GPUs.
const Device* smallest_device(const PreparedRun& run) {
  if (run.devices.empty()) return nullptr;
  return std::min_element(run.devices.begin(), run.devices.end(),
                          [](const auto& a, const auto& b) { return a->memory() < b->memory(); })
      ->get();
}

/// Results of a run that nobody wanted on a GPU may come from the CPU.
void fall_back_to_cpu(PreparedRun& run, const std::string& why) {
  run.devices.clear();
  run.device_choice = choose_device("cpu");
  run.device_choice.why = why;
  Provenance& provenance = run.record.description.provenance;
  provenance.device = run.device_choice.name;
  provenance.instruction_path = run.device_choice.path;
}

/// Fits a job into the memory that a worker has, on the host and on its device.
void plan_job(const PreparedRun& run, Job& job) {
  const TraceInfo& info = run.traces[job.unit.trace].info();
  const std::vector<const Variant*> variants = run.pointers(job.variants);
  const std::size_t hidden = info.layers[job.unit.layer_ordinal].hidden_size;
  const std::uint64_t memory_limit = run.options.memory / worker_count(run);
  const int threads = threads_of_worker(run);
  if (!variants.empty() && variants.front()->stepwise) {
    const LayerContext layer = make_layer_context(info, job.unit.layer_ordinal);
    job.request = stepwise_block_request(variants, info, info.layers[job.unit.layer_ordinal],
                                         run.record.description.metrics);
    const StepwiseMemory memory =
        plan_stepwise_memory(layer, job.request, variants, job.budgets.size(), hidden, threads, memory_limit);
    job.memory = {true, memory.step_chunk, variants.size(), memory.bytes};
    return;
  }
  job.request =
      block_request(variants, info, info.layers[job.unit.layer_ordinal], run.record.description.metrics);
  job.memory =
      plan_memory(make_layer_context(info, job.unit.layer_ordinal), job.request, variants, job.budgets.size(),
                  run.record.description.metrics, hidden, threads, memory_limit, smallest_device(run));
}

}  // namespace

std::vector<Job> jobs_of_unit(const PreparedRun& run, const UnitPlan& unit) {
  std::vector<Job> jobs;
  for (const bool stepwise : {false, true}) {
    Job job{unit, {}, {}, {}, {}};
    for (const std::uint32_t v : run.served(static_cast<std::uint32_t>(unit.trace)))
      if ((run.variants[v].stepwise != nullptr) == stepwise) job.variants.push_back(v);
    job.budgets.resize(run.record.description.traces[unit.trace].budgets.size());
    std::iota(job.budgets.begin(), job.budgets.end(), 0u);
    if (job.variants.empty()) continue;
    plan_job(run, job);
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void refuse_other_devices(const PreparedRun& run, const std::vector<PartInfo>& parts) {
  const auto of_gpu = [](const std::string& path) { return path.find("(sm_") != std::string::npos; };
  for (const PartInfo& part : parts) {
    if (part.state != PartInfo::State::valid || part.instruction_path == run.device_choice.path) continue;
    if (of_gpu(part.instruction_path) || of_gpu(run.device_choice.path))
      throw UserError(
          "--out {} holds parts made on {}, and this run would go on with {}: choose --device so that they "
          "agree, "
          "or another folder",
          run.options.out, part.instruction_path, run.device_choice.path);
  }
}

void open_devices(PreparedRun& run) {
  if (!run.device_choice.on_gpu()) return;
  // A worker for each, which is a thread at least.
  constexpr std::size_t kMostStreams = 4;
  const std::size_t gpus = run.device_choice.gpus.size(),
                    threads = static_cast<std::size_t>(run.options.threads);
  for (std::size_t streams = std::clamp<std::size_t>(threads / gpus, 1, kMostStreams); streams > 0;
       streams /= 2) {
    run.devices.clear();  // their memory must be free before it is shared anew
    run.devices = open_streams(run.device_choice, streams);
    const auto is_held = [&](const UnitPlan& unit) {
      const std::vector<Job> jobs = jobs_of_unit(run, unit);
      return std::all_of(jobs.begin(), jobs.end(), [](const Job& job) { return job.memory.hold; });
    };
    try {
      if (std::all_of(run.units.begin(), run.units.end(), is_held)) return;
    } catch (const UserError& error) {
      if (streams > 1) continue;
      if (run.options.device != "auto") throw;
      fall_back_to_cpu(run, error.what());
    }
  }
}

std::vector<Job> remaining_jobs(const PreparedRun& run, const std::vector<PartInfo>& parts) {
  const std::map<UnitId, std::vector<CellId>> missing = missing_cells(run.record, parts);
  std::vector<Job> jobs;
  for (const std::size_t u : units_of_shard(run.units, run.options.shard, run.options.shards)) {
    const auto found = missing.find(run.units[u].id);
    if (found == missing.end()) continue;
    std::map<std::uint32_t, std::vector<std::uint32_t>> budgets_of_variant;
    for (const CellId& cell : found->second) budgets_of_variant[cell.variant].push_back(cell.budget);
    const std::size_t first = jobs.size();
    for (const auto& [variant, budgets] : budgets_of_variant) {
      const bool stepwise = run.variants[variant].stepwise != nullptr;
      const auto same =
          std::find_if(jobs.begin() + static_cast<std::ptrdiff_t>(first), jobs.end(),
                       [&, &wanted = budgets](const Job& job) {
                         return job.budgets == wanted &&
                                (run.variants[job.variants.front()].stepwise != nullptr) == stepwise;
                       });
      if (same != jobs.end()) {
        same->variants.push_back(variant);
      } else {
        jobs.push_back({run.units[u], {variant}, budgets, {}, {}});
      }
    }
    for (std::size_t j = first; j < jobs.size(); ++j) plan_job(run, jobs[j]);
  }
  return jobs;
}

}  // namespace kvsim
