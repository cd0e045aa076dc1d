// The table of subcommands.
#include "sim/cli/dispatch.h"

#include <fmt/format.h>

#include "build_info.h"
#include "kernels/error.h"
#include "policies/registry.h"
#include "sim/cli/plugin.h"

namespace kvsim {
namespace {

struct Subcommand {
  const char* name;
  int (*run)(const Arguments&);
  const char* summary;
};

constexpr Subcommand kSubcommands[] = {
    {"run", run_command, "replay policies over budgets on recorded traces"},
    {"plan", plan_command, "what a run would do: variants, cells, bytes, memory, time; starts nothing"},
    {"report", report_command, "tables, knees and differences of finished runs"},
    {"pages", pages_command, "serve block requests by page policies: request traces, attention recordings"},
    {"merge", merge_command, "join the folders of a sharded run"},
    {"trace", trace_command, "info, check, stats, synth, cut, merge, convert"},
    {"list", list_command, "policies or metrics"},
    {"help", help_command, "a policy, metric or subcommand in detail"},
    {"selftest", selftest_command,
     "prove on this machine that results do not depend on threads or instruction set"},
};

void print_usage() {
  fmt::print(
      "kvsim replays a recorded run of a language model through KV-cache policies.\n\nusage: kvsim "
      "SUBCOMMAND ...\n\n");
  for (const Subcommand& s : kSubcommands) fmt::print("  {:<9} {}\n", s.name, s.summary);
  fmt::print(
      "\nexample: kvsim run trace.h5 --policy 'snapkv(window={{16,32,64}})' --policy h2o --budget "
      "64..1024*2,10% --out runs/a\n"
      "Every subcommand takes --plugin FILE: a shared object with policies of your own (CONTRIBUTING.md).\n"
      "'kvsim SUBCOMMAND --help' explains each; 'kvsim help snapkv' explains a policy.\n");
}

}  // namespace

int dispatch(const Arguments& arguments) {
  if (arguments.empty()) {
    print_usage();
    return kWrongUse;
  }
  const std::string& name = arguments.front();
  if (name == "--help" || name == "-h" || (name == "help" && arguments.size() == 1)) {
    print_usage();
    return kDone;
  }
  if (name == "--version") {
    fmt::print("kvsim {} ({})\n", kVersion, kGitSha);
    return kDone;
  }
  std::vector<std::string> names;
  for (const Subcommand& s : kSubcommands) {
    if (name == s.name) return s.run(load_plugins(Arguments(arguments.begin() + 1, arguments.end())));
    names.emplace_back(s.name);
  }
  const std::string nearest = nearest_name(name, names);
  throw UserError("unknown subcommand '{}'{}; 'kvsim --help' lists them", name,
                  nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest));
}

}  // namespace kvsim
