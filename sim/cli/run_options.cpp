// The options of run and plan.
#include "sim/cli/run_options.h"

#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <fstream>

#include "kernels/error.h"
#include "policies/registry.h"
#include "sim/cli/device_choice.h"
#include "sim/cli/options.h"
#include "sim/cli/plugin.h"

namespace kvsim {
namespace {

constexpr const char* kRunUsage =
    "usage: kvsim run TRACE... --policy SPEC... --budget LIST --out DIR [options]\n\n"
    "Replays every policy at every budget on recorded traces and measures, per layer and KV head, how wrong the attention\n"
    "output gets, how well the kept tokens agree with what the true decode queries wanted, and how often a needed token\n"
    "is missing. The references full, oracle_static, oracle_topk and random are added unless --no-bounds.\n\n"
    "examples:\n"
    "  kvsim run trace.h5 --policy 'snapkv(window={16,32,64})' --policy h2o --budget 64..1024*2,10% --out runs/a\n"
    "  kvsim run data/*.h5 --config sweep.ini --budget curve --out runs/b     (sweep.ini: lines like policy = h2o)\n"
    "A run that was stopped goes on when the same command is given again.\n\noptions";
constexpr const char* kPlanUsage =
    "usage: kvsim plan TRACE... --policy SPEC... --budget LIST [options of run]\n\n"
    "Prints what 'kvsim run' with the same options would do: variants, cells, bytes to read, memory and time, estimated\n"
    "from a short measurement of this machine. Starts nothing.\n\noptions";

po::options_description run_options_description() {
  po::options_description options("options", 110, 60);
  const auto list = [] { return po::value<std::vector<std::string>>()->composing(); };
  options.add_options()
      ("help,h", "this text")
      ("trace", list(), "recorded traces (also without the option's name)")
      ("policy,p", list(), "a policy spec; repeatable. {a,b} are alternatives, a..b*2 a range; 'kvsim list policies'")
      ("budget,b", list(), "tokens kept per KV head, protected ones included: 128, 10%, 64..4096*2, 5%..50%+5%, curve")
      ("metrics,m", list(), "comma-separated metrics (default: all); 'kvsim list metrics'")
      ("out,o", po::value<std::string>(), "folder for the results")
      ("plugin", list(), "shared object with policies of your own; repeatable")
      ("config", list(), "file with the same names as these options, e.g. policy = h2o; several merge, later ones win")
      ("save", po::value<std::string>(), "kept: also write the kept positions to kept.h5")
      ("detail", po::value<std::string>(), "steps: also write per-step values")
      ("budget-scope", po::value<std::string>(), "how far budget may be shifted: head, layer or model (default)")
      ("no-bounds", po::bool_switch(), "leave out the automatic references")
      ("seed", po::value<std::uint64_t>(), "seed of the automatic random reference (default 0)")
      ("threads", po::value<int>(), "threads (default: all); results do not depend on it")
      ("memory", po::value<std::string>(), "memory the run may use, e.g. 16G (default: three quarters of the machine)")
      ("device", po::value<std::string>(), "cpu; cuda, the first GPU; cuda:0,2 or cuda:all, several of one model; auto (default), the first GPU where there is one. Decode-time policies are replayed by the CPU")
      ("shard", po::value<std::string>(), "i/n: do the i-th of n parts (1 <= i <= n); auto: rank and size from mpirun, srun or a Slurm array. Shards may share --out, or be joined with 'kvsim merge'. Policies that share budget over the layers score all layers in every shard")
      ("time-limit", po::value<std::string>(), "stop in good order after e.g. 55m, exit code 75")
      ("extend", po::bool_switch(), "add new policies, budgets or traces to a finished run")
      ("fail-fast", po::bool_switch(), "stop at the first failing variant")
      ("print-variants", po::bool_switch(), "plan: list the canonical specs")
      ("yes", po::bool_switch(), "start even when there are more than 10000 cells")
      ("quiet,q", po::bool_switch(), "no progress");
  return options;
}

/// The command line is stored first: Boost keeps the first value of an option. Config files follow, the last one first.
void store_config(const std::string& path, const po::options_description& options, po::variables_map& values) {
  std::ifstream file(path);
  if (!file) throw UserError("cannot read the config file {}", path);
  try {
    po::store(po::parse_config_file(file, options), values);
  } catch (const po::unknown_option& error) {
    std::vector<std::string> names;
    for (const auto& option : options.options()) names.push_back(option->long_name());
    const std::string nearest = nearest_name(error.get_option_name(), names);
    throw UserError("{}: unknown option '{}'{}", path, error.get_option_name(),
                    nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest));
  } catch (const po::error& error) {
    throw UserError("{}: {}", path, error.what());
  }
}

std::vector<std::string> strings(const po::variables_map& values, const char* name) {
  return values.count(name) != 0 ? values[name].as<std::vector<std::string>>() : std::vector<std::string>();
}

/// One of the words, or a UserError that lists them.
std::string one_of(const po::variables_map& values, const char* name, const std::string& fallback,
                   const std::vector<std::string>& words) {
  if (values.count(name) == 0) return fallback;
  const std::string word = values[name].as<std::string>();
  if (std::find(words.begin(), words.end(), word) == words.end())
    throw UserError("--{} '{}' must be one of: {}", name, word, fmt::join(words, ", "));
  return word;
}

/// Rank and size as the launchers of MPI and Slurm tell their processes.
void shard_from_launcher(RunOptions& options) {
  constexpr std::array<std::pair<const char*, const char*>, 4> kNames{{{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                                                       {"PMI_RANK", "PMI_SIZE"},
                                                                       {"SLURM_PROCID", "SLURM_NTASKS"},
                                                                       {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"}}};
  for (const auto& [rank, size] : kNames) {
    const char* rank_text = std::getenv(rank);
    const char* size_text = std::getenv(size);
    if (rank_text == nullptr || size_text == nullptr) continue;
    const long at = std::strtol(rank_text, nullptr, 10), of = std::strtol(size_text, nullptr, 10);
    if (at < 0 || at >= of) throw UserError("--shard auto: {}={} is not below {}={}", rank, rank_text, size, size_text);
    options.shard = static_cast<std::uint32_t>(at);
    options.shards = static_cast<std::uint32_t>(of);
    return;
  }
  throw UserError("--shard auto: no rank and size in the environment (mpirun, srun or a Slurm array of 0..n-1 set them)");
}

void parse_shard(const std::string& text, RunOptions& options) {
  if (text == "auto") return shard_from_launcher(options);
  std::uint32_t index = 0, count = 0;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, index);
  bool good = first.ec == std::errc{} && first.ptr != end && *first.ptr == '/';
  if (good) {
    const auto second = std::from_chars(first.ptr + 1, end, count);
    good = second.ec == std::errc{} && second.ptr == end && index >= 1 && index <= count;
  }
  if (!good) throw UserError("--shard '{}' must be i/n with 1 <= i <= n, for example 2/3", text);
  options.shard = index - 1;
  options.shards = count;
}

std::vector<std::string> split_commas(const std::vector<std::string>& texts) {
  std::vector<std::string> items;
  for (const std::string& text : texts) {
    std::size_t from = 0;
    while (from <= text.size()) {
      const std::size_t comma = std::min(text.find(',', from), text.size());
      std::string item = text.substr(from, comma - from);
      item.erase(0, item.find_first_not_of(' '));
      item.erase(item.find_last_not_of(' ') + 1);
      if (!item.empty()) items.push_back(item);
      from = comma + 1;
    }
  }
  return items;
}

}  // namespace

std::uint64_t default_memory() {
  std::uint64_t bytes = static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGE_SIZE));
  std::uint64_t group = 0;
  if (std::ifstream file("/sys/fs/cgroup/memory.max"); file >> group && group > 0) bytes = std::min(bytes, group);
  return bytes / 4 * 3;
}

std::string RunOptions::to_ini() const {
  std::string text = "# What defines these results; 'kvsim run --config THIS_FILE --out DIR' makes them again.\n";
  const auto lines = [&](const char* name, const std::vector<std::string>& values) {
    for (const std::string& value : values) text += fmt::format("{} = {}\n", name, value);
  };
  lines("plugin", loaded_plugins());
  lines("trace", traces);
  lines("policy", policies);
  lines("budget", budgets);
  if (!metrics.empty()) text += fmt::format("metrics = {}\n", fmt::join(metrics, ","));
  text += fmt::format("seed = {}\nbudget-scope = {}\n", seed, budget_scope);
  if (save_kept) text += "save = kept\n";
  if (detail_steps) text += "detail = steps\n";
  if (no_bounds) text += "no-bounds = true\n";
  return text;
}

std::optional<RunOptions> parse_run_options(const Arguments& arguments, bool starts) {
  const po::options_description description = run_options_description();
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, description, positional, starts ? kRunUsage : kPlanUsage, values)) return std::nullopt;
  const std::vector<std::string> configs = strings(values, "config");
  // List options other than policy are replaced, not joined, by the command line: keep what it said.
  const auto said = [&](const char* name) { return strings(values, name); };
  const std::vector<std::string> traces = said("trace"), budgets = said("budget"), metrics = said("metrics");
  std::vector<std::string> file_traces, file_budgets, file_metrics, file_policies;
  bool no_bounds = values["no-bounds"].as<bool>();
  for (const std::string& config : configs) {
    po::variables_map one;
    store_config(config, description, one);
    for (const std::string& policy : strings(one, "policy")) file_policies.push_back(policy);
    for (const std::string& plugin : strings(one, "plugin")) load_plugin(plugin);
    if (one.count("trace") != 0) file_traces = strings(one, "trace");
    if (one.count("budget") != 0) file_budgets = strings(one, "budget");
    if (one.count("metrics") != 0) file_metrics = strings(one, "metrics");
    no_bounds |= one["no-bounds"].as<bool>();
  }
  for (auto config = configs.rbegin(); config != configs.rend(); ++config) store_config(*config, description, values);

  RunOptions options;
  options.traces = traces.empty() ? file_traces : traces;
  options.budgets = budgets.empty() ? file_budgets : budgets;
  options.metrics = split_commas(metrics.empty() ? file_metrics : metrics);
  options.policies = file_policies;
  po::variables_map line;
  po::store(po::command_line_parser(arguments).options(description).positional(positional).run(), line);
  for (const std::string& policy : strings(line, "policy")) options.policies.push_back(policy);
  options.no_bounds = no_bounds;
  options.save_kept = one_of(values, "save", "", {"kept"}) == "kept";
  options.detail_steps = one_of(values, "detail", "", {"steps"}) == "steps";
  options.budget_scope = one_of(values, "budget-scope", "model", {"head", "layer", "model"});
  if (values.count("out") != 0) options.out = values["out"].as<std::string>();
  if (values.count("seed") != 0) options.seed = values["seed"].as<std::uint64_t>();
  if (values.count("device") != 0) options.device = values["device"].as<std::string>();
  check_device_syntax(options.device);
  options.threads = values.count("threads") != 0 ? values["threads"].as<int>() : omp_get_max_threads();
  if (options.threads < 1 || options.threads > 4096) throw UserError("--threads {} must be between 1 and 4096", options.threads);
  options.memory = values.count("memory") != 0 ? parse_size(values["memory"].as<std::string>(), "--memory") : default_memory();
  if (values.count("shard") != 0) parse_shard(values["shard"].as<std::string>(), options);
  if (values.count("time-limit") != 0) options.time_limit = parse_duration(values["time-limit"].as<std::string>(), "--time-limit");
  options.extend = values["extend"].as<bool>();
  options.fail_fast = values["fail-fast"].as<bool>();
  options.print_variants = values["print-variants"].as<bool>();
  options.yes = values["yes"].as<bool>();
  options.quiet = values["quiet"].as<bool>();
  options.command_line = fmt::format("kvsim {} {}", starts ? "run" : "plan", fmt::join(arguments, " "));

  if (options.traces.empty()) throw UserError("no trace given; 'kvsim-record' makes one, 'kvsim trace synth' a synthetic one");
  if (options.policies.empty() && options.no_bounds) throw UserError("no policy given; 'kvsim list policies' shows them");
  if (options.budgets.empty()) throw UserError("no budget given; write for example --budget 64..1024*2,10%");
  if (starts && options.out.empty()) throw UserError("no --out folder given for the results");
  return options;
}

}  // namespace kvsim
