// kvsim run: replays what is still to do, unit by unit, and joins the parts.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "analysis/durable_file.h"
#include "analysis/part_set.h"
#include "analysis/result_store.h"
#include "kernels/error.h"
#include "kernels/replay.h"
#include "sim/cli/jobs.h"
#include "sim/cli/options.h"
#include "sim/cli/run_setup.h"
#include "sim/cli/stop_request.h"

namespace kvsim {
namespace {

/// Settings that a run keeps for good, as lines of run.ini that differ.
std::vector<std::string> switch_differences(const std::string& before, const std::string& now) {
  std::vector<std::string> changes;
  for (const char* name : {"save", "detail", "budget-scope"}) {
    const auto value = [&](const std::string& ini) {
      const std::size_t at = ini.find(fmt::format("\n{} = ", name));
      return at == std::string::npos ? std::string("not given") : ini.substr(at + 1, ini.find('\n', at + 1) - at - 1);
    };
    if (value(before) != value(now)) changes.push_back(fmt::format("{}: {} -> {}", name, value(before), value(now)));
  }
  return changes;
}

/// Makes the folder ready: a new one gets its record, one of the same run is continued, another run's is refused.
void claim_folder(PreparedRun& run) {
  const std::string& out = run.options.out;
  if (std::filesystem::exists(out) && !std::filesystem::is_directory(out)) throw UserError("--out {} is not a folder", out);
  if (!has_description(out)) {
    if (std::filesystem::exists(std::filesystem::path(out) / "results.h5"))
      throw UserError("--out {} holds results of another kind of run; choose another folder", out);
    make_folder(out);
  } else {
    const RunRecord before = read_description(out);
    std::vector<std::string> changes = differences(before, run.record);
    const std::vector<std::string> fixed = switch_differences(before.description.provenance.config, run.ini);
    if (!fixed.empty())
      throw UserError("--out {} holds a run with other settings; choose another folder. What differs:\n  {}", out, fmt::join(fixed, "\n  "));
    if (changes.empty()) return;
    if (!run.options.extend)
      throw UserError("--out {} holds another run; choose another folder, or --extend to add to it. What differs:\n  {}", out, fmt::join(changes, "\n  "));
    run = prepare_extended(std::move(run), before);
  }
  write_description(out, run.record);
  write_text_file((std::filesystem::path(out) / "run.ini").string(), run.ini);
}

void print_notes(const PreparedRun& run) {
  if (run.options.quiet) return;
  const DeviceChoice& device = run.device_choice;
  fmt::print(stderr, "device: {} ({} threads, {}){}\n", device.name, run.options.threads, instruction_path(),
             device.why.empty() ? std::string() : "; " + device.why);
  std::size_t no_op = 0, cells = 0;
  bool stepwise = false, in_blocks = false;
  for (const Variant& variant : run.variants) {
    stepwise |= variant.stepwise != nullptr;
    in_blocks |= variant.stepwise && variant.stepwise->schedule().block > 0;
  }
  if (in_blocks)
    fmt::print(stderr, "note: prefill in blocks is replayed open loop: its queries, keys and values are those of the full prompt\n");
  for (const TraceEntry& trace : run.record.description.traces)
    for (const BudgetPoint& budget : trace.budgets) {
      ++cells;
      no_op += budget.tokens >= trace.prompt + (stepwise ? trace.decode : 0) ? 1 : 0;
    }
  if (no_op > 0) fmt::print(stderr, "warning: {} of {} budgets hold the whole prompt, so nothing is evicted there\n", no_op, cells);
  for (const Refusal& refusal : run.record.refusals)
    fmt::print(stderr, "warning: {} is left out of {}: it {}\n", run.record.description.variants[refusal.variant].spec,
               run.record.description.traces[refusal.trace].name, refusal.message);
}

void check_size(const PreparedRun& run) {
  std::size_t cells = 0;
  for (std::uint32_t t = 0; t < run.traces.size(); ++t)
    cells += run.served(t).size() * run.record.description.traces[t].budgets.size();
  constexpr std::size_t kMany = 10000;
  if (cells > kMany && !run.options.yes)
    throw UserError("{} cells (variants x budgets) are more than {}: look at 'kvsim plan' with the same options, then add --yes", cells, kMany);
}

int finish(const PreparedRun& run, const Outcome& outcome) {
  const std::string& out = run.options.out;
  if (outcome.stopped != kDone) {
    fmt::print(stderr, "kvsim: {}; what is finished is safe in {}. To go on, give the same command again:\n  {}\n",
               StopRequest::reason(outcome.stopped), out, run.options.command_line);
    return outcome.stopped;
  }
  const PartSet parts = collect_parts({out});
  const std::size_t missing = parts.missing.size();
  if (missing > 0) {
    fmt::print(stderr, "shard {}/{} is done; {} of {} units are left to the others. When they are done: kvsim merge {}\n",
               run.options.shard + 1, run.options.shards, missing, run.units.size(), out);
  } else {
    merge_results(parts, {out}, out);
    if (!run.options.quiet) fmt::print("{}\n", (std::filesystem::path(out) / "results.h5").string());
  }
  const std::size_t refused = run.record.refusals.size();
  if (outcome.failed + refused > 0) {
    fmt::print(stderr, "kvsim: {} variants were refused and {} failed; /failures in the results says why\n", refused, outcome.failed);
    return kSomeRefused;
  }
  return kDone;
}

}  // namespace

int run_command(const Arguments& arguments) {
  std::optional<RunOptions> options = parse_run_options(arguments, true);
  if (!options) return kDone;
  omp_set_num_threads(options->threads);
  PreparedRun run = prepare_run(std::move(*options));
  check_size(run);
  open_devices(run);
  for (const UnitPlan& unit : run.units) jobs_of_unit(run, unit);  // refuses what does not fit before anything is written
  claim_folder(run);
  print_notes(run);
  const std::vector<PartInfo> parts = list_parts(run.options.out, run.record.description);
  refuse_other_devices(run, parts);
  for (const PartInfo& part : parts)
    if (part.state != PartInfo::State::valid) fmt::print(stderr, "warning: {} is done again: {}\n", part.path, part.problem);
  const std::vector<Job> jobs = remaining_jobs(run, parts);
  if (jobs.size() < run.units.size() && !run.options.quiet && run.options.shards == 1)
    fmt::print(stderr, "going on: {} units left of {}\n", jobs.size(), run.units.size());
  return finish(run, run_jobs(run, jobs));
}

}  // namespace kvsim
