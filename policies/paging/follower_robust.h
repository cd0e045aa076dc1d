// When Follower&Robust asks for predictions in its robust part: positions of windows and queries among k
// arrivals.
#pragma once

#include <cstdint>
#include <vector>

namespace kvsim {

struct RobustSchedule {
  std::vector<std::uint32_t> windows;  // W, ascending arrival numbers from 1
  std::vector<std::uint32_t> queries;  // F
};
/// Sadek and Elias, 2024, query gap 1, with the authors' exception for k = 10. k > 0.
RobustSchedule robust_schedule(std::uint32_t k);

}  // namespace kvsim
