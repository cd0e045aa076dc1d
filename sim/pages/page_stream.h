// A request stream in memory: dense pages, their sizes, groups and next uses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/view.h"
#include "policies/paging/page_policy.h"

namespace kvsim {

/// How requests that belong together are served.
enum class Grouping : std::uint8_t {
  none,    // every request stands alone
  prefix,  // lookups of the whole group first (leading residents are prefix hits), then one request after the
           // other
  sets,    // the set of one step: all of it must be resident at once
};

struct PageStream {
  std::string name;       // "file", or "layer 3 head 1"
  std::uint64_t key = 0;  // stands for the content; keys random choices
  Grouping grouping = Grouping::none;
  std::vector<Page> pages;           // of a set: most wanted first
  std::vector<std::uint64_t> sizes;  // per request, or empty: 1 each
  std::vector<std::uint32_t>
      starts;  // group g is [starts[g], starts[g + 1] or the end); empty without groups
  Page unique = 0;
  std::vector<std::uint32_t> next;  // index of the page's next request, or pages.size(); made by find_next
  Matrix<float> mass, lookahead;    // attention per query and page, where it comes from a recording
  std::size_t first_step = 0;       // row of `mass` of the first step; prompt queries stand before it
  double bytes_per_page = 0;        // of a fetch, where known

  std::size_t requests() const { return pages.size(); }
  std::size_t groups() const { return starts.size(); }
  /// [begin, end) of a group.
  std::pair<std::size_t, std::size_t> group(std::size_t g) const {
    return {starts[g], g + 1 < starts.size() ? starts[g + 1] : pages.size()};
  }
  /// What "time" counts: steps where sets are served, else requests.
  std::uint64_t time_steps() const { return grouping == Grouping::sets ? starts.size() : pages.size(); }
  /// One backward pass. O(requests + unique).
  void find_next();
};

}  // namespace kvsim
