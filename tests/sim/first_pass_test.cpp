// The first passes of Lookahead Q-Cache that a recording holds: replaying the same policy keeps the same tokens.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "policies/registry.h"
#include "sim/features.h"
#include "sim/unit.h"
#include "tests/sim/synthetic_unit.h"
#include "traces/trace_reader.h"

namespace kvsim::test {
namespace {

/// Two scores this close may fall either way: the recorder summed in float32, in another order.
constexpr double kRounding = 1e-5;

struct Agreement {
  std::size_t units = 0, tokens = 0, same = 0, at_the_cut = 0, elsewhere = 0;
};

/// Compares one unit's kept set with the recorded one. A difference at the cut is a tie or rounding.
void compare(const LayerRanking& ranking, std::size_t u, const std::vector<TokenIndex>& recorded, Agreement& out) {
  const std::vector<float>& score = ranking.scores.units[u].score;
  const std::size_t count = recorded.size();
  std::vector<bool> ours(score.size(), false), theirs(score.size(), false);
  for (std::size_t i = 0; i < count; ++i) ours[ranking.order[u][i]] = true;
  for (const TokenIndex t : recorded) theirs[t] = true;
  const double cut = static_cast<double>(score[ranking.order[u][count - 1]]);
  ++out.units;
  out.tokens += count;
  for (std::size_t t = 0; t < score.size(); ++t) {
    out.same += ours[t] && theirs[t] ? 1 : 0;
    if (ours[t] == theirs[t]) continue;
    const bool near = std::abs(static_cast<double>(score[t]) - cut) <= kRounding * std::abs(cut);
    ++(near ? out.at_the_cut : out.elsewhere);
  }
}

Agreement replay(const std::string& path) {
  const TraceReader reader = TraceReader::open(path);
  const TraceInfo& info = reader.info();
  Agreement out;
  NoFiles files;
  for (const LookaheadInfo& pass : info.lookaheads) {
    const auto policy = bind_policy(parse_specs(pass.method).front());
    policy->prepare(files);
    for (std::size_t ordinal = 0; ordinal < info.layers.size(); ++ordinal) {
      const LayerContext layer = make_layer_context(info, ordinal);
      const std::uint32_t window = policy->window();
      const std::size_t per_head = policy->unit() == Unit::query ? layer.geometry.group : 1;
      LayerScores scores{policy->unit(), std::vector<UnitScores>(layer.geometry.kv_heads * per_head)};
      for (std::uint32_t kv = 0; kv < layer.geometry.kv_heads; ++kv) {
        BlockRequest request;
        request.prompt_queries = window;
        const HeadBlock block = reader.read_head(ordinal, kv, request);
        const BlockFeatures head(block, layer, {}, window);
        policy->score(head, std::span(scores.units).subspan(kv * per_head, per_head));
      }
      policy->join(layer.geometry, scores);
      const LayerRanking ranking = rank_layer(*policy, layer.geometry, std::move(scores));
      const auto kept = reader.read_lookahead_kept(ordinal, pass.name);
      // A pass without a choice of its own per query head is recorded for each of them.
      for (std::size_t u = 0; u < kept.size(); ++u)
        compare(ranking, u * ranking.order.size() / kept.size(), kept[u], out);
    }
  }
  return out;
}

TEST(FirstPass, OfTheShippedRecordingIsReproducedByItsPolicy) {
  const Agreement found = replay(KVSIM_SOURCE_DIR "/tests/data/smollm2-harbour.h5");
  EXPECT_EQ(found.units, 8u * 9u);
  EXPECT_EQ(found.tokens, 8u * 9u * 128u);
  EXPECT_EQ(found.elsewhere, 0u);
  EXPECT_GE(found.same, found.tokens - found.tokens / 500) << found.at_the_cut << " differ at the cut";
}

TEST(FirstPass, OfAnotherRecordingIsReproducedByItsPolicy) {
  const char* path = std::getenv("KVSIM_LOOKAHEAD_TRACE");
  if (path == nullptr) GTEST_SKIP() << "KVSIM_LOOKAHEAD_TRACE names no recording with --lookahead";
  const Agreement found = replay(path);
  EXPECT_GT(found.units, 0u);
  EXPECT_EQ(found.elsewhere, 0u) << found.same << " of " << found.tokens << " tokens agree, " << found.at_the_cut << " differ at the cut";
}

}  // namespace
}  // namespace kvsim::test
