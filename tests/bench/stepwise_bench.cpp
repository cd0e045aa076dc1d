// Decode-time policies against the exact attention of the same steps: one layer of a trace, every policy at eight capacities.
//
//   kvsim trace synth --layers 1 --query-heads 9 --kv-heads 3 --head-dim 64 --prompt 4096 --decode 256 -o S.h5
//   stepwise_bench S.h5 [SPEC ...]
//
// Both sides use all threads that OpenMP has, in the same run. Exact attention is weights and outputs of all decode queries, in
// the precision that the replay needs, without ranks; `x exact` is everything, prefill, exact attention and ranks included. GFLOP/s counts
// what a step must multiply whatever the policy: 2 x held x value_dim per query head.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "kernels/error.h"
#include "policies/stepwise/stepwise_registry.h"
#include "sim/stepwise/stepwise_unit.h"
#include "sim/stepwise/tile_measure.h"
#include "traces/trace_reader.h"

namespace {

using namespace kvsim;
using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

class HeldBlocks final : public BlockSource {
 public:
  HeldBlocks(const TraceReader& reader, const BlockRequest& request) : reader_(reader), request_(request) {}
  HeadBlock next() override { return reader_.read_head(0, next_++, request_); }

 private:
  const TraceReader& reader_;
  BlockRequest request_;
  std::uint32_t next_ = 0;
};

struct Measured {
  double prefill = 0, exact = 0, steps = 0, held = 0;  // exact: with ranks; held: mean resident tokens over heads and capacities
  double total() const { return prefill + exact + steps; }
};

Measured run(const TraceReader& reader, const std::vector<const Variant*>& variants, const std::vector<BudgetPoint>& budgets) {
  const TraceInfo& info = reader.info();
  UnitSettings settings;
  settings.variants = variants;
  settings.budgets = budgets;
  for (const MetricInfo& metric : all_metrics())
    if (metric.level == MetricInfo::Level::row) settings.metrics.emplace_back(metric.name);
  settings.memory.step_chunk = info.decode_len;
  settings.fail_fast = true;
  HeldBlocks source(reader, stepwise_block_request(variants, info, info.layers[0], false));
  const LayerContext layer = make_layer_context(info, 0);
  const UnitResult result = replay_stepwise_unit(layer, settings, {}, source);
  Measured measured;
  for (const auto& [name, value] : result.perf) {
    if (name == "prefill_s") measured.prefill = value;
    if (name == "exact_s") measured.exact = value;
    if (name == "stepwise_s") measured.steps = value;
  }
  for (const ResultRow& row : result.rows) measured.held += row.resident_tokens / static_cast<double>(result.rows.size());
  return measured;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    fmt::print(stderr, "usage: stepwise_bench TRACE [SPEC ...]\n");
    return 2;
  }
  const TraceReader reader = TraceReader::open(argv[1]);
  const TraceInfo& info = reader.info();
  const LayerContext layer = make_layer_context(info, 0);
  const LayerGeometry& g = layer.geometry;
  std::vector<std::string> specs(argv + 2, argv + argc);
  if (specs.empty())
    specs = {"decode:streaming_llm", "decode:streaming_llm(sinks=16)", "decode:h2o", "decode:h2o(recent=0.25)", "decode:h2o(unit=query)",
             "decode:tova", "decode:tova(newest=true)", "decode:scissorhands", "decode:vatp", "decode:corm(cap=true)",
             "decode:decoding(score=knorm,every=16,prompt_end=true)", "decode:decoding(score=snapkv(window=16),every=16,prompt_end=true)"};
  std::vector<Variant> variants;
  for (const std::string& text : specs) {
    Variant variant;
    variant.stepwise = bind_stepwise_policy(parse_specs(text).front());
    struct NoFiles final : Resources {
      const ExternalArray& array(const std::string& file, const std::string&) override { throw UserError("no file {}", file); }
    } none;
    variant.stepwise->prepare(none);
    variant.entry.spec = canonical_spec(*variant.stepwise);
    variants.push_back(std::move(variant));
  }
  std::vector<BudgetPoint> budgets;
  for (std::uint32_t tokens = 64; budgets.size() < 8; tokens *= 2) budgets.push_back({fmt::format("{}", tokens), std::min<std::uint32_t>(tokens, static_cast<std::uint32_t>(g.prompt))});

  std::vector<HeadBlock> blocks;
  for (std::uint32_t kv = 0; kv < g.kv_heads; ++kv) blocks.push_back(reader.read_head(0, kv, {}));
  std::vector<double> exact;
  for (int i = 0; i < 5; ++i) {
    const Clock::time_point start = Clock::now();
    for (const HeadBlock& block : blocks) const ExactSteps one(block, layer, {0, g.decode}, false);
    exact.push_back(seconds(start));
  }
  std::sort(exact.begin(), exact.end());
  const double baseline = exact[exact.size() / 2];
  fmt::print("{} threads, prompt {}, {} steps, {} query heads; exact attention of one layer {:.1f} ms\n", omp_get_max_threads(), g.prompt,
             g.decode, g.kv_heads * g.group, baseline * 1e3);
  fmt::print("{:<62} {:>10} {:>10} {:>10} {:>8} {:>12}\n", "policy x 8 capacities", "prefill ms", "steps ms", "x exact", "held", "GFLOP/s");
  std::vector<const Variant*> all;
  for (const Variant& variant : variants) {
    const Measured m = run(reader, {&variant}, budgets);
    // What the numerators take: per step and query head 2 x held x value_dim.
    const double flops = 2.0 * m.held * static_cast<double>(budgets.size() * g.value_dim * g.kv_heads * g.group * g.decode);
    fmt::print("{:<62} {:>10.1f} {:>10.1f} {:>10.2f} {:>8.0f} {:>12.1f}\n", variant.entry.spec.substr(0, 62), m.prefill * 1e3, m.steps * 1e3,
               m.total() / baseline, m.held, flops / m.steps * 1e-9);
    std::fflush(stdout);
    all.push_back(&variant);
  }
  const Measured together = run(reader, all, budgets);
  fmt::print("{:<62} {:>10.1f} {:>10.1f} {:>10.2f}   (goal: at most 60 for 12 policies)\n", fmt::format("all {} together", all.size()),
             together.prefill * 1e3, together.steps * 1e3, together.total() / baseline);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "stepwise_bench: {}\n", error.what());
  return 2;
}
