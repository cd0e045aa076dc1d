// Orderly stopping: signals and time limits ask, the run looks between units.
#pragma once

#include <chrono>
#include <string>

#include "sim/cli/command.h"

namespace kvsim {

/// Catches SIGINT and SIGTERM while it lives (a second one ends the program at once) and watches a time limit.
class StopRequest {
 public:
  /// `time_limit` in seconds from now, 0 = none.
  explicit StopRequest(double time_limit);
  ~StopRequest();
  StopRequest(const StopRequest&) = delete;
  StopRequest& operator=(const StopRequest&) = delete;

  /// kDone while nothing asks to stop, else the exit code: 130, 143 or 75. The time limit counts `reserve` seconds ahead.
  ExitCode asked(double reserve = 0) const;
  static const char* reason(ExitCode code);

 private:
  std::chrono::steady_clock::time_point start_;
  double limit_;
};

}  // namespace kvsim
