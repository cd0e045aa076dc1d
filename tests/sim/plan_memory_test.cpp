// What a unit is reckoned to hold in memory, against what its parts really hold.
#include <gtest/gtest.h>

#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

constexpr std::uint64_t kPlenty = 1ull << 40;

const Shape kShape{.prompt = 3000, .decode = 400, .hidden = 40, .lookahead = 8};

UnitMemory plan(const std::vector<std::string>& specs, const BlockRequest& request, std::uint64_t limit) {
  const Sweep sweep(specs, {64});
  return plan_memory(make_layer(kShape), request, sweep.settings.variants, 1, {}, kShape.hidden, 1, limit);
}

/// Bytes of a plan whose decode steps are cut as small as they can be.
std::uint64_t least(const std::string& spec) {
  std::uint64_t limit = plan({spec}, {.prompt_queries = 16}, kPlenty).bytes, fits = limit;
  try {
    while (true) {
      fits = plan({spec}, {.prompt_queries = 16}, limit).bytes;
      limit = fits - 1;
    }
  } catch (const UserError&) {
    return fits;
  }
}

TEST(PlanMemory, CountsEveryTensorOfABlock) {
  const std::vector<HeadBlock> blocks = make_blocks(kShape);
  const BlockRequest everything{
      .all_queries = true, .output_proj = true, .lookahead = true, .second_pass = true};
  const std::uint64_t least_held = (kShape.kv_heads + 2) * blocks[0].bytes();
  EXPECT_GE(plan({"knorm"}, everything, kPlenty).bytes, least_held);
  const auto more = [&](BlockRequest request) {
    return plan({"knorm"}, request, kPlenty).bytes - plan({"knorm"}, {}, kPlenty).bytes;
  };
  const std::uint64_t pseudo = 2 * kShape.group * kShape.lookahead * kShape.key_dim * sizeof(float);
  const std::uint64_t second = 4 * kShape.group * kShape.prompt * sizeof(float);
  EXPECT_GE(more({.lookahead = true}), (kShape.kv_heads + 2) * pseudo);
  EXPECT_EQ(more({.second_pass = true}), (kShape.kv_heads + 2) * second);
}

TEST(PlanMemory, CountsWhatEveryVariantGathersForMetricsOfLayersAndTraces) {
  const Sweep sweep({"knorm", "random", "tova"}, {64});
  const BlockRequest request{.output_proj = true, .sensitivity_samples = 4};
  const auto bytes = [&](const BlockRequest& wanted, const std::vector<std::string>& metrics) {
    return plan_memory(make_layer(kShape), wanted, sweep.settings.variants, 5, metrics, kShape.hidden, 1, kPlenty).bytes;
  };
  const std::uint64_t none = bytes({.output_proj = true}, {"output_error"});
  const std::uint64_t projected = 5 * kShape.hidden * kShape.decode * sizeof(float);
  EXPECT_EQ(bytes({.output_proj = true}, {"projected_error"}), none + 3 * projected);  // hidden is no larger than a sketch
  EXPECT_GE(bytes({.output_proj = true}, {"predicted_kl"}), none + 3 * projected);
  EXPECT_GE(bytes(request, {"predicted_kl_layers"}), none + 3 * 5 * 4 * kShape.decode * sizeof(double));
}

TEST(PlanMemory, CountsTheRowsOfTheFutureWhereHindsightAsksForThem) {
  // Streamed, the weights of all true decode queries stand beside the window's while a head is scored.
  const std::uint64_t rows = (kShape.prompt + kShape.decode) * kShape.group * kShape.decode * sizeof(float);
  const std::uint64_t means = least("snapkv(window=16)");
  EXPECT_GE(least("dropkv(window=16)"), means + rows / 2);
  EXPECT_GE(least("compose(query=oracle(4))"), means + rows / 2);
  EXPECT_EQ(least("ada(score=snapkv(window=16))"), means);
  EXPECT_LT(least("oracle_static"), means + rows / 4);
  // Held, the exact steps have them: what is more are the outputs.
  EXPECT_LT(plan({"dropkv(window=16)"}, {.prompt_queries = 16}, kPlenty).bytes,
            plan({"snapkv(window=16)"}, {.prompt_queries = 16}, kPlenty).bytes + rows / 4);
}

}  // namespace
}  // namespace kvsim::test
