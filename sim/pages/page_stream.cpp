// Next uses of a stream in memory.
#include "sim/pages/page_stream.h"

#include "kernels/error.h"

namespace kvsim {

void PageStream::find_next() {
  KVSIM_CHECK(pages.size() < 0xFFFFFFFFull, "{} requests are too many to be held", pages.size());
  const auto n = static_cast<std::uint32_t>(pages.size());
  next.resize(n);
  std::vector<std::uint32_t> last(unique, n);
  for (std::uint32_t t = n; t-- > 0;) {
    next[t] = last[pages[t]];
    last[pages[t]] = t;
  }
}

}  // namespace kvsim
