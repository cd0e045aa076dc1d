// The ghost list against a plain list.
#include "policies/paging/ghost_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>

namespace kvsim {
namespace {

/// Skewed pages come and go so often that the queue holds hundreds of dead entries of one page.
TEST(GhostList, EqualsAPlainListUnderManyReturns) {
  for (const bool by_bytes : {false, true}) {
    Philox philox(61, by_bytes ? 1 : 2);
    constexpr std::uint64_t kCapacity = 1500;
    constexpr Page kPages = 2000;
    GhostList ghosts(kCapacity, by_bytes);
    ghosts.grow(kPages);
    std::list<std::pair<Page, std::uint64_t>> plain;  // newest first
    std::uint64_t used = 0, forgotten = 0;
    for (int i = 0; i < 60000; ++i) {
      const Page page = philox.next_below(3) == 0 ? philox.next_below(kPages) : philox.next_below(4);
      const std::uint64_t size = by_bytes ? 1 + philox.next_below(3) : 1;
      const auto at =
          std::find_if(plain.begin(), plain.end(), [page](const auto& e) { return e.first == page; });
      ASSERT_EQ(ghosts.contains(page), at != plain.end()) << i;
      if (at != plain.end()) {
        used -= at->second;
        plain.erase(at);
        ghosts.remove(page);
      } else {
        plain.emplace_front(page, size);
        used += size;
        while (used > kCapacity) {
          used -= plain.back().second;
          plain.pop_back();
          ++forgotten;
        }
        ghosts.push(page, size);
      }
    }
    EXPECT_EQ(forgotten > 0,
              by_bytes);  // 2000 pages of size 1 come close to the capacity, larger ones exceed it
    for (Page p = 0; p < kPages; ++p) {
      const bool there = std::any_of(plain.begin(), plain.end(), [p](const auto& e) { return e.first == p; });
      EXPECT_EQ(ghosts.contains(p), there);
    }
  }
}

TEST(GhostList, ForgetsTheOldestFirst) {
  GhostList ghosts(2, false);
  ghosts.grow(4);
  ghosts.push(0, 1);
  ghosts.push(1, 1);
  ghosts.remove(0);
  ghosts.push(0, 1);  // now younger than 1
  ghosts.push(2, 1);
  EXPECT_FALSE(ghosts.contains(1));
  EXPECT_TRUE(ghosts.contains(0));
  EXPECT_TRUE(ghosts.contains(2));
}

}  // namespace
}  // namespace kvsim
