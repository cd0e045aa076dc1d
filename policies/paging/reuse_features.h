// What learned predictors know of a page: gaps between its latest requests, and exponentially decayed
// counters.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "policies/paging/page_map.h"

namespace kvsim {

/// Features: time since the last request, up to 10 gaps (absent: infinite), number of requests, size, and 10
/// counters edc_i <- 1 + edc_i * 2^(-gap / 2^(first_window + i)) (Song et al., NSDI 2020).
class ReuseFeatures {
 public:
  static constexpr std::size_t kGaps = 10, kCounters = 10, kCount = 3 + kGaps + kCounters;
  using Row = std::array<float, kCount>;

  void grow(Page limit) { pages_.grow(limit); }
  bool known(Page page) const { return pages_[page].requests > 0; }
  std::uint64_t last(Page page) const { return pages_[page].last; }

  void request(Page page, std::uint64_t time, std::uint64_t size) {
    State& s = pages_[page];
    if (s.requests > 0) {
      const float gap = static_cast<float>(time - s.last);
      for (std::size_t i = kGaps; i-- > 1;) s.gaps[i] = s.gaps[i - 1];
      s.gaps[0] = gap;
      for (std::size_t i = 0; i < kCounters; ++i) s.counters[i] = 1.0f + s.counters[i] * decay(gap, i);
    } else {
      s.gaps.fill(std::numeric_limits<float>::infinity());
      s.counters.fill(1.0f);
    }
    s.last = time;
    s.size = static_cast<float>(size);
    ++s.requests;
  }
  Row row(Page page, std::uint64_t now) const {
    const State& s = pages_[page];
    Row out;
    out[0] = static_cast<float>(now - s.last);
    out[1] = static_cast<float>(s.requests);
    out[2] = s.size;
    for (std::size_t i = 0; i < kGaps; ++i) out[3 + i] = s.gaps[i];
    for (std::size_t i = 0; i < kCounters; ++i) out[3 + kGaps + i] = s.counters[i] * decay(out[0], i);
    return out;
  }

 private:
  struct State {
    std::uint64_t last = 0;
    std::uint32_t requests = 0;
    float size = 1;
    std::array<float, kGaps> gaps{};
    std::array<float, kCounters> counters{};
  };
  static float decay(float gap, std::size_t i) {
    return std::exp2(-gap / static_cast<float>(1u << (10 + i)));
  }

  PageMap<State> pages_;
};

}  // namespace kvsim
