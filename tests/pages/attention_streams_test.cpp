// Attention recordings as request streams, on the recording that ships with the project.
#include "sim/pages/attention_streams.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "kernels/replay.h"
#include "sim/pages/page_server.h"
#include "tests/pages/page_run.h"
#include "traces/trace_reader.h"

namespace kvsim::test {
namespace {

const std::string kRecording = KVSIM_SOURCE_DIR "/tests/data/smollm2-harbour.h5";

class AttentionStreams : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(kRecording)) GTEST_SKIP() << "not here: " << kRecording;
  }
  AttentionStream load(const AttentionStreamOptions& options, std::uint32_t head = 1, std::size_t layer = 3) {
    const TraceReader reader = TraceReader::open(kRecording);
    info = reader.info();
    BlockRequest request;
    request.prompt_queries = std::min<std::size_t>(8, info.layers[layer].prompt_queries(info.prompt_len));
    block = reader.read_head(layer, head, request);
    before = request.prompt_queries;
    return attention_stream(info, block, before, {}, true, options);
  }
  TraceInfo info;
  HeadBlock block;
  std::size_t before = 0;
};

TEST_F(AttentionStreams, EverySetHoldsTheShareOfEachQueryHeadAndNothingCouldBeLeftOut) {
  AttentionStreamOptions options;
  options.mass = 0.8;
  const AttentionStream s = load(options);
  ASSERT_EQ(s.stream.groups(), info.decode_len);
  const std::size_t blocks = s.page_of.size();
  for (std::size_t step = 0; step < s.steps; ++step) {
    const auto [begin, end] = s.stream.group(step);
    std::vector<bool> held(blocks, false);
    for (std::size_t i = begin; i < end; ++i) held[s.block_of[s.stream.pages[i]]] = true;
    const std::size_t newest = (s.prompt + step) / options.block;
    std::vector<bool> needed(blocks, false);  // in double, per query head, from the weights themselves
    for (std::size_t h = 0; h < s.group; ++h) {
      std::vector<std::pair<double, std::size_t>> mass(blocks);
      double total = 0, covered = 0;
      for (std::size_t b = 0; b < blocks; ++b) mass[b] = {0.0, b};
      for (std::size_t t = 0; t < s.weights.rows(); ++t) {
        const auto w = static_cast<double>(s.weights(t, h * s.steps + step));
        mass[t / options.block].first += w;
        total += w;
        const std::size_t b = t / options.block;
        if (held[b] || b < options.sink_blocks || b + options.recent_blocks > newest) covered += w;
      }
      EXPECT_NEAR(total, 1.0, 1e-4);
      EXPECT_GE(covered, options.mass * total - 1e-6) << "step " << step;
      std::sort(mass.begin(), mass.end(), [](const auto& a, const auto& b) {
        return a.first > b.first || (a.first == b.first && a.second < b.second);
      });
      double sum = 0;
      for (const auto& [m, b] : mass) {
        if (sum >= options.mass * total) break;
        needed[b] = true;
        sum += m;
      }
    }
    for (std::size_t b = options.sink_blocks; b + options.recent_blocks <= newest; ++b)
      EXPECT_EQ(held[b], needed[b]) << step << " " << b;
  }
}

TEST_F(AttentionStreams, TopKAsksForAtMostGroupTimesK) {
  AttentionStreamOptions options;
  options.top_k = 3;
  const AttentionStream s = load(options);
  for (std::size_t g = 0; g < s.stream.groups(); ++g) {
    const auto [begin, end] = s.stream.group(g);
    EXPECT_LE(end - begin, 3 * s.group);
  }
}

TEST_F(AttentionStreams, GuardWithTheTrueFutureIsTheOptimumAndRecallCostsFetchesNotErrors) {
  AttentionStreamOptions options;
  options.top_k = 4;
  const AttentionStream s = load(options);
  const std::uint64_t slots = 4 * s.group + 2;  // every set fits
  const PageCounts best = simulate_pages(s.stream, *policy_of("belady"), slots, {});
  const PageCounts guarded = simulate_pages(s.stream, *policy_of("guard(base=blindoracle)"), slots, {});
  EXPECT_EQ(best.overfull, 0u);
  EXPECT_EQ(guarded.tally.misses, best.tally.misses);
  EXPECT_EQ(guarded.guard.errors, 0u);
  EXPECT_GE(best.tally.misses, s.stream.unique);
}

TEST_F(AttentionStreams, EvictingForGoodHasNoErrorWhenNothingIsEvictedAndMoreWithLessRoom) {
  const AttentionStream s = load({});
  for (const char* spec : {"lru", "follow_scores", "guard(base=follow_scores)"}) {
    const auto policy = policy_of(spec);
    // Float weights sum to 1 within their rounding.
    EXPECT_LT(output_error_without_recall(s, s.stream, *policy, s.block_of.size(), 0), 1e-6) << spec;
    const double half = output_error_without_recall(s, s.stream, *policy, s.block_of.size() / 2, 0);
    const double eighth = output_error_without_recall(s, s.stream, *policy, s.block_of.size() / 8, 0);
    EXPECT_GT(half, 0.0) << spec;
    EXPECT_GT(eighth, half) << spec;
    EXPECT_LT(eighth, 2.0) << spec;
  }
}

}  // namespace
}  // namespace kvsim::test
