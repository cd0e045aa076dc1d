// The two kinds of error: the user's, which he can mend, and ours, which he can report.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace kvsim {

/// A wrong option, file or trace: one line that says what, where and what to do. The program exits with 2.
class UserError : public std::runtime_error {
 public:
  explicit UserError(const std::string& message) : std::runtime_error(message) {}
  template <typename... Args>
  explicit UserError(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

/// A broken invariant of the program itself. The program exits with 70.
class InternalError : public std::logic_error {
 public:
  explicit InternalError(const std::string& message) : std::logic_error(message) {}
};

[[noreturn]] inline void fail_check(const char* condition, const char* file, int line, const std::string& text) {
  throw InternalError(fmt::format("{}:{}: {} does not hold: {}", file, line, condition, text));
}

}  // namespace kvsim

/// Always on. The text after the condition is an fmt format with its values.
#define KVSIM_CHECK(condition, ...)                                                                   \
  do {                                                                                                \
    if (!(condition)) ::kvsim::fail_check(#condition, __FILE__, __LINE__, ::fmt::format(__VA_ARGS__)); \
  } while (false)

/// For hot loops: on in debug builds only.
#ifdef NDEBUG
#define KVSIM_DCHECK(condition, ...) \
  do {                               \
  } while (false)
#else
#define KVSIM_DCHECK(condition, ...) KVSIM_CHECK(condition, __VA_ARGS__)
#endif
