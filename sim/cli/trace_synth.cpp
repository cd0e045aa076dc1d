// kvsim trace synth: a trace from a seed.
#include <fmt/format.h>

#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/trace_commands.h"
#include "traces/synth.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace synth -o FILE [options]\n\n"
    "Makes a trace of any geometry and length from a seed: no model is run. Its attention has what real "
    "attention has:\n"
    "sinks (the first four tokens), locality, heavy hitters whose topic drifts along the text, needles that "
    "decode steps\n"
    "look for (segments of kind 'evidence'), and heads that weigh these differently. The same options give "
    "the same bytes\n"
    "on every machine. It is written as a stream: memory does not grow with the file.\n\n"
    "example, the geometry of SmolLM2-135M:\n"
    "  kvsim trace synth --layers 30 --query-heads 9 --kv-heads 3 --head-dim 64 --prompt 4096 --decode 256 "
    "\\\n"
    "                    --dtype bfloat16 --seed 1 -o s.h5\n\n";

DType parse_dtype(const std::string& text) {
  for (const DType type : {DType::float16, DType::bfloat16, DType::float32}) {
    if (text == name_of(type)) return type;
  }
  throw UserError("--dtype '{}' is unknown: it is float16, bfloat16 or float32", text);
}

/// Boost reads "-5" into an unsigned number by wrapping around; a signed one can be checked.
template <typename T>
T count(const po::variables_map& values, const char* name, std::int64_t low) {
  const auto value = values[name].as<std::int64_t>();
  if (value < low || value > (std::int64_t{1} << 31))
    throw UserError("--{} {}: expected at least {}", name, value, low);
  return static_cast<T>(value);
}

po::options_description describe() {
  const SynthOptions d;
  const auto number = [](std::uint64_t value) {
    return po::value<std::int64_t>()->default_value(static_cast<std::int64_t>(value));
  };
  po::options_description options("options");
  auto add = options.add_options();
  add("output,o", po::value<std::string>(), "the file to write");
  add("layers", number(d.layers), "layers");
  add("query-heads", number(d.query_heads), "query heads per layer, a multiple of --kv-heads");
  add("kv-heads", number(d.kv_heads), "key/value heads per layer");
  add("head-dim", number(d.head_dim), "channels of a key and a query");
  add("value-dim", number(0), "channels of a value (0: as --head-dim)");
  add("prompt", number(d.prompt), "tokens of the prompt");
  add("decode", number(d.decode), "tokens decoded after it");
  add("dtype", po::value<std::string>()->default_value("bfloat16"), "float16, bfloat16 or float32");
  add("seed", po::value<std::int64_t>()->default_value(1), "chooses everything that is drawn");
  add("queries", po::value<std::string>()->default_value("all"),
      "prompt queries to store: all, or window:N for the last N");
  add("stats",
      "store column sums of the whole prompt attention and query statistics, so that accumulated-attention "
      "and "
      "expected-attention policies run on windowed recordings (time grows with the square of the prompt)");
  add("output-proj", "store output projections, for projected_error");
  add("sliding-window", number(0), "window of every second layer, from layer 0 on (0: none)");
  add("needles", number(d.needles), "spans that decode steps look for");
  add("needle-length", number(d.needle_length), "tokens of each");
  add("threads", number(0), "threads (0: all); never changes a byte");
  add("quiet,q", "no progress");
  add("help,h", "show this text");
  return options;
}

SynthOptions read_options(const po::variables_map& values) {
  SynthOptions o;
  o.layers = count<std::uint32_t>(values, "layers", 1);
  o.query_heads = count<std::uint32_t>(values, "query-heads", 1);
  o.kv_heads = count<std::uint32_t>(values, "kv-heads", 1);
  o.head_dim = count<std::uint32_t>(values, "head-dim", 1);
  o.value_dim = count<std::uint32_t>(values, "value-dim", 0);
  o.prompt = count<std::uint64_t>(values, "prompt", 1);
  o.decode = count<std::uint64_t>(values, "decode", 1);
  o.dtype = parse_dtype(values["dtype"].as<std::string>());
  o.seed = static_cast<std::uint64_t>(values["seed"].as<std::int64_t>());
  std::uint64_t window = 0;
  if (parse_query_window(values["queries"].as<std::string>(), "--queries", window)) o.query_window = window;
  o.stats = values.count("stats") > 0;
  o.output_proj = values.count("output-proj") > 0;
  o.sliding_window = count<std::uint32_t>(values, "sliding-window", 0);
  o.needles = count<std::uint32_t>(values, "needles", 0);
  o.needle_length = count<std::uint32_t>(values, "needle-length", 1);
  o.threads = count<int>(values, "threads", 0);
  return o;
}

}  // namespace

int trace_synth_command(const Arguments& arguments) {
  po::variables_map values;
  if (!parse_options(arguments, describe(), {}, kUsage, values)) return kDone;
  if (values.count("output") == 0) throw UserError("kvsim trace synth needs -o FILE");
  const SynthOptions options = read_options(values);
  const std::string path = values["output"].as<std::string>();
  Progress bar("synth", synth_work(options), values.count("quiet") > 0);
  synthesise(options, path, [&bar](std::uint64_t bytes) { bar.advance(bytes); });
  bar.finish();
  fmt::print("{}: {} layers, {} query and {} KV heads, {} + {} tokens, {}\n", path, options.layers,
             options.query_heads, options.kv_heads, options.prompt, options.decode,
             human_bytes(synth_bytes(options)));
  return kDone;
}

}  // namespace kvsim
