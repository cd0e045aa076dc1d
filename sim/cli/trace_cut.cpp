// kvsim trace cut and kvsim trace merge: smaller traces of a trace, and back.
#include <fmt/format.h>

#include <filesystem>

#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/trace_commands.h"
#include "traces/cut.h"

namespace kvsim {
namespace {

constexpr const char* kCutUsage =
    "usage: kvsim trace cut TRACE -o FILE [options]\n\n"
    "Writes a part of a trace as a trace of its own: some layers, some KV heads (each with its query heads), "
    "the first\n"
    "decode steps. Positions, statistics, segments, lookaheads and output projections are cut alike, and "
    "replaying the\n"
    "part gives the very numbers that the whole gives there. Branches are left out when steps are cut.\n\n"
    "examples, two layers and the first 32 steps, and the whole trace with the retention that other gates "
    "give:\n"
    "  kvsim trace cut t.h5 --layers 0,15 --steps 32 -o small.h5\n"
    "  kvsim trace cut t.h5 --retention-gates gates.safetensors -o gated.h5\n\n";

constexpr const char* kMergeUsage =
    "usage: kvsim trace merge TRACE... -o FILE\n\n"
    "Joins traces of the same model and tokens that hold different layers into one. The tables come from the "
    "first.\n\n"
    "example:\n"
    "  kvsim trace merge low.h5 high.h5 -o all.h5\n\n";

std::string output_of(const po::variables_map& values, const char* command,
                      const std::vector<std::string>& sources) {
  if (values.count("output") == 0) throw UserError("kvsim trace {} needs -o FILE", command);
  const std::string target = values["output"].as<std::string>();
  for (const std::string& source : sources) {
    std::error_code error;
    if (std::filesystem::equivalent(source, target, error)) {
      throw UserError("{}: is source and target at once; choose another -o", target);
    }
  }
  return target;
}

/// Copied and hashed: at most twice the sources' bytes.
std::uint64_t work(const std::vector<std::string>& sources) {
  std::uint64_t total = 0;
  for (const std::string& source : sources) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(source, error);
    if (!error) total += 2 * bytes;
  }
  return total;
}

}  // namespace

int trace_cut_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("output,o", po::value<std::string>(),
                                                    "the file to write")(
      "layers", po::value<std::string>(), "layers to keep by the model's own index, e.g. 0,4,8..12")(
      "heads", po::value<std::string>(), "KV heads to keep, e.g. 0..3")(
      "steps", po::value<std::int64_t>(), "decode steps to keep, from the first on")(
      "retention-gates", po::value<std::string>(),
      "compute each token's retention from the recorded hidden states (kvsim-record --hidden) and these "
      "gates, "
      "safetensors or .npz, see traces/FORMAT.md")("quiet,q", "no progress")(
      "trace", po::value<std::string>(), "the trace to cut");
  po::positional_options_description positional;
  positional.add("trace", 1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kCutUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace cut needs a trace to cut");
  CutOptions cut;
  if (values.count("layers") > 0)
    cut.layers = parse_index_list(values["layers"].as<std::string>(), "--layers");
  if (values.count("heads") > 0) cut.heads = parse_index_list(values["heads"].as<std::string>(), "--heads");
  if (values.count("steps") > 0) {
    const auto steps = values["steps"].as<std::int64_t>();
    if (steps < 1) throw UserError("--steps {}: expected at least 1", steps);
    cut.steps = static_cast<std::uint64_t>(steps);
  }
  if (values.count("retention-gates") > 0) cut.retention_gates = values["retention-gates"].as<std::string>();
  const std::string source = values["trace"].as<std::string>();
  const std::string target = output_of(values, "cut", {source});
  Progress bar("cut", work({source}), values.count("quiet") > 0);
  const auto left_out = cut_trace(source, target, cut, [&bar](std::uint64_t bytes) { bar.advance(bytes); });
  bar.finish();
  for (const std::string& path : left_out) fmt::print(stderr, "left out: {}\n", path);
  fmt::print("{}: {}\n", target, human_bytes(std::filesystem::file_size(target)));
  return kDone;
}

int trace_merge_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("output,o", po::value<std::string>(),
                                                    "the file to write")("quiet,q", "no progress")(
      "trace", po::value<std::vector<std::string>>(), "the traces to join");
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kMergeUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace merge needs traces to join");
  const auto sources = values["trace"].as<std::vector<std::string>>();
  const std::string target = output_of(values, "merge", sources);
  Progress bar("merge", work(sources), values.count("quiet") > 0);
  merge_traces(sources, target, [&bar](std::uint64_t bytes) { bar.advance(bytes); });
  bar.finish();
  fmt::print("{}: {}\n", target, human_bytes(std::filesystem::file_size(target)));
  return kDone;
}

}  // namespace kvsim
