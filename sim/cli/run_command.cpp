// kvsim run: replays what is still to do, unit by unit, and joins the parts.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>

#include "analysis/durable_file.h"
#include "analysis/part_file.h"
#include "analysis/result_store.h"
#include "kernels/error.h"
#include "kernels/replay.h"
#include "sim/cli/model_summaries.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/run_setup.h"
#include "sim/cli/stop_request.h"
#include "sim/stepwise/stepwise_unit.h"

namespace kvsim {
namespace {

using Clock = std::chrono::steady_clock;

/// Variants of a unit of one kind (prompt-time or decode-time) that lack the same budgets, so that nothing is computed twice.
struct Job {
  UnitPlan unit;
  std::vector<std::uint32_t> variants, budgets;  // indices into the description
  UnitMemory memory;
  BlockRequest request;
};

/// Hands the heads of consecutive jobs of one trace from the reading thread.
class PrefetchedSource final : public BlockSource {
 public:
  PrefetchedSource(const TraceReader& reader, std::vector<BlockPrefetcher::Item> order, const BlockRequest& request, std::size_t depth)
      : prefetcher_(reader, std::move(order), request, depth) {}
  HeadBlock next() override { return prefetcher_.next(); }

 private:
  BlockPrefetcher prefetcher_;
};

std::string batch_name(const RunDescription& description, const Job& job) {
  std::string text;
  for (const std::uint32_t v : job.variants) text += description.variants[v].variant_id;
  for (const std::uint32_t b : job.budgets) text += "/" + description.traces[job.unit.trace].budgets[b].request;
  for (const std::string& metric : description.metrics) text += "," + metric;
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return fmt::format("{:016x}", hash);
}

std::vector<const Variant*> variants_of(const PreparedRun& run, const Job& job) {
  std::vector<const Variant*> list;
  for (const std::uint32_t v : job.variants) list.push_back(&run.variants[v]);
  return list;
}

void plan_job(const PreparedRun& run, Job& job) {
  const TraceInfo& info = run.traces[job.unit.trace].info();
  const std::vector<const Variant*> variants = variants_of(run, job);
  const std::size_t hidden = info.layers[job.unit.layer_ordinal].hidden_size;
  if (!variants.empty() && variants.front()->stepwise) {
    const LayerContext layer = make_layer_context(info, job.unit.layer_ordinal);
    job.request = stepwise_block_request(variants, info, info.layers[job.unit.layer_ordinal], run.record.description.metrics);
    const StepwiseMemory memory = plan_stepwise_memory(layer, job.request, variants, job.budgets.size(), hidden, run.options.threads, run.options.memory);
    job.memory = {true, memory.step_chunk, variants.size(), memory.bytes};
    return;
  }
  job.request = block_request(variants, info, info.layers[job.unit.layer_ordinal], run.record.description.metrics);
  job.memory = plan_memory(make_layer_context(info, job.unit.layer_ordinal), job.request, variants, job.budgets.size(), run.record.description.metrics, hidden,
                           run.options.threads, run.options.memory);
}

/// What this shard still has to do, in the order of the units.
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
      const auto same = std::find_if(jobs.begin() + static_cast<std::ptrdiff_t>(first), jobs.end(), [&, &wanted = budgets](const Job& job) {
        return job.budgets == wanted && (run.variants[job.variants.front()].stepwise != nullptr) == stepwise;
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

/// What the variants declared beside the tensors of heads.
StepwiseInputs read_inputs(const TraceReader& reader, std::size_t layer, std::span<const Variant* const> variants) {
  const TraceInfo& info = reader.info();
  StepNeed needs = StepNeed::none;
  for (const Variant* variant : variants) needs = needs | variant->stepwise->needs();
  StepwiseInputs inputs;
  if (has(needs, StepNeed::token_text)) {
    inputs.token_text = info.token_text;
    inputs.token_id = info.token_id;
  }
  if (has(needs, StepNeed::final_hidden)) inputs.final_hidden = reader.read_final_hidden(0, info.tokens());
  if (has(needs, StepNeed::hidden)) inputs.hidden = reader.read_hidden(layer, 0, info.tokens());
  if (has(needs, StepNeed::retention))
    for (std::size_t l = 0; l < info.layers.size(); ++l) inputs.retention.push_back(reader.read_retention(l));
  return inputs;
}

UnitResult run_job(const PreparedRun& run, const Job& job, const SummaryStore& summaries, BlockSource& source) {
  const RunDescription& description = run.record.description;
  UnitSettings settings;
  settings.variants = variants_of(run, job);
  settings.summaries = summaries.of(job.variants, job.budgets);
  for (const std::uint32_t b : job.budgets) settings.budgets.push_back(description.traces[job.unit.trace].budgets[b]);
  settings.metrics = description.metrics;
  settings.save_kept = run.options.save_kept;
  settings.detail = run.options.detail_steps;
  settings.fail_fast = run.options.fail_fast;
  settings.memory = job.memory;
  const LayerContext layer = make_layer_context(run.traces[job.unit.trace].info(), job.unit.layer_ordinal);
  UnitResult result = settings.variants.front()->stepwise
                          ? replay_stepwise_unit(layer, settings, read_inputs(run.traces[job.unit.trace], job.unit.layer_ordinal, settings.variants), source)
                          : replay_unit(layer, settings, source);
  result.trace = job.unit.id.trace;
  // The unit counted its own variants and budgets; results count those of the whole run.
  const auto renumber = [&](auto& items) {
    for (auto& item : items) {
      item.variant = job.variants[item.variant];
      item.budget = job.budgets[item.budget];
    }
  };
  renumber(result.rows);
  renumber(result.layer_rows);
  renumber(result.cells);
  renumber(result.effects);
  renumber(result.kept);
  renumber(result.detail);
  for (Failure& failure : result.failures) failure.variant = job.variants[failure.variant];
  return result;
}

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

/// A source that reads ahead for all jobs from `first` on that can share a reading thread.
std::unique_ptr<BlockSource> open_source(const PreparedRun& run, const std::vector<Job>& jobs, std::size_t first, std::size_t& last) {
  std::vector<BlockPrefetcher::Item> order;
  for (last = first; last < jobs.size(); ++last) {
    const Job& job = jobs[last];
    if (job.unit.trace != jobs[first].unit.trace || job.request != jobs[first].request ||
        job.memory.hold != jobs[first].memory.hold)
      break;
    const std::uint32_t heads = run.traces[job.unit.trace].info().num_kv_heads;
    for (std::size_t pass = 0; pass < job.memory.passes(job.variants.size()); ++pass)
      for (std::uint32_t kv = 0; kv < heads; ++kv) order.push_back({job.unit.layer_ordinal, kv});
  }
  const std::size_t depth = jobs[first].memory.hold ? 2 : 1;
  return std::make_unique<PrefetchedSource>(run.traces[jobs[first].unit.trace], std::move(order), jobs[first].request, depth);
}

struct Outcome {
  ExitCode stopped = kDone;
  std::size_t failed = 0;  // variants of units
};

Outcome run_jobs(const PreparedRun& run, const std::vector<Job>& jobs) {
  Outcome outcome;
  const StopRequest stop(run.options.time_limit);
  SummaryStore summaries(run);
  for (const Job& job : jobs) summaries.announce(job.unit.trace, job.variants, job.budgets);
  Progress progress("replay", jobs.size() + summaries.layers(), run.options.quiet);
  std::unique_ptr<BlockSource> source;
  std::size_t source_end = 0;
  double longest = 0;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    outcome.stopped = stop.asked(longest);
    if (outcome.stopped != kDone) break;
    const Clock::time_point start = Clock::now();
    if (i >= source_end) {
      source.reset();
      const bool scored = summaries.load(jobs[i].unit.trace, [&] {
        progress.advance();
        outcome.stopped = stop.asked(longest);
        return outcome.stopped == kDone;
      });
      if (!scored) break;
      source = open_source(run, jobs, i, source_end);
    }
    const UnitResult result = run_job(run, jobs[i], summaries, *source);
    write_part(run.options.out, result, run.record.description, batch_name(run.record.description, jobs[i]));
    outcome.failed += result.failures.size();
    if (outcome.failed > 0) progress.remark(fmt::format("{} failures", outcome.failed));
    progress.advance();
    longest = std::max(longest, std::chrono::duration<double>(Clock::now() - start).count());
  }
  progress.finish();
  return outcome;
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
  fmt::print(stderr, "device: cpu ({} threads, {}){}\n", run.options.threads, instruction_path(),
             run.options.device == "auto" ? "; this build has no CUDA backend" : "");
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
  const std::size_t missing = missing_cells(run.record, list_parts(out, run.record.description)).size();
  if (missing > 0) {
    fmt::print(stderr, "shard {}/{} is done; {} of {} units are left to the others. When they are done: kvsim merge {}\n",
               run.options.shard + 1, run.options.shards, missing, run.units.size(), out);
  } else {
    merge_results({out}, out);
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
  for (const UnitPlan& unit : run.units) {  // refuse before anything is written
    Job of_kind[2]{{unit, {}, {}, {}, {}}, {unit, {}, {}, {}, {}}};
    for (const std::uint32_t v : run.served(static_cast<std::uint32_t>(unit.trace))) of_kind[run.variants[v].stepwise ? 1 : 0].variants.push_back(v);
    for (Job& job : of_kind) {
      job.budgets.resize(run.record.description.traces[unit.trace].budgets.size());
      if (!job.variants.empty()) plan_job(run, job);
    }
  }
  claim_folder(run);
  print_notes(run);
  const std::vector<PartInfo> parts = list_parts(run.options.out, run.record.description);
  for (const PartInfo& part : parts)
    if (part.state != PartInfo::State::valid) fmt::print(stderr, "warning: {} is done again: {}\n", part.path, part.problem);
  const std::vector<Job> jobs = remaining_jobs(run, parts);
  if (jobs.size() < run.units.size() && !run.options.quiet && run.options.shards == 1)
    fmt::print(stderr, "going on: {} units left of {}\n", jobs.size(), run.units.size());
  return finish(run, run_jobs(run, jobs));
}

}  // namespace kvsim
