// kvsim plan: what a run would do, with estimates from a short measurement of this machine.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <set>

#include "kernels/order.h"
#include "kernels/philox.h"
#include "kernels/replay.h"
#include "sim/cli/jobs.h"
#include "sim/cli/model_summaries.h"
#include "sim/cli/options.h"
#include "sim/cli/run_setup.h"

namespace kvsim {
namespace {

/// Multiply-adds per second of the curve kernel on one core, measured on a small head.
double measure_rate() {
  constexpr std::size_t kTokens = 2048, kRows = 192, kDim = 64;
  Matrix<float> weights(kTokens, kRows, kRowPad), values(kTokens, kDim), exact(kDim, kRows, kRowPad),
      tail(kDim, kRows, kRowPad);
  Philox random(1, 1);
  for (std::size_t i = 0; i < kTokens; ++i) {
    for (std::size_t r = 0; r < kRows; ++r)
      weights(i, r) = static_cast<float>(random.next_double() / kTokens);
    for (std::size_t c = 0; c < kDim; ++c) values(i, c) = static_cast<float>(random.next_double() - 0.5);
  }
  std::vector<TokenIndex> order(kTokens);
  std::iota(order.begin(), order.end(), 0u);
  std::vector<float> tail_weight(weights.stride(), 0.1f);
  const std::vector<std::uint32_t> counts{128, 512, kTokens};
  Matrix<float> error(counts.size(), kRows, kRowPad), recall(counts.size(), kRows, kRowPad);
  const CurveInput in{weights.view(), values.view(), order, counts, tail.view(), tail_weight, exact.view()};
  const auto start = std::chrono::steady_clock::now();
  double seconds = 0;
  std::size_t runs = 0;
  do {
    curve_pass(in, 0, kRows, {error.view(), recall.view(), nullptr, 0});
    ++runs;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  } while (seconds < 0.1);
  return static_cast<double>(runs * kTokens * kRows * kDim) / seconds;
}

/// The same of a device, on a head of a few thousand tokens.
double measure_rate(Device& device) {
  constexpr std::size_t kTokens = 8192, kRows = 1024, kDim = 128, kRankings = 16;
  Matrix<float> keys(kTokens + 1, kDim), values(kTokens + 1, kDim), queries(kRows, kDim);
  Philox random(1, 1);
  for (Matrix<float>* matrix : {&keys, &values, &queries})
    for (std::size_t i = 0; i < matrix->rows() * matrix->cols(); ++i)
      matrix->data()[i] = static_cast<float>(random.next_double() - 0.5);
  const std::vector<TokenIndex> position(kRows, kTokens);
  std::vector<TokenIndex> order(kTokens);
  std::iota(order.begin(), order.end(), 0u);
  const std::vector<std::uint32_t> counts{kTokens / 4, kTokens};
  const std::vector<Ranking> rankings(kRankings, Ranking{order, counts, {}, 0, kRows});
  const std::unique_ptr<DeviceHead> head =
      device.load({keys.view(), values.view(), queries.view(), position, kTokens, {}, DType::float32, true});
  double best = 0;
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    head->curves(rankings, false);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(kRankings * kTokens * kRows * kDim) / seconds);
  }
  return best;
}

/// Work beside the products (scoring, sorting, ranks, overlaps, writing), as a share of them; from benchmark
/// runs.
constexpr double kOverhead = 1.6;
constexpr double kDeviceOverhead = 2.0;
/// What the CPU does beside a GPU for a ranking (scoring, sorting, set metrics, adding up), in sorts of its
/// tokens; from a run.
constexpr double kSortsPerRanking = 16;

/// Seconds that one core takes to sort a token by its score.
double measure_sort() {
  constexpr std::size_t kTokens = 1 << 15, kTimes = 16;
  std::vector<float> score(kTokens);
  Philox random(1, 2);
  for (float& x : score) x = static_cast<float>(random.next_double());
  std::vector<TokenIndex> order(kTokens);
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < kTimes; ++i) sort_descending(score, order);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / (kTokens * kTimes);
}

/// Seconds of a run on GPUs: what they compute, or what the CPU does meanwhile, whichever is longer.
double device_seconds(const PreparedRun& run, const std::vector<std::size_t>& units, double cost) {
  double ranked = 0;  // tokens of all rankings
  for (const std::size_t u : units) {
    const TraceInfo& info = run.traces[run.units[u].trace].info();
    ranked += static_cast<double>(info.prompt_len) * info.num_kv_heads *
              static_cast<double>(run.served(static_cast<std::uint32_t>(run.units[u].trace)).size());
  }
  const double computed = cost * kDeviceOverhead / measure_rate(*run.devices.front()) /
                          static_cast<double>(run.device_choice.gpus.size());
  return std::max(computed, ranked * kSortsPerRanking * measure_sort() / run.options.threads);
}

void print_variants(const PreparedRun& run) {
  for (std::uint32_t v = 0; v < run.variants.size(); ++v) {
    const VariantEntry& entry = run.variants[v].entry;
    std::string note = entry.nested || run.variants[v].policy ? "one pass for all budgets"
                                                              : "step by step, a pass per budget";
    if (entry.automatic) note += ", reference";
    for (const Refusal& refusal : run.record.refusals)
      if (refusal.variant == v) note = "refused: " + refusal.message;
    fmt::print("  {}  {}\n", entry.spec, note);
  }
}

/// Layers of the traces of this shard that are scored ahead; adds what reading them costs.
std::uint64_t add_layers_ahead(const PreparedRun& run, const std::vector<std::size_t>& mine,
                               std::uint64_t& bytes, std::uint64_t& memory) {
  std::set<std::size_t> traces;
  for (const std::size_t u : mine) traces.insert(run.units[u].trace);
  std::uint64_t layers = 0;
  for (const std::size_t t : traces) {
    const std::vector<std::uint32_t> wide =
        model_wide_variants(run, run.served(static_cast<std::uint32_t>(t)));
    const TraceInfo& info = run.traces[t].info();
    for (std::size_t l = 0; l < info.layers.size() && !wide.empty(); ++l) {
      const UnitMemory plan =
          plan_summaries(run, t, l, wide, run.record.description.traces[t].budgets.size());
      bytes += info.layers[l].bytes * ((wide.size() + plan.variant_batch - 1) / plan.variant_batch);
      memory = std::max(memory, plan.bytes);
      ++layers;
    }
  }
  return layers;
}

}  // namespace

int plan_command(const Arguments& arguments) {
  std::optional<RunOptions> options = parse_run_options(arguments, false);
  if (!options) return kDone;
  omp_set_num_threads(options->threads);
  PreparedRun run = prepare_run(std::move(*options));
  open_devices(run);
  const RunDescription& description = run.record.description;

  std::uint64_t bytes = 0, memory = 0;
  double cost = 0, device_cost = 0;  // of what the CPU replays, and of what GPUs do
  bool streamed = false;
  const std::vector<std::size_t> mine = units_of_shard(run.units, run.options.shard, run.options.shards);
  for (const std::size_t u : mine) {
    const UnitPlan& unit = run.units[u];
    for (const Job& job : jobs_of_unit(run, unit)) {
      bytes += unit.bytes * job.memory.passes(job.variants.size());
      memory = std::max(memory, job.memory.bytes * std::max<std::size_t>(run.devices.size(), 1));
      streamed |= !job.memory.hold;
      const bool by_cpu = run.devices.empty() || run.variants[job.variants.front()].stepwise != nullptr;
      const double share = static_cast<double>(job.variants.size()) /
                           static_cast<double>(run.served(static_cast<std::uint32_t>(unit.trace)).size());
      (by_cpu ? cost : device_cost) += unit.cost * share * (job.memory.hold ? 1.0 : 1.5);
    }
  }
  const std::uint64_t ahead = add_layers_ahead(run, mine, bytes, memory);
  std::size_t cells = 0;
  for (std::uint32_t t = 0; t < run.traces.size(); ++t)
    cells += run.served(t).size() * description.traces[t].budgets.size();
  const std::string threads = fmt::format("{} threads", run.options.threads);
  const double seconds = (cost > 0 ? cost / measure_rate() / run.options.threads * kOverhead : 0.0) +
                         (device_cost > 0 ? device_seconds(run, mine, device_cost) : 0.0);

  fmt::print("variants  {} ({} automatic references)\n", run.variants.size(),
             std::count_if(run.variants.begin(), run.variants.end(),
                           [](const Variant& v) { return v.entry.automatic; }));
  if (run.options.print_variants || run.variants.size() <= 40) print_variants(run);
  for (const TraceEntry& trace : description.traces) {
    fmt::print("trace     {}: {} layers, {} KV heads, prompt {}, {} decode steps\n", trace.name, trace.layers,
               trace.kv_heads, trace.prompt, trace.decode);
    fmt::print("budgets   {}:", trace.budgets.size());
    for (std::size_t b = 0; b < trace.budgets.size() && b < 24; ++b)
      fmt::print(" {}", trace.budgets[b].request.back() == '%'
                            ? fmt::format("{}={}", trace.budgets[b].request, trace.budgets[b].tokens)
                            : trace.budgets[b].request);
    fmt::print("{}\n", trace.budgets.size() > 24 ? " ..." : "");
  }
  fmt::print("cells     {} (variants x budgets)\n", cells);
  fmt::print("units     {} (layers of traces){}\n", mine.size(),
             run.options.shards > 1 ? fmt::format(" of {} in this shard", run.units.size()) : "");
  fmt::print("read      {}{}\n", human_bytes(bytes),
             streamed ? ", some layers more than once: they do not fit into --memory" : "");
  if (ahead > 0)
    fmt::print(
        "ahead     {} layers are scored before the first is measured, in every shard: some policies share "
        "budget over all of them\n",
        ahead);
  fmt::print("memory    about {} of {}\n", human_bytes(memory), human_bytes(run.options.memory));
  fmt::print("time      about {} on {} (estimated from a short measurement)\n", human_seconds(seconds),
             run.devices.empty() ? threads : run.device_choice.name);
  for (const Refusal& refusal : run.record.refusals)
    fmt::print("refused   {} on {}: {}\n", run.variants[refusal.variant].entry.spec,
               description.traces[refusal.trace].name, refusal.message);
  return run.record.refusals.empty() ? kDone : kSomeRefused;
}

}  // namespace kvsim
