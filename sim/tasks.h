// Tasks of a replay spread over all threads.
#pragma once

#include <cstdint>
#include <exception>
#include <vector>

namespace kvsim {

/// Runs task(0 .. count-1) on all threads; exceptions may not leave a parallel region, so they are handed back.
template <typename Task>
std::vector<std::exception_ptr> run_on_all_threads(std::size_t count, const Task& task) {
  std::vector<std::exception_ptr> errors(count);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(count); ++i) {
    try {
      task(static_cast<std::size_t>(i));
    } catch (...) {
      errors[static_cast<std::size_t>(i)] = std::current_exception();
    }
  }
  return errors;
}

}  // namespace kvsim
