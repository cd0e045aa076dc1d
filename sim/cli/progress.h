// Progress on stderr: a bar with rate and remaining time on a terminal, a line per 5% elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace kvsim {

/// Shows nothing during the first two seconds, and nothing at all when quiet. Thread-safe.
class Progress {
 public:
  Progress(std::string what, std::uint64_t total, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(std::uint64_t n = 1);
  /// A short remark shown behind the numbers, e.g. "2 variants failed".
  void remark(std::string text);
  /// Ends the line. Called by the destructor too.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void show(bool last);

  std::string what_;
  std::string remark_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  bool finished_ = false;
  int last_step_ = -1;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_shown_ = start_;
  std::mutex mutex_;
};

}  // namespace kvsim
