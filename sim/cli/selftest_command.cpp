// kvsim selftest: proves on this machine that results depend neither on threads, nor on memory, nor on the
// instruction set, and that its GPUs agree with the CPU.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/backend.h"
#include "kernels/error.h"
#include "kernels/instruction_path.h"
#include "kernels/philox.h"
#include "kernels/replay.h"
#include "policies/registry.h"
#include "sim/cli/gpus.h"
#include "sim/cli/options.h"
#include "sim/cli/run_setup.h"
#include "sim/unit.h"

namespace kvsim {
namespace {

constexpr std::size_t kPrompt = 700, kDecode = 40, kKvHeads = 2, kGroup = 3, kDim = 32;

/// Sum of four uniforms, centred: bell-shaped without the platform's logarithm.
float noise(Philox& random) {
  return static_cast<float>(random.next_double() + random.next_double() + random.next_double() +
                            random.next_double() - 2.0);
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
    for (const char* text : {"full", "random", "oracle_static", "oracle_topk", "streaming_llm",
                             "snapkv(window=32)", "snapkv(window=16,unit=query)", "h2o", "tova", "knorm",
                             "keydiff", "ada(score=snapkv(window=32))", "chunkkv(score=snapkv(window=32))"}) {
      Variant variant;
      variant.policy = bind_policy(parse_specs(text).front());
      variant.policy->prepare(resources);
      variant.entry.spec = text;
      variants.push_back(std::move(variant));
    }
    for (const Variant& variant : variants) settings.variants.push_back(&variant);
    for (const std::uint32_t tokens : {8u, 64u, 200u, 512u, 700u})
      settings.budgets.push_back({fmt::format("{}", tokens), tokens});
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

/// Metrics that count tokens: one near tie moves them by a whole token.
bool counts_tokens(const std::string& metric) {
  return metric.find("consistency") != std::string::npos || metric.find("jaccard") != std::string::npos ||
         metric.starts_with("miss_rate") || metric == "evidence_recall" || metric == "score_truth";
}

/// How far a GPU's results lie from the CPU's.
struct Agreement {
  double worst = 0;                    // of the metrics that are continuous
  std::size_t moved = 0, counted = 0;  // values of the other metrics, and how many of them differ

  bool good() const {
    return worst <= 1e-5 && static_cast<double>(moved) <= 0.01 * static_cast<double>(counted);
  }
  std::string text() const {
    return fmt::format(
        "errors and masses within {:.1g} (1e-05 allowed), {} of {} counts of tokens moved by near ties (1% "
        "allowed)",
        worst, moved, counted);
  }
};

Agreement compare(const UnitResult& gpu, const UnitResult& cpu, const std::vector<std::string>& row_metrics) {
  Agreement agreement;
  if (gpu.rows.size() != cpu.rows.size()) {  // a variant failed there alone
    agreement.worst = std::numeric_limits<double>::infinity();
    return agreement;
  }
  for (std::size_t i = 0; i < cpu.rows.size(); ++i)
    for (std::size_t m = 0; m < row_metrics.size(); ++m) {
      const double a = gpu.rows[i].values[m], b = cpu.rows[i].values[m];
      const double difference = std::isnan(a) && std::isnan(b) ? 0.0
                                : std::isnan(a) || std::isnan(b)
                                    ? 1.0
                                    : std::abs(a - b) / std::max(1.0, std::abs(b));
      if (counts_tokens(row_metrics[m])) {
        ++agreement.counted;
        agreement.moved += difference > 1e-5 ? 1 : 0;
      } else {
        agreement.worst = std::max(agreement.worst, difference);
      }
    }
  return agreement;
}

/// Every GPU against the CPU, held and in chunks of steps; true when all agree, or there is none.
bool compare_gpus(SelfTest& test, const UnitResult& reference, int threads) {
  constexpr const char* kTitle = "CPU against GPU";
  if (!built_for_gpus()) {
    fmt::print("{:<44} {:<6} this build has no CUDA backend\n", kTitle, "-");
    return true;
  }
  const std::vector<GpuInfo> gpus = list_gpus();
  if (gpus.empty()) fmt::print("{:<44} {:<6} no GPU was found\n", kTitle, "-");
  const std::vector<std::string> row_metrics =
      metrics_of_level(test.settings.metrics, MetricInfo::Level::row);
  bool good = true;
  for (std::size_t i = 0; i < gpus.size(); ++i) {
    if (!gpus[i].usable) continue;
    const std::unique_ptr<Device> device =
        open_gpu(static_cast<int>(i), free_gpu_memory(static_cast<int>(i)) / 2);
    test.settings.device = device.get();
    const UnitResult held = test.run(threads, true);
    const Agreement agreement = compare(held, reference, row_metrics);
    fmt::print("{:<44} {:<6} {}\n", fmt::format("cuda:{} {} against the CPU", i, gpus[i].name),
               agreement.good() ? "ok" : "DIFFER", agreement.text());
    const bool same = bits_of(test.run(1, false)) == bits_of(held);
    fmt::print("{:<44} {:<6} {}\n", fmt::format("cuda:{} again, streamed in chunks", i),
               same ? "ok" : "DIFFER", "equal to the last bit");
    good &= agreement.good() && same && held.failures.empty();
    test.settings.device = nullptr;
  }
  return good;
}

}  // namespace

int selftest_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "this text");
  po::variables_map values;
  if (!parse_options(arguments, options, {},
                     "usage: kvsim selftest\n\nReplays a small synthetic layer in every way this machine "
                     "knows and compares the results: bit by bit on the CPU, within 1e-5 on GPUs.\n",
                     values))
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
  report("streamed in chunks of steps and variants", bits_of(test.run(all_threads, false)) == expected,
         cells);
  for (const std::string_view path : instruction_paths()) {
    use_instruction_path(path);
    report(fmt::format("instruction path {}", path), bits_of(test.run(all_threads, true)) == expected, cells);
  }
  use_instruction_path({});
  double worst = 0;
  for (const ResultRow& row : reference.rows)
    if (row.evicted == 0) worst = std::max(worst, row.values[0]);
  report("full cache: output error below 1e-6", worst < 1e-6, fmt::format("{:.2g} at most", worst));
  good &= compare_gpus(test, reference, all_threads);
  return good ? kDone : kFoundSomething;
}

}  // namespace kvsim
