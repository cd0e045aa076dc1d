// kvsim trace check: reads everything in a trace and says what is wrong in it.
#include <fmt/format.h>

#include <filesystem>

#include "kernels/error.h"
#include "sim/cli/options.h"
#include "sim/cli/progress.h"
#include "sim/cli/trace_commands.h"
#include "traces/check.h"

namespace kvsim {
namespace {

constexpr const char* kUsage =
    "usage: kvsim trace check TRACE... [options]\n\n"
    "Reads every tensor of the traces and reports, with the first offending index: NaN and infinity; shapes "
    "and positions;\n"
    "a digest that does not fit; recorded sums that do not add up; recorded attention whose rows do not sum "
    "to 1, that\n"
    "looks at tokens it cannot see, or that differs from the attention recomputed from queries and keys "
    "(which also tells\n"
    "a wrong mapping of query heads to KV heads). Exit code 0: nothing found; 1: something found; 2: no "
    "readable trace.\n\n"
    "example:\n"
    "  kvsim trace check t.h5\n\n";

bool check_one(const std::string& path, const CheckOptions& options, bool quiet) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  Progress bar("check", error ? 0 : check_work(bytes), quiet);
  const CheckReport report = check_trace(path, options, [&bar](std::uint64_t n) { bar.advance(n); });
  bar.finish();
  for (const std::string& note : report.notes) fmt::print("{}: {}\n", path, note);
  for (const std::string& finding : report.findings) fmt::print("{}: WRONG {}\n", path, finding);
  fmt::print("{}: {}\n", path, report.good() ? "good" : fmt::format("{} findings", report.findings.size()));
  return report.good();
}

}  // namespace

int trace_check_command(const Arguments& arguments) {
  po::options_description options("options");
  options.add_options()("help,h", "show this text")("no-attention", "do not recompute recorded attention")(
      "quiet,q", "no progress")("trace", po::value<std::vector<std::string>>(), "traces to check");
  po::positional_options_description positional;
  positional.add("trace", -1);
  po::variables_map values;
  if (!parse_options(arguments, options, positional, kUsage, values)) return kDone;
  if (values.count("trace") == 0) throw UserError("kvsim trace check needs a trace to check");
  CheckOptions check;
  check.attention = values.count("no-attention") == 0;
  bool good = true;
  for (const std::string& path : values["trace"].as<std::vector<std::string>>()) {
    good = check_one(path, check, values.count("quiet") > 0) && good;
  }
  return good ? kDone : kFoundSomething;
}

}  // namespace kvsim
