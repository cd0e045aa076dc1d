// The options of run and plan, from command line and config files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "policies/policy.h"
#include "sim/cli/command.h"

namespace kvsim {

struct RunOptions {
  std::vector<std::string> traces, policies, budgets, metrics;
  std::string out;
  std::string device = "auto";
  std::string budget_scope = "model";
  std::uint64_t memory = 0;  // bytes
  std::uint64_t seed = 0;
  int threads = 0;
  std::uint32_t shard = 0, shards = 1;  // this part, of how many
  double time_limit = 0;                // seconds, 0 = none
  bool save_kept = false, detail_steps = false, no_bounds = false, extend = false, fail_fast = false, yes = false;
  bool quiet = false, print_variants = false;
  std::string command_line;

  /// What defines the results, as a file that --config reads.
  std::string to_ini() const;
};

/// Empty when --help was asked for and answered. `starts` is false for plan, which needs no output folder.
std::optional<RunOptions> parse_run_options(const Arguments& arguments, bool starts);

/// Memory that a run may use unless told otherwise: three quarters of what the machine, or its control group, has.
std::uint64_t default_memory();

}  // namespace kvsim
