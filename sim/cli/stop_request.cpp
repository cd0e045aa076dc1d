// Orderly stopping.
#include "sim/cli/stop_request.h"

#include <csignal>

namespace kvsim {
namespace {

volatile std::sig_atomic_t caught_signal = 0;

void remember(int signal) {
  caught_signal = signal;
  std::signal(signal, SIG_DFL);  // a second one is not caught
}

}  // namespace

StopRequest::StopRequest(double time_limit) : start_(std::chrono::steady_clock::now()), limit_(time_limit) {
  caught_signal = 0;
  std::signal(SIGINT, remember);
  std::signal(SIGTERM, remember);
}

StopRequest::~StopRequest() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

ExitCode StopRequest::asked(double reserve) const {
  if (caught_signal == SIGINT) return kInterrupted;
  if (caught_signal == SIGTERM) return kTerminated;
  const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return limit_ > 0 && elapsed + reserve >= limit_ ? kTimeLimit : kDone;
}

const char* StopRequest::reason(ExitCode code) {
  switch (code) {
    case kInterrupted: return "interrupted";
    case kTerminated: return "terminated";
    case kTimeLimit: return "time limit reached";
    default: return "";
  }
}

}  // namespace kvsim
