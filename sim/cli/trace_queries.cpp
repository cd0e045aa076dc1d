// kvsim trace queries: filters and statistics of the queries of recorded prompts, for policies that read them
// from a file.
#include <fmt/format.h>

#include <filesystem>

#include "analysis/query_store.h"
#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/trace_commands.h"
#include "sim/query_library.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace queries TRACE... -o FILE [options]\n\n"
    "Gathers the prompt queries of traces of one model, and writes what policies take from other prompts:\n"
    "  /filters           [layers, KV heads, channels]     for qfilter(file=FILE)\n"
    "  /query_mean        [layers, query heads, channels]  for expected_attention_stats(file=FILE), before "
    "the\n"
    "  /query_covariance  [..., channels, channels]        rotary embedding; the first --sinks tokens are "
    "left out\n"
    "The traces need all prompt queries (kvsim-record --queries all, the default). Use other prompts than "
    "the ones that\n"
    "are replayed: a filter made of the very queries it is judged by knows too much.\n\n"
    "example:\n"
    "  kvsim trace queries a.h5 b.h5 -o queries.h5\n"
    "  kvsim run --trace c.h5 --policy 'qfilter(file=queries.h5)' --budget 10% --out runs/filters\n\n";

}  // namespace

int trace_queries_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("output,o", po::value<std::string>(),
                                                    "the file to write")(
      "sinks", po::value<std::int64_t>()->default_value(4), "first tokens left out of mean and covariance")(
      "quiet,q", "no progress")("trace", po::value<std::vector<std::string>>(), "the traces to gather from");
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace queries needs traces to gather from");
  if (values.count("output") == 0) throw UserError("kvsim trace queries needs -o FILE");
  const auto sinks = values["sinks"].as<std::int64_t>();
  if (sinks < 0 || sinks > (std::int64_t{1} << 31)) throw UserError("--sinks {}: expected at least 0", sinks);
  const auto traces = values["trace"].as<std::vector<std::string>>();
  const std::string target = values["output"].as<std::string>();
  for (const std::string& trace : traces) {
    std::error_code error;
    if (std::filesystem::equivalent(trace, target, error))
      throw UserError("{}: is source and target at once; choose another -o", target);
  }
  const TraceReader first = TraceReader::open(traces.front());
  Progress bar("queries", first.info().layers.size() * first.info().num_kv_heads, values.count("quiet") > 0);
  const QueryLibrary library =
      gather_queries(traces, static_cast<std::uint32_t>(sinks), [&bar] { bar.advance(); });
  bar.finish();
  write_queries(library, target, traces);
  fmt::print("{}: filters, mean and covariance of {} layers, {} KV heads from {} trace{}\n", target,
             library.layers, library.kv_heads, traces.size(), traces.size() == 1 ? "" : "s");
  return kDone;
}

}  // namespace kvsim
