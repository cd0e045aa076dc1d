// Replays jobs, one after the other or on the streams of GPUs, and writes their parts.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

#include "analysis/part_file.h"
#include "kernels/error.h"
#include "sim/cli/jobs.h"
#include "sim/cli/model_summaries.h"
#include "sim/cli/progress.h"
#include "sim/cli/stop_request.h"
#include "sim/stepwise/stepwise_unit.h"

namespace kvsim {
namespace {

using Clock = std::chrono::steady_clock;

/// Hands the heads of consecutive jobs of one trace from the reading thread.
class PrefetchedSource final : public BlockSource {
 public:
  PrefetchedSource(const TraceReader& reader, std::vector<BlockPrefetcher::Item> order,
                   const BlockRequest& request, std::size_t depth)
      : prefetcher_(reader, std::move(order), request, depth) {}
  HeadBlock next() override { return prefetcher_.next(); }

 private:
  BlockPrefetcher prefetcher_;
};

std::string batch_name(const RunDescription& description, const Job& job) {
  std::string text;
  for (const std::uint32_t v : job.variants) text += description.variants[v].variant_id;
  for (const std::uint32_t b : job.budgets)
    text += "/" + description.traces[job.unit.trace].budgets[b].request;
  for (const std::string& metric : description.metrics) text += "," + metric;
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return fmt::format("{:016x}", hash);
}

/// What the variants declared beside the tensors of heads.
StepwiseInputs read_inputs(const TraceReader& reader, std::size_t layer,
                           std::span<const Variant* const> variants) {
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

UnitResult run_job(const PreparedRun& run, const Job& job, const SummaryStore& summaries, BlockSource& source,
                   Device* device) {
  const RunDescription& description = run.record.description;
  UnitSettings settings;
  settings.variants = run.pointers(job.variants);
  settings.summaries = summaries.of(job.variants, job.budgets);
  for (const std::uint32_t b : job.budgets)
    settings.budgets.push_back(description.traces[job.unit.trace].budgets[b]);
  settings.metrics = description.metrics;
  settings.save_kept = run.options.save_kept;
  settings.detail = run.options.detail_steps;
  settings.fail_fast = run.options.fail_fast;
  settings.memory = job.memory;
  settings.device = device;
  const LayerContext layer = make_layer_context(run.traces[job.unit.trace].info(), job.unit.layer_ordinal);
  UnitResult result =
      settings.variants.front()->stepwise
          ? replay_stepwise_unit(
                layer, settings,
                read_inputs(run.traces[job.unit.trace], job.unit.layer_ordinal, settings.variants), source)
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

/// A source that reads ahead for all of a worker's jobs from `first` on that can share a reading thread.
std::unique_ptr<BlockSource> open_source(const PreparedRun& run, std::span<const Job* const> jobs,
                                         std::size_t first, std::size_t& last) {
  std::vector<BlockPrefetcher::Item> order;
  for (last = first; last < jobs.size(); ++last) {
    const Job& job = *jobs[last];
    if (job.unit.trace != jobs[first]->unit.trace || job.request != jobs[first]->request ||
        job.memory.hold != jobs[first]->memory.hold)
      break;
    const std::uint32_t heads = run.traces[job.unit.trace].info().num_kv_heads;
    for (std::size_t pass = 0; pass < job.memory.passes(job.variants.size()); ++pass)
      for (std::uint32_t kv = 0; kv < heads; ++kv) order.push_back({job.unit.layer_ordinal, kv});
  }
  const std::size_t depth = jobs[first]->memory.hold ? 2 : 1;
  return std::make_unique<PrefetchedSource>(run.traces[jobs[first]->unit.trace], std::move(order),
                                            jobs[first]->request, depth);
}

/// The jobs of one trace, dealt to workers in turn. The first failure stops all of them.
class Workers {
 public:
  Workers(const PreparedRun& run, std::span<const Job> jobs, const SummaryStore& summaries,
          const StopRequest& stop, Progress& progress, double& longest, Outcome& outcome)
      : run_(run),
        jobs_(jobs),
        summaries_(summaries),
        stop_(stop),
        progress_(progress),
        longest_(longest),
        outcome_(outcome) {}

  void run() {
    const std::size_t workers = std::clamp<std::size_t>(run_.devices.size(), 1, jobs_.size());
    if (workers == 1) {
      work(0, 1);
    } else {
      std::vector<std::jthread> threads;
      for (std::size_t w = 0; w < workers; ++w)
        threads.emplace_back([this, w, workers] {
          omp_set_num_threads(threads_of_worker(run_));
          work(w, workers);
        });
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void work(std::size_t worker, std::size_t workers) {
    // Jobs of either kind in turn: those of decode-time policies keep no GPU busy.
    std::vector<const Job*> mine;
    std::size_t dealt[2] = {0, 0};
    for (const Job& job : jobs_)
      if (dealt[is_stepwise(job) ? 1 : 0]++ % workers == worker) mine.push_back(&job);
    Device* const device = run_.devices.empty() ? nullptr : run_.devices[worker].get();
    try {
      std::unique_ptr<BlockSource> source;
      std::size_t source_end = 0;
      for (std::size_t i = 0; i < mine.size() && go_on(); ++i) {
        const Clock::time_point start = Clock::now();
        if (i >= source_end) {
          source.reset();
          source = open_source(run_, mine, i, source_end);
        }
        const UnitResult result = run_job(run_, *mine[i], summaries_, *source, device);
        write_part(run_.options.out, result, run_.record.description,
                   batch_name(run_.record.description, *mine[i]));
        done(result.failures.size(), std::chrono::duration<double>(Clock::now() - start).count());
      }
    } catch (...) {
      const std::scoped_lock lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  bool is_stepwise(const Job& job) const { return run_.variants[job.variants.front()].stepwise != nullptr; }

  bool go_on() {
    const std::scoped_lock lock(mutex_);
    if (failure_) return false;
    if (outcome_.stopped == kDone) outcome_.stopped = stop_.asked(longest_);
    return outcome_.stopped == kDone;
  }

  void done(std::size_t failures, double seconds) {
    const std::scoped_lock lock(mutex_);
    outcome_.failed += failures;
    if (outcome_.failed > 0) progress_.remark(fmt::format("{} failures", outcome_.failed));
    progress_.advance();
    longest_ = std::max(longest_, seconds);
  }

  const PreparedRun& run_;
  std::span<const Job> jobs_;
  const SummaryStore& summaries_;
  const StopRequest& stop_;
  Progress& progress_;
  double& longest_;  // seconds that a job took
  Outcome& outcome_;
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

Outcome run_jobs(const PreparedRun& run, const std::vector<Job>& jobs) {
  Outcome outcome;
  const StopRequest stop(run.options.time_limit);
  SummaryStore summaries(run);
  for (const Job& job : jobs) summaries.announce(job.unit.trace, job.variants, job.budgets);
  Progress progress("replay", jobs.size() + summaries.layers(), run.options.quiet);
  double longest = 0;
  for (std::size_t first = 0, last = 0; first < jobs.size() && outcome.stopped == kDone; first = last) {
    while (last < jobs.size() && jobs[last].unit.trace == jobs[first].unit.trace) ++last;
    outcome.stopped = stop.asked(longest);
    if (outcome.stopped != kDone) break;
    const bool scored = summaries.load(jobs[first].unit.trace, [&] {
      progress.advance();
      outcome.stopped = stop.asked(longest);
      return outcome.stopped == kDone;
    });
    if (!scored) break;
    Workers(run, std::span(jobs).subspan(first, last - first), summaries, stop, progress, longest, outcome)
        .run();
  }
  progress.finish();
  return outcome;
}

}  // namespace kvsim
