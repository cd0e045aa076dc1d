// A subcommand of the program: parses its own options, does its work, returns the exit code.
#pragma once

#include <string>
#include <vector>

namespace kvsim {

/// Exit codes that scripts rely on.
enum ExitCode : int {
  kDone = 0,
  kFoundSomething = 1,   // a check or comparison found something
  kWrongUse = 2,         // wrong use or unreadable input, nothing done
  kSomeRefused = 3,      // done, but some variants were refused or failed
  kInternal = 70,
  kTimeLimit = 75,
  kInterrupted = 130,
  kTerminated = 143,
};

using Arguments = std::vector<std::string>;

int run_command(const Arguments& arguments);
int plan_command(const Arguments& arguments);
int list_command(const Arguments& arguments);
int help_command(const Arguments& arguments);
int trace_command(const Arguments& arguments);
int pages_command(const Arguments& arguments);
int merge_command(const Arguments& arguments);
int report_command(const Arguments& arguments);
int selftest_command(const Arguments& arguments);

}  // namespace kvsim
