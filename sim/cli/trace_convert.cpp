// kvsim trace convert: a trace of NumPy and safetensors files.
#include <fmt/format.h>

#include <filesystem>

#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/trace_commands.h"
#include "traces/convert/convert.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace convert FILE... -o TRACE [--set KEY=VALUE ...]\n\n"
    "Makes a trace of arrays in .npz or safetensors files; several files are taken together. Arrays are "
    "named as the\n"
    "datasets of a trace with dots: layers.0.key [KV heads, tokens, d], layers.0.value, layers.0.query "
    "[query heads,\n"
    "queries, d], and, where there are any, layers.0.query_position, layers.0.attention, rope.inv_freq, "
    "tokens.id, ...\n"
    "Metadata (prompt_len must be there; model, softmax_scale, rope_layout, layers.0.sliding_window, ...) "
    "come from the\n"
    "safetensors metadata, from scalars in the .npz, or from --set. traces/FORMAT.md lists all names. "
    "float16, bfloat16\n"
    "and float32 are kept as they are.\n\n"
    "example:\n"
    "  python3 -c \"import numpy as np; r = np.random.default_rng(0).standard_normal; np.savez('t.npz', **{\n"
    "    'layers.0.key': r((2, 80, 16), 'f4'), 'layers.0.value': r((2, 80, 16), 'f4'),\n"
    "    'layers.0.query': r((4, 80, 16), 'f4'), 'prompt_len': 64})\"\n"
    "  kvsim trace convert t.npz -o t.h5 --set model=noise\n\n";

}  // namespace

int trace_convert_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("output,o", po::value<std::string>(),
                                                    "the trace to write")(
      "set", po::value<std::vector<std::string>>(), "metadata as KEY=VALUE; goes before what the files say")(
      "quiet,q", "no progress")("file", po::value<std::vector<std::string>>(), "files to convert");
  po::positional_options_description positional;
  positional.add("file", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("file") == 0) throw UserError("kvsim trace convert needs files to convert");
  if (values.count("output") == 0) throw UserError("kvsim trace convert needs -o TRACE");
  ConvertOptions convert;
  convert.sources = values["file"].as<std::vector<std::string>>();
  if (values.count("set") > 0) {
    for (const std::string& pair : values["set"].as<std::vector<std::string>>()) {
      const std::size_t equals = pair.find('=');
      if (equals == 0 || equals == std::string::npos) throw UserError("--set '{}': expected KEY=VALUE", pair);
      convert.metadata[pair.substr(0, equals)] = pair.substr(equals + 1);
    }
  }
  std::uint64_t work = 0;
  for (const std::string& path : convert.sources) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(path, error);
    if (!error) work += 2 * bytes;
  }
  const std::string target = values["output"].as<std::string>();
  Progress bar("convert", work, values.count("quiet") > 0);
  convert_to_trace(convert, target, [&bar](std::uint64_t bytes) { bar.advance(bytes); });
  bar.finish();
  fmt::print("{}: {}\n", target, human_bytes(std::filesystem::file_size(target)));
  return kDone;
}

}  // namespace kvsim
