// Real request traces: hit rates published for the Mooncake conversation trace, and what its file holds.
#include <gtest/gtest.h>

#include <filesystem>

#include "policies/paging/page_registry.h"
#include "sim/pages/page_server.h"
#include "sim/pages/stream_files.h"

namespace kvsim::test {
namespace {

const std::string kMooncake = KVSIM_SOURCE_DIR "/../shared/data/mooncake-conversation.jsonl";

/// Notes on Mooncake's traces, 9.4:, computed there with the script of its appendix under the definition
/// of 9.3.
TEST(Mooncake, PrefixHitRatesOfTheConversationTrace) {
  if (!std::filesystem::exists(kMooncake)) GTEST_SKIP() << "not here: " << kMooncake;
  PageStream stream = load_requests(kMooncake, {});
  stream.find_next();
  EXPECT_EQ(stream.groups(), 12031u);
  EXPECT_EQ(stream.requests(), 288500u);
  EXPECT_EQ(stream.unique, 182790u);
  struct Row {
    const char* policy;
    double rate[5];
  };
  const std::uint64_t capacities[] = {1000, 10000, 30000, 50000, 100000};
  const Row rows[] = {{"lru", {.0445, .2112, .3257, .3546, .3637}},
                      {"lfu", {.0481, .1318, .2759, .3438, .3631}},
                      {"plfu", {.0810, .1879, .2796, .3430, .3631}},
                      {"fifo", {.0434, .1815, .2944, .3335, .3563}},
                      {"belady", {.1906, .3664, .3664, .3664, .3664}}};
  const double fifo_any[] = {.0436, .1869, .3025, .3400, .3593};
  const std::uint64_t lru_evictions[] = {274669, 217579, 164533, 136210, 83576};
  for (const Row& row : rows) {
    const auto policy = bind_page_policy(parse_specs(row.policy).at(0));
    for (std::size_t i = 0; i < 5; ++i) {
      const PageCounts counts = simulate_pages(stream, *policy, capacities[i], {});
      const double rate = static_cast<double>(counts.prefix_hits) / 288500.0;
      EXPECT_NEAR(rate, row.rate[i], 0.5001e-4) << row.policy << " at " << capacities[i];
      if (row.policy == std::string("fifo")) {
        EXPECT_NEAR(static_cast<double>(counts.lookup_hits) / 288500.0, fifo_any[i], 0.5001e-4);
      }
      if (row.policy == std::string("lru")) {
        EXPECT_EQ(counts.tally.evicted, lru_evictions[i]);
      }
    }
  }
}

}  // namespace
}  // namespace kvsim::test
