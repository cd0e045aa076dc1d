// Progress on stderr.
#include "sim/cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "sim/cli/options.h"

namespace kvsim {

Progress::Progress(std::string what, std::uint64_t total, bool quiet)
    : what_(std::move(what)), total_(total), quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { finish(); }

void Progress::advance(std::uint64_t n) {
  const std::lock_guard lock(mutex_);
  done_ += n;
  show(false);
}

void Progress::remark(std::string text) {
  const std::lock_guard lock(mutex_);
  remark_ = std::move(text);
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (finished_) return;
  finished_ = true;
  if (shown_) show(true);
}

void Progress::show(bool last) {
  if (quiet_ || total_ == 0) return;
  const auto now = Clock::now();
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  if (elapsed < 2.0 && !shown_) return;
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const double rate = static_cast<double>(done_) / elapsed;
  const std::string left = done_ == 0 || last ? std::string() : ", " + human_seconds(elapsed / share - elapsed) + " left";
  const std::string tail = fmt::format("{}/{}, {:.3g}/s{}{}{}", done_, total_, rate, left, remark_.empty() ? "" : ", ", remark_);
  if (terminal_) {
    if (!last && shown_ && now - last_shown_ < std::chrono::milliseconds(100)) return;
    const int width = 28;
    const int full = static_cast<int>(share * width);
    fmt::print(stderr, "\r\033[K{} [{}{}] {:3.0f}% {}{}", what_, std::string(static_cast<std::size_t>(full), '#'),
               std::string(static_cast<std::size_t>(width - full), '.'), share * 100, tail, last ? "\n" : "");
  } else {
    const int step = static_cast<int>(share * 20);
    if (step == last_step_) return;
    last_step_ = step;
    fmt::print(stderr, "{} {:3.0f}% {}\n", what_, share * 100, tail);
  }
  std::fflush(stderr);
  shown_ = true;
  last_shown_ = now;
}

}  // namespace kvsim
