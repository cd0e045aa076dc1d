// kvsim pages: request traces and attention recordings through page policies at many capacities.
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <map>
#include <mutex>

#include "analysis/pages_store.h"
#include "build_info.h"
#include "kernels/error.h"
#include "kernels/replay.h"
#include "sim/cli/options.h"
#include "sim/cli/pages_commands.h"
#include "sim/pages/attention_streams.h"
#include "sim/pages/curves.h"
#include "sim/pages/page_sweep.h"
#include "traces/requests/byte_stream.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim pages INPUT... --policy SPEC... --capacity LIST --out DIR [options]\n"
    "       kvsim pages info FILE\n"
    "       kvsim pages list [policies|predictors]\n\n"
    "Serves block requests by page policies. INPUT is an attention recording (kvsim-trace), a Mooncake "
    "JSONL, an oracleGeneral,\n"
    "csv or plain file, gzip or zstd or neither, or - for standard input.\n\n"
    "examples\n"
    "  kvsim pages conversation.jsonl --policy lru --policy 'guard(base=blindoracle(popu))' --capacity "
    "1000,10000 --out p1\n"
    "  kvsim pages t.h5 --policy 'guard(follow_scores)' --capacity 8..64*2 --block 16 --mass 0.9 --out p2\n"
    "  zcat big.gz | kvsim pages - --format oracleGeneral --stream --policy sieve --capacity 1000000 --out "
    "p3\n\n";

struct PagesOptions {
  std::vector<std::string> inputs, policies, capacities, layers;
  std::string out, warmup, format, command_line;
  RequestFileOptions file;
  AttentionStreamOptions attention;
  ServeOptions serve;
  std::uint64_t memory = 0;
  double sample = 0;
  std::uint32_t sample_groups = 4;
  int threads = 1;
  bool stream = false, curve = false, bounds = true, output_error = false;
};

po::options_description described_options() {
  po::options_description options("options");
  auto add = options.add_options();
  add("help,h", "this text");
  add("policy", po::value<std::vector<std::string>>()->composing(),
      "a page policy, repeatable; {a,b} and a..b expand");
  add("capacity", po::value<std::vector<std::string>>()->composing(), "pages (or bytes): 64..4096*2,5%,1G");
  add("out,o", po::value<std::string>(), "folder for results.csv, results.h5, summary.csv");
  add("bytes", "capacities and sizes in bytes instead of objects");
  add("warmup", po::value<std::string>()->default_value("0"),
      "requests, or percent of them, that are served but not counted");
  add("format", po::value<std::string>()->default_value("auto"),
      "auto, mooncake, oracleGeneral, csv or plain");
  add("id-column", po::value<std::uint32_t>()->default_value(0), "csv: column of the object id, from 1");
  add("size-column", po::value<std::uint32_t>()->default_value(0), "csv: column of the size, from 1");
  add("stream", "read in blocks instead of holding the input: no future, except what the file carries");
  add("memory", po::value<std::string>()->default_value("8G"),
      "an input that needs more is read as with --stream");
  add("curve", "whole miss-ratio curves too: one pass for lru, plfu and belady, samples for the others");
  add("sample", po::value<double>()->default_value(0),
      "serve only this share of the objects, scaled (SHARDS); the error is stated");
  add("sample-groups", po::value<std::uint32_t>()->default_value(4),
      "disjoint samples, whose spread is the stated error");
  add("block", po::value<std::uint32_t>()->default_value(16), "recordings: tokens per page");
  add("mass", po::value<double>()->default_value(0.9), "recordings: share of attention that a step needs");
  add("top-k", po::value<std::uint32_t>()->default_value(0),
      "recordings: instead, each query head's k heaviest blocks");
  add("layers", po::value<std::string>()->default_value("all"), "recordings: layers, for example 0,4,8");
  add("sinks", po::value<std::uint32_t>()->default_value(1),
      "recordings: first blocks that always stay (taken from the capacity)");
  add("recent", po::value<std::uint32_t>()->default_value(1), "recordings: newest blocks that always stay");
  add("output-error", "recordings: also the output error of each policy when it evicts for good");
  add("detail", po::value<std::string>(), "phases: Guard's counters per phase");
  add("no-bounds", "do not add belady");
  add("seed", po::value<std::uint64_t>()->default_value(0), "of all random choices");
  add("threads", po::value<int>()->default_value(0), "0 = all; results do not depend on it");
  add("quiet", "no table");
  add("input", po::value<std::vector<std::string>>(), "trace or recording");
  return options;
}

std::vector<std::string> list_of(const po::variables_map& values, const char* name) {
  return values.count(name) > 0 ? values[name].as<std::vector<std::string>>() : std::vector<std::string>{};
}

PagesOptions read_options(const po::variables_map& values) {
  PagesOptions o;
  o.inputs = list_of(values, "input");
  o.policies = list_of(values, "policy");
  o.capacities = list_of(values, "capacity");
  if (o.inputs.empty()) throw UserError("no input: give a trace or a recording; --help shows examples");
  if (o.policies.empty()) throw UserError("no --policy; 'kvsim pages list' shows them");
  if (o.capacities.empty() && values.count("curve") == 0)
    throw UserError("no --capacity, for example --capacity 64..4096*2");
  if (values.count("out") == 0) throw UserError("no --out DIR for the results");
  o.out = values["out"].as<std::string>();
  o.warmup = values["warmup"].as<std::string>();
  o.file.format = parse_request_format(values["format"].as<std::string>());
  o.file.id_column = values["id-column"].as<std::uint32_t>();
  o.file.size_column = values["size-column"].as<std::uint32_t>();
  o.serve.by_bytes = values.count("bytes") > 0;
  o.serve.seed = values["seed"].as<std::uint64_t>();
  if (values.count("detail") > 0) {
    if (values["detail"].as<std::string>() != "phases")
      throw UserError("--detail {} is unknown, expected phases", values["detail"].as<std::string>());
    o.serve.detail = true;
  }
  o.stream = values.count("stream") > 0;
  o.memory = parse_size(values["memory"].as<std::string>(), "--memory");
  o.curve = values.count("curve") > 0;
  o.sample = values["sample"].as<double>();
  o.sample_groups = values["sample-groups"].as<std::uint32_t>();
  if (o.sample_groups == 0 || o.sample < 0 || o.sample * o.sample_groups > 1) {
    throw UserError(
        "--sample {} with {} groups does not fit: the samples are disjoint, so their product is at most 1",
        o.sample, o.sample_groups);
  }
  o.attention.block = values["block"].as<std::uint32_t>();
  o.attention.mass = values["mass"].as<double>();
  o.attention.top_k = values["top-k"].as<std::uint32_t>();
  o.attention.sink_blocks = values["sinks"].as<std::uint32_t>();
  o.attention.recent_blocks = values["recent"].as<std::uint32_t>();
  if (o.attention.block == 0) throw UserError("--block 0 does not fit, expected tokens per page");
  if (o.attention.recent_blocks == 0)
    throw UserError("--recent 0 does not fit: the block that is being written always stays");
  if (!(o.attention.mass > 0) || o.attention.mass > 1)
    throw UserError("--mass {} does not fit, expected a share above 0, up to 1", o.attention.mass);
  const std::string layers = values["layers"].as<std::string>();
  for (std::size_t begin = 0; layers != "all" && begin <= layers.size();) {
    const std::size_t end = std::min(layers.find(',', begin), layers.size());
    o.layers.push_back(layers.substr(begin, end - begin));
    begin = end + 1;
  }
  o.output_error = values.count("output-error") > 0;
  o.bounds = values.count("no-bounds") == 0;
  o.threads = values["threads"].as<int>();
  if (o.threads < 0) throw UserError("--threads {} does not fit, expected 0 (all) or more", o.threads);
  if (o.threads == 0) o.threads = omp_get_num_procs();
  return o;
}

bool is_recording(const std::string& path) {
  if (path == "-") return false;
  return ByteStream(path).peek(4) == "\x89HDF";
}

std::string stem_of(const std::string& path) {
  std::string name = path == "-" ? "stdin" : path.substr(path.find_last_of('/') + 1);
  for (const char* ending : {".gz", ".zst", ".h5", ".jsonl", ".bin", ".csv", ".txt"}) {
    if (name.ends_with(ending) && name.size() > std::string_view(ending).size())
      name.resize(name.size() - std::string_view(ending).size());
  }
  return name;
}

/// "1000" or "10%" of `requests`.
std::uint64_t warmup_of(const std::string& text, std::uint64_t requests, bool known) {
  const bool percent = text.ends_with('%');
  std::size_t used = 0;
  double amount = -1;
  try {
    amount = std::stod(text, &used);
  } catch (const std::exception&) {
  }
  if (!(amount >= 0) || used + (percent ? 1 : 0) != text.size())
    throw UserError("--warmup '{}' does not fit, expected requests or percent", text);
  if (percent && !known)
    throw UserError("--warmup {}: the number of requests is not known while the input is read as a stream",
                    text);
  return static_cast<std::uint64_t>(percent ? amount / 100 * static_cast<double>(requests) : amount);
}

/// A user's predictions, read once per file.
class NumberFiles {
 public:
  std::span<const double> read(const std::string& path) {
    const std::lock_guard lock(mutex_);
    const auto found = files_.find(path);
    if (found != files_.end()) return found->second;
    ByteStream stream(path);
    std::vector<double> numbers;
    for (std::string text; stream.line(text);) {
      if (text.empty()) continue;
      char* end = nullptr;
      numbers.push_back(std::strtod(text.c_str(), &end));
      if (end != text.c_str() + text.size() || std::isnan(numbers.back())) {
        throw UserError("{}:{}: '{}' is no number", path, stream.line_number(), text);
      }
    }
    return files_.emplace(path, std::move(numbers)).first->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::vector<double>> files_;
};

std::vector<std::size_t> chosen_layers(const TraceInfo& info, const std::vector<std::string>& names) {
  std::vector<std::size_t> out;
  for (std::size_t l = 0; l < info.layers.size(); ++l) {
    const std::string index = fmt::format("{}", info.layers[l].index);
    if (names.empty() || std::find(names.begin(), names.end(), index) != names.end()) out.push_back(l);
  }
  if (out.size() != names.size() && !names.empty())
    throw UserError("--layers: {} has no such layer; 'kvsim trace info' lists them", info.path);
  return out;
}

/// Streams of a recording, added to the sweep; `kept` holds what output errors need.
void add_recording(const std::string& path, std::uint32_t trace, const PagesOptions& o, PageSweep& sweep,
                   std::vector<AttentionStream>& kept) {
  constexpr std::size_t kPromptQueries = 32;  // they start the moving averages of attention scores
  const TraceReader reader = TraceReader::open(path);
  const TraceInfo& info = reader.info();
  if (info.decode_len == 0)
    throw UserError("{} holds no decode steps, so nothing is requested: record with --decode N", path);
  for (const std::size_t layer : chosen_layers(info, o.layers)) {
    const std::size_t before = std::min(kPromptQueries, info.layers[layer].prompt_queries(info.prompt_len));
    for (std::uint32_t head = 0; head < info.num_kv_heads; ++head) {
      BlockRequest request;
      request.prompt_queries = before;
      AttentionStream s =
          attention_stream(info, reader.read_head(layer, head, request), before, o.output_error, o.attention);
      sweep.streams.push_back(std::move(s.stream));
      s.stream = PageStream{};
      sweep.infos.push_back({.trace = trace,
                             .layer = static_cast<std::int32_t>(info.layers[layer].index),
                             .kv_head = static_cast<std::int32_t>(head),
                             .pinned = s.pinned,
                             .all_bytes = 0});
      kept.push_back(std::move(s));
    }
  }
}

std::uint64_t bytes_of_objects(const PageStream& stream) {
  std::uint64_t sum = 0;
  Page seen = 0;
  for (std::size_t t = 0; t < stream.requests(); ++t) {
    if (stream.pages[t] < seen) continue;
    ++seen;
    sum += stream.sizes.empty() ? 1 : stream.sizes[t];
  }
  return sum;
}

/// Log-spaced capacities from 1 to `most`, at most about 200.
std::vector<std::uint64_t> curve_capacities(std::uint64_t most) {
  constexpr int kPoints = 200;
  std::vector<std::uint64_t> out;
  for (int i = 0; i < kPoints; ++i) {
    const auto c =
        static_cast<std::uint64_t>(std::llround(std::pow(static_cast<double>(most), i / (kPoints - 1.0))));
    if (out.empty() || c > out.back()) out.push_back(c);
  }
  return out;
}

std::vector<CurvePoint> whole_curves(const PageSweep& sweep, const PagesOptions& o) {
  std::vector<CurvePoint> out;
  for (std::uint32_t s = 0; s < sweep.streams.size(); ++s) {
    const PageStream& stream = sweep.streams[s];
    if (stream.grouping == Grouping::sets || o.serve.by_bytes) {
      throw UserError(
          "--curve: whole curves are defined for pages of one size and one request at a time; give a list of "
          "capacities");
    }
    const std::vector<std::uint64_t> capacities = curve_capacities(std::max<Page>(1, stream.unique));
    for (std::uint32_t v = 0; v < sweep.variants.size(); ++v) {
      const PageVariant& variant = sweep.variants[v];
      if (variant.policy->traits().stack) {
        const StackCurve curve = stack_curve(variant.name, stream, sweep.options.warmup);
        for (const std::uint64_t c : capacities) {
          out.push_back({s, v, c,
                         static_cast<double>(curve.at(c)) /
                             static_cast<double>(std::max<std::uint64_t>(1, curve.requests)),
                         0.0, "stack"});
        }
        continue;
      }
      if (o.sample == 0)
        throw UserError("--curve: {} has no stack property, so its curve is sampled: add --sample 0.05",
                        variant.name);
      // A sample of less than one page says nothing.
      std::vector<std::uint64_t> sampled = capacities;
      std::erase_if(sampled, [&o](std::uint64_t c) { return static_cast<double>(c) * o.sample < 1; });
      const std::vector<SampledRatio> points =
          sampled_curve(*variant.policy, stream, sampled, o.sample, o.sample_groups, sweep.options);
      for (std::size_t i = 0; i < sampled.size(); ++i) {
        out.push_back({s, v, sampled[i], points[i].miss_ratio, points[i].error, "sampled"});
      }
    }
  }
  return out;
}

void print_table(const PageSweep& sweep) {
  fmt::print("{:<44} {:>12} {:>12} {:>11} {:>10} {:>10}\n", "variant", "capacity", "misses", "miss ratio",
             "cost", "prefix");
  struct Sum {
    std::uint64_t requests = 0, misses = 0, optimum = 0, prefix = 0;
    bool has_optimum = true, has_prefix = false;
  };
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint64_t>, Sum> sums;
  for (const PageRow& row : sweep.rows) {
    Sum& sum = sums[{sweep.infos[row.stream].trace, row.variant, row.capacity}];
    sum.requests += row.counts.tally.requests;
    sum.misses += row.counts.tally.misses;
    sum.optimum += row.optimum;
    sum.prefix += row.counts.prefix_hits;
    sum.has_optimum = sum.has_optimum && row.has_optimum;
    sum.has_prefix = sum.has_prefix || sweep.streams[row.stream].grouping == Grouping::prefix;
  }
  std::uint32_t trace = ~0u;
  for (const auto& [key, sum] : sums) {
    const auto& [t, variant, capacity] = key;
    if (t != trace) fmt::print("{}\n", sweep.traces[t]);
    trace = t;
    std::string label = sweep.variants[variant].label;
    if (label.size() > 44) label = label.substr(0, 41) + "...";
    const double requests = static_cast<double>(std::max<std::uint64_t>(1, sum.requests));
    fmt::print("{:<44} {:>12} {:>12} {:>11.4f} {:>10} {:>10}\n", label, capacity, sum.misses,
               static_cast<double>(sum.misses) / requests,
               sum.has_optimum && sum.optimum > 0
                   ? fmt::format("{:.3f}", static_cast<double>(sum.misses) / static_cast<double>(sum.optimum))
                   : "",
               sum.has_prefix ? fmt::format("{:.4f}", static_cast<double>(sum.prefix) / requests) : "");
  }
}

/// Loads everything that fits; true when the input is to be read as a stream instead.
bool load_inputs(const PagesOptions& o, PageSweep& sweep, std::vector<AttentionStream>& kept) {
  // Held in memory: page, next use and size of a request, and what goes with an object.
  constexpr std::uint64_t kBytesPerRequest = 24;
  bool future = false;
  for (const PageVariant& v : sweep.variants) future |= v.policy->needs_future();
  for (std::uint32_t i = 0; i < o.inputs.size(); ++i) {
    const std::string& path = o.inputs[i];
    sweep.traces.push_back(stem_of(path));
    if (std::count(sweep.traces.begin(), sweep.traces.end(), sweep.traces.back()) > 1)
      sweep.traces.back() += fmt::format("#{}", i + 1);
    if (is_recording(path)) {
      if (o.serve.by_bytes)
        throw UserError("--bytes: the blocks of a recording have one size; count objects");
      if (o.stream || o.sample > 0)
        throw UserError("--stream and --sample are for request files, and {} is a recording", path);
      add_recording(path, i, o, sweep, kept);
      continue;
    }
    if (o.output_error)
      throw UserError("--output-error is for attention recordings, and {} is a request file", path);
    if (o.stream || (o.sample > 0 && !o.curve)) {
      if (o.inputs.size() > 1) throw UserError("--stream and --sample take one input at a time");
      return true;
    }
    PageStream stream;
    try {
      stream =
          load_requests(path, o.file, std::min<std::uint64_t>(0xFFFFFFF0ull, o.memory / kBytesPerRequest));
    } catch (const TooManyRequests&) {
      if (path == "-" || o.inputs.size() > 1 || o.curve) throw;
      fmt::print(stderr, "kvsim: {} does not fit into --memory and is read as a stream\n", path);
      return true;
    }
    if (o.serve.by_bytes && stream.sizes.empty())
      throw UserError("{}: --bytes needs sizes, and this file has none", path);
    if (future || o.bounds) stream.find_next();
    sweep.infos.push_back({.trace = i,
                           .layer = -1,
                           .kv_head = -1,
                           .pinned = 0,
                           .all_bytes = o.serve.by_bytes ? bytes_of_objects(stream) : 0});
    sweep.streams.push_back(std::move(stream));
    kept.emplace_back();
  }
  return false;
}

Provenance page_provenance(const PagesOptions& o) {
  Provenance p;
  p.tool_version = kVersion;
  p.git_sha = kGitSha;
  p.created = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  p.command_line = o.command_line;
  p.compiler = kCompiler;
  p.build_flags = kBuildFlags;
  p.device = "cpu";
  p.instruction_path = std::string(instruction_path());
  p.seed = o.serve.seed;
  p.threads = o.threads;
  return p;
}

int run_pages(const PagesOptions& o, bool quiet) {
  NumberFiles numbers;
  PageSweep sweep;
  sweep.options = o.serve;
  sweep.options.numbers = [&numbers](const std::string& path) { return numbers.read(path); };
  sweep.capacities = parse_capacities(o.capacities);
  sweep.variants = make_page_variants(
      o.policies, o.bounds && !o.stream && !o.serve.by_bytes && (o.sample == 0 || o.curve));
  std::vector<AttentionStream> kept;
  std::vector<CurvePoint> curves;
  if (load_inputs(o, sweep, kept)) {
    sweep.options.warmup = warmup_of(o.warmup, 0, false);
    sweep.infos.assign(1, {});
    sweep.streams.clear();
    sweep.streams.emplace_back();
    sweep.streams[0].name = "file";
    run_streamed(sweep, o.inputs[0], o.file, o.sample > 0 ? o.sample : 1.0,
                 o.sample > 0 ? o.sample_groups : 1, o.threads);
  } else {
    std::uint64_t requests = 0;
    for (const PageStream& s : sweep.streams) requests = std::max<std::uint64_t>(requests, s.requests());
    sweep.options.warmup = warmup_of(o.warmup, requests, true);
    CellHook hook;
    if (o.output_error) {
      hook = [&](const PageStream& stream, const PagePolicy& policy, PageRow& row) {
        row.output_error =
            output_error_without_recall(kept[row.stream], stream, policy, row.slots, o.serve.seed);
      };
    }
    run_sweep(sweep, o.threads, hook);
    if (o.curve) curves = whole_curves(sweep, o);
  }
  write_page_results(o.out, sweep, curves, page_provenance(o));
  for (const PageFailure& f : sweep.failures)
    fmt::print(stderr, "kvsim: refused {}: {}\n", sweep.variants[f.variant].label, f.message);
  if (!quiet) print_table(sweep);
  if (sweep.failures.empty()) return kDone;
  return sweep.rows.empty() ? kWrongUse : kSomeRefused;
}

}  // namespace

int pages_command(const Arguments& arguments) {
  if (!arguments.empty() && arguments[0] == "info")
    return pages_info_command({arguments.begin() + 1, arguments.end()});
  if (!arguments.empty() && arguments[0] == "list")
    return pages_list_command({arguments.begin() + 1, arguments.end()});
  po::positional_options_description positional;
  positional.add("input", -1);
  po::variables_map values;
  if (!parse_options(arguments, described_options(), positional, kUsage, values)) return kDone;
  PagesOptions options = read_options(values);
  options.command_line = "kvsim pages";
  for (const std::string& a : arguments) options.command_line += " " + a;
  return run_pages(options, values.count("quiet") > 0);
}

}  // namespace kvsim
