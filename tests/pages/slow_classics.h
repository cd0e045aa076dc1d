// Classical caches in the words of their papers, all by scans of plain lists: what the fast forms must equal.
#pragma once

#include <functional>
#include <memory>

#include "tests/pages/page_run.h"

namespace kvsim::test {

class SlowCache {
 public:
  virtual ~SlowCache() = default;
  /// True on a hit.
  virtual bool request(Page page, std::uint64_t size) = 0;
};

/// Megiddo and Modha, FAST 2003, Figure 4.
std::unique_ptr<SlowCache> slow_arc(std::size_t c);
/// Jiang and Zhang, SIGMETRICS 2002, 3.3; at least one resident HIR page, stack limited to 2c. c > 1.
std::unique_ptr<SlowCache> slow_lirs(std::size_t c);
/// Johnson and Shasha, VLDB 1994, the full version; Kin = c / 4, Kout = c / 2, at least 1.
std::unique_ptr<SlowCache> slow_two_q(std::size_t c);
/// Einziger et al., 2017, with the moments of counting of libCacheSim (notes on Guard 3).
std::unique_ptr<SlowCache> slow_tiny_lfu(std::size_t c);
/// Vietri et al., HotStorage 2018, Algorithm 1; `chance` in [0, 1) decides between the experts.
std::unique_ptr<SlowCache> slow_lecar(std::size_t c, std::function<double()> chance);
/// Yang et al., SOSP 2023, Algorithm 1, with the shares and the threshold of notes on Guard 3.
std::unique_ptr<SlowCache> slow_s3_fifo(std::size_t c);
/// Zhang et al., NSDI 2024, Algorithm 1.
std::unique_ptr<SlowCache> slow_sieve(std::size_t c);
/// Cherkasova, HP Labs 1998, cost 1; by byte.
std::unique_ptr<SlowCache> slow_gdsf(std::uint64_t bytes);

}  // namespace kvsim::test
