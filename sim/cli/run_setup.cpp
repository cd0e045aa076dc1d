// From options to a plan.
#include "sim/cli/run_setup.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "build_info.h"
#include "kernels/error.h"
#include "policies/lookahead.h"
#include "policies/registry.h"
#include "policies/stepwise/stepwise_registry.h"
#include "sim/budget.h"
#include "sim/stepwise/stepwise_unit.h"

namespace kvsim {
namespace {

std::string hex_hash(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return fmt::format("{:016x}", hash);
}

Variant make_variant(const SpecValue& spec, Resources& resources, bool automatic) {
  Variant variant;
  if (is_stepwise_name(spec.text)) {
    variant.stepwise = bind_stepwise_policy(spec);
    const std::string label = canonical_spec(*variant.stepwise);
    try {
      variant.stepwise->prepare(resources);
    } catch (const UserError& error) {
      throw UserError("{}: {}", label, error.what());
    }
    const StepTraits& traits = variant.stepwise->traits();
    variant.entry = {hex_hash(label), std::string(kDecodePrefix) + std::string(traits.name), label, std::string(traits.reference), traits.stack, false, automatic};
    return variant;
  }
  variant.policy = bind_policy(spec);
  const std::string label = canonical_spec(*variant.policy);
  try {
    variant.policy->prepare(resources);
  } catch (const UserError& error) {
    throw UserError("{}: {}", label, error.what());
  }
  const PolicyTraits& traits = variant.policy->traits();
  variant.entry = {hex_hash(label), std::string(traits.name), label, std::string(traits.reference), traits.nested, traits.oracle, automatic};
  return variant;
}

std::vector<Variant> make_variants(const RunOptions& options, Resources& resources) {
  std::vector<Variant> variants;
  std::map<std::string, std::string> seen;  // canonical spec -> as written
  for (const std::string& text : options.policies) {
    for (const SpecValue& spec : parse_specs(text)) {
      Variant variant = make_variant(spec, resources, false);
      const auto [before, is_new] = seen.emplace(variant.entry.spec, text);
      if (!is_new)
        throw UserError("the variant {} is given twice: by --policy '{}' and by --policy '{}'", variant.entry.spec, before->second, text);
      variants.push_back(std::move(variant));
    }
  }
  if (options.no_bounds) return variants;
  for (const std::string& text : {std::string("full"), std::string("oracle_static"), std::string("oracle_topk"), fmt::format("random(seed={})", options.seed)}) {
    Variant variant = make_variant(parse_specs(text).front(), resources, true);
    if (seen.emplace(variant.entry.spec, text).second) variants.push_back(std::move(variant));
  }
  return variants;
}

std::vector<std::string> chosen_metrics(const std::vector<std::string>& asked) {
  std::vector<std::string> names;
  for (const MetricInfo& metric : all_metrics()) names.emplace_back(metric.name);
  if (asked.empty()) return names;
  for (const std::string& name : asked) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    const std::string nearest = nearest_name(name, names);
    throw UserError("unknown metric '{}'{}; 'kvsim list metrics' shows them", name, nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest));
  }
  std::erase_if(names, [&](const std::string& name) { return std::find(asked.begin(), asked.end(), name) == asked.end(); });
  return names;
}

const char* dtype_name(DType type) {
  switch (type) {
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
    case DType::float32: return "float32";
  }
  return "";
}

TraceEntry trace_entry(const TraceInfo& info, const BudgetList& budgets) {
  TraceEntry entry;
  entry.name = std::filesystem::path(info.path).stem().string();
  entry.path = info.path;
  entry.digest = info.digest;
  entry.digest_key = info.digest_key;
  entry.model = info.model;
  entry.dtype = dtype_name(info.dtype);
  entry.layers = info.layers.size();
  entry.query_heads = info.num_query_heads;
  entry.kv_heads = info.num_kv_heads;
  entry.head_dim = info.head_dim;
  entry.prompt = info.prompt_len;
  entry.decode = info.decode_len;
  entry.budgets = budget_points(budgets, info.prompt_len);
  return entry;
}

/// Names are file stems; traces that share one are told apart by their paths.
void make_names_unique(std::vector<TraceEntry>& traces) {
  std::map<std::string, int> uses;
  std::set<std::string> paths;
  for (const TraceEntry& trace : traces) {
    ++uses[trace.name];
    if (!paths.insert(std::filesystem::weakly_canonical(trace.path).string()).second)
      throw UserError("the trace {} is given twice", trace.path);
  }
  for (TraceEntry& trace : traces)
    if (uses[trace.name] > 1) trace.name = trace.path;
}

std::string scope_refusal(const Policy& policy, const std::string& allowed) {
  const Scope most = allowed == "head" ? Scope::head : allowed == "layer" ? Scope::layer : Scope::model;
  if (policy.scope() <= most) return {};
  return fmt::format("shifts budget over the {}, which --budget-scope {} forbids", policy.scope() == Scope::layer ? "heads of a layer" : "layers of the model", allowed);
}

/// Which recorded first pass each budget takes, for policies that read pseudo queries.
void note_first_passes(PreparedRun& run) {
  run.record.passes.clear();
  for (std::uint32_t t = 0; t < run.traces.size(); ++t) {
    const LayerGeometry geometry = make_layer_context(run.traces[t].info(), 0).geometry;
    for (const std::uint32_t v : run.served(t)) {
      if (!run.variants[v].policy || !has(run.variants[v].policy->needs(), Need::lookahead)) continue;
      for (const BudgetPoint& budget : run.record.description.traces[t].budgets) {
        const std::string pass = lookahead_pass_at(*run.variants[v].policy, geometry, budget.tokens);
        if (!pass.empty()) run.record.passes.push_back({t, v, budget.tokens, pass});
      }
    }
  }
}

void refuse_what_cannot_run(PreparedRun& run) {
  for (std::uint32_t t = 0; t < run.traces.size(); ++t) {
    const TraceInfo& info = run.traces[t].info();
    for (std::uint32_t v = 0; v < run.variants.size(); ++v) {
      const Variant& variant = run.variants[v];
      std::string why = variant.policy ? scope_refusal(*variant.policy, run.options.budget_scope) : std::string();
      for (std::size_t l = 0; l < info.layers.size() && why.empty(); ++l) {
        why = variant.policy ? missing_need(*variant.policy, info, info.layers[l]) : missing_step_need(*variant.stepwise, info, info.layers[l]);
        try {
          const LayerGeometry geometry = make_layer_context(info, l).geometry;
          if (why.empty() && variant.policy) variant.policy->check(geometry);
          if (why.empty() && variant.stepwise) variant.stepwise->check(geometry);
        } catch (const UserError& error) {
          why = fmt::format("cannot be used: {}", error.what());
        }
      }
      if (!why.empty()) run.record.refusals.push_back({t, v, why});
    }
  }
  note_first_passes(run);
  bool any = false;
  for (std::uint32_t t = 0; t < run.traces.size(); ++t)
    for (const std::uint32_t v : run.served(t)) any |= !run.variants[v].entry.automatic || run.options.policies.empty();
  if (!any) {
    const Refusal& first = run.record.refusals.front();
    throw UserError("every variant is refused; the first, {}: {}", run.variants[first.variant].entry.spec, first.message);
  }
}

void plan_units(PreparedRun& run) {
  for (std::uint32_t t = 0; t < run.traces.size(); ++t) {
    const TraceInfo& info = run.traces[t].info();
    const double rows = static_cast<double>(info.decode_len) * info.num_query_heads;
    const double tokens = static_cast<double>(info.prompt_len);
    for (std::size_t l = 0; l < info.layers.size(); ++l) {
      UnitPlan unit;
      unit.id = {t, info.layers[l].index};
      unit.trace = t;
      unit.layer_ordinal = l;
      // Exact attention in double counts twice; then one pass over the values per ranking.
      unit.cost = rows * tokens * (2.0 * info.head_dim + info.value_dim * (1.0 + static_cast<double>(run.served(t).size())));
      unit.bytes = info.layers[l].bytes;
      run.units.push_back(unit);
      run.record.units.push_back(unit.id);
    }
  }
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos) return line.substr(line.find(": ") + 2);
  return "unknown";
}

}  // namespace

const ExternalArray& FileResources::array(const std::string& file, const std::string& dataset) {
  const auto key = std::make_pair(file, dataset);
  const auto found = arrays_.find(key);
  if (found != arrays_.end()) return found->second;
  FloatArray read = read_float_array(file, dataset);
  return arrays_.emplace(key, ExternalArray{std::move(read.shape), std::move(read.data)}).first->second;
}

bool PreparedRun::refused(std::uint32_t trace, std::uint32_t variant) const {
  return std::any_of(record.refusals.begin(), record.refusals.end(),
                     [&](const Refusal& r) { return r.trace == trace && r.variant == variant; });
}

std::vector<std::uint32_t> PreparedRun::served(std::uint32_t trace) const {
  std::vector<std::uint32_t> list;
  for (std::uint32_t v = 0; v < variants.size(); ++v)
    if (!refused(trace, v)) list.push_back(v);
  return list;
}

std::vector<const Variant*> PreparedRun::pointers(std::span<const std::uint32_t> of_variants) const {
  std::vector<const Variant*> list;
  for (const std::uint32_t v : of_variants) list.push_back(&variants[v]);
  return list;
}

int threads_of_worker(const PreparedRun& run) {
  return std::max(1, run.options.threads / static_cast<int>(std::max<std::size_t>(run.devices.size(), 1)));
}

Provenance provenance(const RunOptions& options, const std::string& ini, const DeviceChoice& device) {
  Provenance p;
  p.tool_version = kVersion;
  p.git_sha = kGitSha;
  p.created = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  p.command_line = options.command_line;
  p.config = ini;
  p.compiler = kCompiler;
  p.build_flags = kBuildFlags;
  p.cpu = processor_name();
  p.device = device.name;
  p.instruction_path = device.path;
  p.seed = options.seed;
  p.threads = options.threads;
  return p;
}

PreparedRun prepare_run(RunOptions options) {
  PreparedRun run;
  run.options = std::move(options);
  run.device_choice = choose_device(run.options.device);
  const BudgetList budgets = parse_budgets(run.options.budgets);
  run.variants = make_variants(run.options, run.resources);
  RunDescription& description = run.record.description;
  description.metrics = chosen_metrics(run.options.metrics);
  for (const std::string& path : run.options.traces) {
    run.traces.push_back(TraceReader::open(path));
    const TraceInfo& info = run.traces.back().info();
    if (info.decode_len == 0) throw UserError("{} holds no decode steps, so there is nothing to measure: record with --decode N", path);
    description.traces.push_back(trace_entry(info, budgets));
  }
  make_names_unique(description.traces);
  for (const Variant& variant : run.variants) description.variants.push_back(variant.entry);
  refuse_what_cannot_run(run);
  plan_units(run);
  run.ini = run.options.to_ini();
  description.provenance = provenance(run.options, run.ini, run.device_choice);
  return run;
}

PreparedRun prepare_extended(PreparedRun now, const RunRecord& before) {
  PreparedRun run;
  run.options = now.options;
  run.device_choice = now.device_choice;
  run.devices = std::move(now.devices);
  run.record = extended(before, now.record);
  RunDescription& description = run.record.description;
  run.options.traces.clear();
  run.options.policies.clear();
  for (const TraceEntry& trace : description.traces) {
    run.options.traces.push_back(trace.path);
    run.traces.push_back(TraceReader::open(trace.path));
    if (run.traces.back().info().digest_key != trace.digest_key)
      throw UserError("{} has changed since the run began; choose another --out folder", trace.path);
  }
  for (const VariantEntry& variant : description.variants) {
    run.variants.push_back(make_variant(parse_specs(variant.spec).front(), run.resources, variant.automatic));
    if (!variant.automatic) run.options.policies.push_back(variant.spec);
  }
  // The record names budgets in tokens per trace; run.ini keeps them as they were asked for.
  std::vector<std::string> budgets;
  const std::string& ini = before.description.provenance.config;
  const std::string key = "\nbudget = ";
  for (std::size_t at = ini.find(key); at != std::string::npos; at = ini.find(key, at + 1))
    budgets.push_back(ini.substr(at + key.size(), ini.find('\n', at + 1) - at - key.size()));
  for (const std::string& budget : now.options.budgets)
    if (std::find(budgets.begin(), budgets.end(), budget) == budgets.end()) budgets.push_back(budget);
  run.options.budgets = budgets;
  run.record.refusals.clear();
  refuse_what_cannot_run(run);
  run.record.units.clear();
  plan_units(run);
  run.ini = run.options.to_ini();
  description.provenance = provenance(run.options, run.ini, run.device_choice);
  return run;
}

std::vector<std::size_t> units_of_shard(const std::vector<UnitPlan>& units, std::uint32_t shard, std::uint32_t shards) {
  std::vector<std::size_t> by_cost(units.size());
  std::iota(by_cost.begin(), by_cost.end(), 0);
  std::stable_sort(by_cost.begin(), by_cost.end(), [&](std::size_t a, std::size_t b) { return units[a].cost > units[b].cost; });
  std::vector<std::size_t> mine;
  for (std::size_t i = 0; i < by_cost.size(); ++i) {
    const std::size_t round = i / shards, place = i % shards;
    if ((round % 2 == 0 ? place : shards - 1 - place) == shard) mine.push_back(by_cost[i]);
  }
  std::sort(mine.begin(), mine.end());
  return mine;
}

}  // namespace kvsim
