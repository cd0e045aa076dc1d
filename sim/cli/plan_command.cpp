// kvsim plan: what a run would do, with estimates from a short measurement of this machine.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>

#include "kernels/philox.h"
#include "kernels/replay.h"
#include "sim/cli/model_summaries.h"
#include "sim/cli/options.h"
#include "sim/cli/run_setup.h"
#include "sim/stepwise/stepwise_unit.h"

namespace kvsim {
namespace {

/// Multiply-adds per second of the curve kernel on one core, measured on a small head.
double measure_rate() {
  constexpr std::size_t kTokens = 2048, kRows = 192, kDim = 64;
  Matrix<float> weights(kTokens, kRows, kRowPad), values(kTokens, kDim), exact(kDim, kRows, kRowPad), tail(kDim, kRows, kRowPad);
  Philox random(1, 1);
  for (std::size_t i = 0; i < kTokens; ++i) {
    for (std::size_t r = 0; r < kRows; ++r) weights(i, r) = static_cast<float>(random.next_double() / kTokens);
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

/// Work beside the products (scoring, sorting, ranks, overlaps, writing), as a share of them; from benchmark runs.
constexpr double kOverhead = 1.6;

void print_variants(const PreparedRun& run) {
  for (std::uint32_t v = 0; v < run.variants.size(); ++v) {
    const VariantEntry& entry = run.variants[v].entry;
    std::string note = entry.nested || run.variants[v].policy ? "one pass for all budgets" : "step by step, a pass per budget";
    if (entry.automatic) note += ", reference";
    for (const Refusal& refusal : run.record.refusals)
      if (refusal.variant == v) note = "refused: " + refusal.message;
    fmt::print("  {}  {}\n", entry.spec, note);
  }
}

/// Layers of the traces of this shard that are scored ahead; adds what reading them costs.
std::uint64_t add_layers_ahead(const PreparedRun& run, const std::vector<std::size_t>& mine, std::uint64_t& bytes, std::uint64_t& memory) {
  std::set<std::size_t> traces;
  for (const std::size_t u : mine) traces.insert(run.units[u].trace);
  std::uint64_t layers = 0;
  for (const std::size_t t : traces) {
    const std::vector<std::uint32_t> wide = model_wide_variants(run, run.served(static_cast<std::uint32_t>(t)));
    const TraceInfo& info = run.traces[t].info();
    for (std::size_t l = 0; l < info.layers.size() && !wide.empty(); ++l) {
      const UnitMemory plan = plan_summaries(run, t, l, wide, run.record.description.traces[t].budgets.size());
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
  const PreparedRun run = prepare_run(std::move(*options));
  const RunDescription& description = run.record.description;

  std::uint64_t bytes = 0, memory = 0;
  double cost = 0;
  bool streamed = false;
  const std::vector<std::size_t> mine = units_of_shard(run.units, run.options.shard, run.options.shards);
  for (const std::size_t u : mine) {
    const UnitPlan& unit = run.units[u];
    const TraceInfo& info = run.traces[unit.trace].info();
    std::vector<const Variant*> variants, stepwise;
    for (const std::uint32_t v : run.served(static_cast<std::uint32_t>(unit.trace)))
      (run.variants[v].stepwise ? stepwise : variants).push_back(&run.variants[v]);
    const std::size_t hidden = info.layers[unit.layer_ordinal].hidden_size;
    if (!stepwise.empty()) {
      const LayerInfo& layer = info.layers[unit.layer_ordinal];
      const BlockRequest request = stepwise_block_request(stepwise, info, layer, description.metrics);
      memory = std::max(memory, plan_stepwise_memory(make_layer_context(info, unit.layer_ordinal), request, stepwise,
                                                     description.traces[unit.trace].budgets.size(), hidden, run.options.threads, run.options.memory).bytes);
      bytes += unit.bytes;
      if (variants.empty()) {
        cost += unit.cost;
        continue;
      }
    }
    const BlockRequest request = block_request(variants, info, info.layers[unit.layer_ordinal], description.metrics);
    const UnitMemory plan = plan_memory(make_layer_context(info, unit.layer_ordinal), request, variants,
                                        description.traces[unit.trace].budgets.size(), description.metrics, hidden, run.options.threads, run.options.memory);
    bytes += unit.bytes * plan.passes(variants.size());
    memory = std::max(memory, plan.bytes);
    streamed |= !plan.hold;
    cost += unit.cost * (plan.hold ? 1.0 : 1.5);
  }
  const std::uint64_t ahead = add_layers_ahead(run, mine, bytes, memory);
  std::size_t cells = 0;
  for (std::uint32_t t = 0; t < run.traces.size(); ++t) cells += run.served(t).size() * description.traces[t].budgets.size();
  const double seconds = cost / measure_rate() / run.options.threads * kOverhead;

  fmt::print("variants  {} ({} automatic references)\n", run.variants.size(),
             std::count_if(run.variants.begin(), run.variants.end(), [](const Variant& v) { return v.entry.automatic; }));
  if (run.options.print_variants || run.variants.size() <= 40) print_variants(run);
  for (const TraceEntry& trace : description.traces) {
    fmt::print("trace     {}: {} layers, {} KV heads, prompt {}, {} decode steps\n", trace.name, trace.layers, trace.kv_heads, trace.prompt, trace.decode);
    fmt::print("budgets   {}:", trace.budgets.size());
    for (std::size_t b = 0; b < trace.budgets.size() && b < 24; ++b)
      fmt::print(" {}", trace.budgets[b].request.back() == '%' ? fmt::format("{}={}", trace.budgets[b].request, trace.budgets[b].tokens) : trace.budgets[b].request);
    fmt::print("{}\n", trace.budgets.size() > 24 ? " ..." : "");
  }
  fmt::print("cells     {} (variants x budgets)\n", cells);
  fmt::print("units     {} (layers of traces){}\n", mine.size(), run.options.shards > 1 ? fmt::format(" of {} in this shard", run.units.size()) : "");
  fmt::print("read      {}{}\n", human_bytes(bytes), streamed ? ", some layers more than once: they do not fit into --memory" : "");
  if (ahead > 0)
    fmt::print("ahead     {} layers are scored before the first is measured, in every shard: some policies share budget over all of them\n", ahead);
  fmt::print("memory    about {} of {}\n", human_bytes(memory), human_bytes(run.options.memory));
  fmt::print("time      about {} on {} threads (estimated from a short measurement)\n", human_seconds(seconds), run.options.threads);
  for (const Refusal& refusal : run.record.refusals)
    fmt::print("refused   {} on {}: {}\n", run.variants[refusal.variant].entry.spec, description.traces[refusal.trace].name, refusal.message);
  return run.record.refusals.empty() ? kDone : kSomeRefused;
}

}  // namespace kvsim
