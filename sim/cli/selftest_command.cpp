// kvsim selftest: proves on this machine that results depend neither on threads, nor on memory, nor on the instruction set.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/instruction_path.h"
#include "kernels/philox.h"
#include "kernels/replay.h"
#include "policies/registry.h"
#include "sim/cli/options.h"
#include "sim/cli/run_setup.h"
#include "sim/unit.h"

namespace kvsim {
namespace {

constexpr std::size_t kPrompt = 700, kDecode = 40, kKvHeads = 2, kGroup = 3, kDim = 32;

/// Sum of four uniforms, centred: bell-shaped without the platform's logarithm.
float noise(Philox& random) {
  return static_cast<float>(random.next_double() + random.next_double() + random.next_double() + random.next_double() - 2.0);
}

/// A small layer with sinks and heavy hitters: some keys point where all queries look.
class SyntheticSource final : public BlockSource {
 public:
  HeadBlock next() override {
    const std::uint32_t kv = calls_++ % kKvHeads;
    Philox random(11, stream_of(kv));
    HeadBlock block;
    block.kv_head = kv;
    block.key = Matrix<float>(kPrompt + kDecode, kDim);
    block.value = Matrix<float>(kPrompt + kDecode, kDim);
    block.query = Matrix<float>(kGroup * (kPrompt + kDecode), kDim);
    for (std::size_t i = 0; i < block.key.rows(); ++i)
      for (std::size_t c = 0; c < kDim; ++c) {
        block.key(i, c) = noise(random) + (c < 4 && (i < 4 || i % 97 == 5) ? 5.0f : 0.0f);
        block.value(i, c) = noise(random);
      }
    for (std::size_t i = 0; i < block.query.rows(); ++i)
      for (std::size_t c = 0; c < kDim; ++c) block.query(i, c) = noise(random) + (c < 4 ? 3.0f : 0.0f);
    return block;
  }

 private:
  std::uint32_t calls_ = 0;
};

LayerContext synthetic_layer() {
  LayerContext layer;
  LayerGeometry& g = layer.geometry;
  g.model_layers = 1;
  g.recorded_layers = {0};
  g.prompt = kPrompt;
  g.decode = kDecode;
  g.kv_heads = kKvHeads;
  g.group = kGroup;
  g.key_dim = g.value_dim = kDim;
  g.softmax_scale = layer.rule.scale = 0.25;
  g.trace_digest = 42;
  layer.element_bytes = 2;
  return layer;
}

/// All numbers of a result as bits.
std::vector<std::uint64_t> bits_of(const UnitResult& result) {
  std::vector<std::uint64_t> bits;
  const auto add = [&bits](double value) {
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof word);
    bits.push_back(std::isnan(value) ? ~0ull : word);
  };
  for (const ResultRow& row : result.rows) {
    add(row.resident_tokens);
    add(static_cast<double>(row.near_ties));
    for (const double value : row.values) add(value);
  }
  return bits;
}

struct SelfTest {
  LayerContext layer = synthetic_layer();
  FileResources resources;
  std::vector<Variant> variants;
  UnitSettings settings;

  SelfTest() {
    for (const char* text : {"full", "random", "oracle_static", "oracle_topk", "streaming_llm", "snapkv(window=32)", "snapkv(window=16,unit=query)",
                             "h2o", "tova", "knorm", "keydiff", "ada(score=snapkv(window=32))", "chunkkv(score=snapkv(window=32))"}) {
      Variant variant;
      variant.policy = bind_policy(parse_specs(text).front());
      variant.policy->prepare(resources);
      variant.entry.spec = text;
      variants.push_back(std::move(variant));
    }
    for (const Variant& variant : variants) settings.variants.push_back(&variant);
    for (const std::uint32_t tokens : {8u, 64u, 200u, 512u, 700u}) settings.budgets.push_back({fmt::format("{}", tokens), tokens});
    for (const MetricInfo& metric : all_metrics()) settings.metrics.emplace_back(metric.name);
  }

  UnitResult run(int threads, bool hold) {
    omp_set_num_threads(threads);
    settings.memory.hold = hold;
    settings.memory.step_chunk = hold ? kDecode : kStepBlock;
    settings.memory.variant_batch = hold ? variants.size() : 5;
    SyntheticSource source;
    return replay_unit(layer, settings, source);
  }
};

}  // namespace

int selftest_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "this text");
  po::variables_map values;
  if (!parse_options(arguments, options, {}, "usage: kvsim selftest\n\nReplays a small synthetic layer in every way this machine knows and compares the results bit by bit.\n", values))
    return kDone;
  const int all_threads = std::max(omp_get_max_threads(), 4);
  SelfTest test;
  const UnitResult reference = test.run(1, true);
  const std::vector<std::uint64_t> expected = bits_of(reference);
  bool good = reference.failures.empty();
  const auto report = [&](const std::string& what, bool equal, const std::string& detail) {
    fmt::print("{:<44} {:<6} {}\n", what, equal ? "ok" : "DIFFER", detail);
    good &= equal;
  };
  const std::string cells = fmt::format("{} numbers equal to the last bit", expected.size());
  fmt::print("{:<44} {}\n", "reference: 1 thread, all in memory", instruction_path());
  for (const int threads : {2, all_threads})
    report(fmt::format("{} threads", threads), bits_of(test.run(threads, true)) == expected, cells);
  report("streamed in chunks of steps and variants", bits_of(test.run(all_threads, false)) == expected, cells);
  for (const std::string_view path : instruction_paths()) {
    use_instruction_path(path);
    report(fmt::format("instruction path {}", path), bits_of(test.run(all_threads, true)) == expected, cells);
  }
  use_instruction_path({});
  double worst = 0;
  for (const ResultRow& row : reference.rows)
    if (row.evicted == 0) worst = std::max(worst, row.values[0]);
  report("full cache: output error below 1e-6", worst < 1e-6, fmt::format("{:.2g} at most", worst));
  fmt::print("{:<44} {:<6} this build has no CUDA backend\n", "CPU against GPU", "-");
  return good ? kDone : kFoundSomething;
}

}  // namespace kvsim
