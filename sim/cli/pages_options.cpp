// Options of kvsim pages.
#include "sim/cli/pages_options.h"

#include <omp.h>

#include <algorithm>

#include "kernels/error.h"

namespace kvsim {
namespace {

std::vector<std::string> list_of(const po::variables_map& values, const char* name) {
  return values.count(name) > 0 ? values[name].as<std::vector<std::string>>() : std::vector<std::string>{};
}

}  // namespace

po::options_description described_pages_options() {
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

PagesOptions read_pages_options(const po::variables_map& values) {
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

}  // namespace kvsim
