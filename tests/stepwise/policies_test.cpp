// Decode-time policies against the worked examples of the literature notes (their origin stands at each).
#include <gtest/gtest.h>

#include <numeric>

#include "kernels/error.h"
#include "tests/stepwise/fake_cache.h"
#include "tests/stepwise/step_sweep.h"

namespace kvsim::test {
namespace {

/// A policy's state on one hand-written cache.
struct Replayed {
  std::unique_ptr<StepwisePolicy> policy;
  LayerGeometry geometry;
  std::unique_ptr<StepState> state;
  FakeCache cache;

  explicit Replayed(const std::string& spec, std::size_t heads = 1) : policy(bind_stepwise_policy(parse_specs(spec).front())), cache(heads) {
    state = policy->start(StepContext{geometry, {}, {}});
  }
  void event(StepPhase phase, TokenIndex last, std::vector<std::vector<std::vector<float>>> rows, std::size_t step = 0) {
    cache.event(phase, last, std::move(rows), step);
    const CacheView* view = &cache;
    state->observe({&view, 1});
  }
  /// Evicts, and gives the positions that stay (drop) or can be read next (mask).
  std::vector<TokenIndex> keep(std::uint32_t capacity) {
    cache.capacity_of_cache = capacity;
    const CacheView* view = &cache;
    Eviction out;
    state->evict({&view, 1}, {&out, 1});
    std::vector<TokenIndex> kept;
    for (std::uint32_t s = 0; s < cache.held.size(); ++s)
      if (!std::binary_search(out.slots.begin(), out.slots.end(), s)) kept.push_back(cache.held[s]);
    if (policy->removal() == Removal::drop) {
      cache.remove(out.slots);
      if (!out.slots.empty()) state->removed(0, out.slots);
    }
    return kept;
  }
};

using Tokens = std::vector<TokenIndex>;

// Causal rows [1]; [.6,.4]; [.5,.1,.4]; [.3,.1,.3,.3] sum to [2.4,.6,.7,.3] (worked example of H2O, appendix G14).
TEST(H2oDecode, KeepsTheLargestSums) {
  for (const std::uint32_t capacity : {1u, 2u, 3u}) {
    Replayed h2o("decode:h2o(recent=0)");
    h2o.event(StepPhase::block, 4, {{{1}, {.6f, .4f}, {.5f, .1f, .4f}, {.3f, .1f, .3f, .3f}}});
    const std::vector<Tokens> expected{{0}, {0, 2}, {0, 1, 2}};
    EXPECT_EQ(h2o.keep(capacity), expected[capacity - 1]);
  }
}

TEST(H2oDecode, HoldsRecentTokensAndForgetsWhatLeft) {
  Replayed h2o("decode:h2o(recent=0.5)");
  h2o.event(StepPhase::block, 4, {{{1}, {.6f, .4f}, {.5f, .1f, .4f}, {.3f, .1f, .3f, .3f}}});
  EXPECT_EQ(h2o.keep(2), (Tokens{0, 3}));  // one heavy, one recent
  // Token 4 joins: sums 0: 2.4 + .1, 3: .3 + .8, 4: .1. The recent one stays, of the others the heavier.
  h2o.event(StepPhase::step, 5, {{{.1f, .8f, .1f}}});
  EXPECT_EQ(h2o.keep(2), (Tokens{0, 4}));
}

// The masks of the authors' code, emulated column by column (second script of the appendix; rows are random numbers).
TEST(H2oDecode, MasksOneColumnAheadLikeTheAuthorsCode) {
  constexpr std::size_t kPrompt = 20, kRecent = 3, kHeavy = 4;
  Replayed h2o("decode:h2o(recent=0.42858,removal=mask)");  // floor(.42858 x 7) = 3
  Philox random(3, 4);
  std::vector<double> score(kPrompt);
  std::vector<float> row(kPrompt);
  for (std::size_t i = 0; i < kPrompt; ++i) score[i] = static_cast<double>(row[i] = static_cast<float>(random.next_double() * 20));
  std::vector<bool> visible;
  bool returned = false;
  std::set<TokenIndex> hidden_before;
  for (std::size_t t = 0; t <= 12; ++t) {
    if (t > 0) {
      row.assign(kPrompt + t, 0.0f);
      for (std::size_t i = 0; i < row.size(); ++i) row[i] = visible[i] ? static_cast<float>(random.next_double()) : 0.0f;
      score.push_back(0.0);
      for (std::size_t i = 0; i < row.size(); ++i) score[i] += static_cast<double>(row[i]);
    }
    const std::size_t size = score.size();
    std::vector<std::size_t> order(size - kRecent);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return score[a] > score[b]; });
    visible.assign(size + 1, false);
    for (std::size_t c = size + 1 - kRecent; c <= size; ++c) visible[c] = true;
    for (std::size_t i = 0; i < kHeavy; ++i) visible[order[i]] = true;
    for (std::size_t i = 0; i < size; ++i)
      if (!visible[i] && i + kRecent < size) score[i] = 0;
    h2o.event(t == 0 ? StepPhase::block : StepPhase::step, static_cast<TokenIndex>(kPrompt + t), {{row}}, t);
    Tokens expected;
    for (std::size_t i = 0; i < size; ++i)
      if (visible[i]) {
        expected.push_back(static_cast<TokenIndex>(i));
        returned |= hidden_before.count(static_cast<TokenIndex>(i)) > 0;
      } else {
        hidden_before.insert(static_cast<TokenIndex>(i));
      }
    EXPECT_EQ(h2o.keep(kRecent + kHeavy), expected) << t;
  }
  EXPECT_TRUE(returned);  // hidden for one step, then a heavy hitter
}

// Heads [.5,.1,.2,.2] and [.1,.4,.1,.4] have the mean [.3,.25,.15,.3] (worked example of TOVA, appendix G14).
TEST(TovaDecode, RanksByTheMeanOverHeads) {
  const std::vector<Tokens> expected{{0}, {0, 3}, {0, 1, 3}};
  for (const std::uint32_t capacity : {1u, 2u, 3u}) {
    Replayed tova("decode:tova", 2);
    tova.event(StepPhase::step, 4, {{{.5f, .1f, .2f, .2f}}, {{.1f, .4f, .1f, .4f}}});
    EXPECT_EQ(tova.keep(capacity), expected[capacity - 1]);
  }
}

TEST(TovaDecode, MayDropTheNewestTokenUnlessTold) {
  for (const bool newest : {false, true}) {
    Replayed tova(newest ? "decode:tova(newest=true)" : "decode:tova");
    tova.event(StepPhase::step, 3, {{{.5f, .4f, .1f}}});
    EXPECT_EQ(tova.keep(2), newest ? (Tokens{0, 2}) : (Tokens{0, 1}));
  }
}

// t = 5, rows [.4,.1,.1,.2,.2], [.5,.05,.05,.1,.3], [.1,.05,.25,.3,.3]: low counts [1,3,2,1,0] (appendix G14).
TEST(Scissorhands, DropsWhatWasLowMostOften) {
  const std::vector<std::vector<std::vector<float>>> rows{{{.4f, .1f, .1f, .2f, .2f}, {.5f, .05f, .05f, .1f, .3f}, {.1f, .05f, .25f, .3f, .3f}}};
  const std::vector<Tokens> expected{{4}, {0, 4}, {0, 3, 4}, {0, 2, 3, 4}};
  for (const std::uint32_t capacity : {1u, 2u, 3u, 4u}) {
    Replayed scissorhands("decode:scissorhands(keep=1,recent=0)");
    // As three queries that all see five tokens, which is what the example counts.
    for (std::size_t r = 0; r < 3; ++r) scissorhands.event(StepPhase::prompt_rows, 5, {{rows[0][r]}});
    EXPECT_EQ(scissorhands.keep(capacity), expected[capacity - 1]);
  }
}

TEST(Scissorhands, ForgetsQueriesOlderThanItsHistoryAndDropsHalf) {
  Replayed scissorhands("decode:scissorhands(history=1,recent=1)");
  scissorhands.event(StepPhase::prompt_rows, 4, {{{.01f, .3f, .3f, .39f}}});
  scissorhands.event(StepPhase::prompt_rows, 4, {{{.4f, .01f, .3f, .29f}}});
  EXPECT_EQ(scissorhands.keep(4), (Tokens{0, 3}));  // half of 4: the recent one, and the first that was not low just now
}

// a |v|_1 = [.619985,.611391,.445918] for a = [.619985,.305695,.07432] (appendix G4).
TEST(Vatp, WeighsAttentionByTheValue) {
  Replayed vatp("decode:vatp(sinks=0,recent=0)");
  vatp.cache.values = {{1, 0}, {0, 2}, {3, 3}, {5, 5}};
  vatp.event(StepPhase::step, 3, {{{.619985f, .305695f, .07432f}}});
  EXPECT_EQ(vatp.keep(2), (Tokens{0, 1}));
  // A fourth token of attention .07 but large value overtakes: .7 against .611391 + .06 and .619985 + .1.
  vatp.event(StepPhase::step, 4, {{{.1f, .03f, .07f}}});
  EXPECT_EQ(vatp.keep(2), (Tokens{0, 3}));
}

// Rows for t = 6, 7, 8; w = 2, r = 2 keeps {0,3,4,6,7}, w = 3, r = 2 keeps {0,2,3,4,5,6,7} (appendix G6).
TEST(Corm, KeepsWhatARecentQueryFoundImportant) {
  const std::vector<std::vector<float>> rows{{.40f, .05f, .20f, .05f, .10f, .20f},
                                             {.50f, .02f, .05f, .15f, .03f, .05f, .20f},
                                             {.45f, .02f, .03f, .05f, .20f, .03f, .02f, .20f}};
  for (const auto& [window, expected] : {std::pair<int, Tokens>{2, {0, 3, 4, 6, 7}}, {3, {0, 2, 3, 4, 5, 6, 7}}}) {
    Replayed corm(fmt::format("decode:corm(window={},recent=2)", window));
    corm.event(StepPhase::prompt_rows, 6, {{rows[0]}});
    corm.event(StepPhase::step, 7, {{rows[1]}});
    corm.event(StepPhase::step, 8, {{rows[2]}});
    EXPECT_EQ(corm.keep(100), expected) << window;
  }
}

TEST(Corm, WaitsForItsWindowAndHonoursACap) {
  Replayed corm("decode:corm(window=4,recent=1,cap=true)");
  corm.event(StepPhase::prompt_rows, 5, {{{.01f, .5f, .01f, .01f, .47f}}});
  EXPECT_EQ(corm.keep(100).size(), 5u);
  EXPECT_EQ(corm.keep(3), (Tokens{0, 1, 4}));  // 1 and 4 were important; of the others the earliest
}

// A high temperature makes all weights equal, so that what more queries saw has gathered more.
TEST(Keyformer, IsAPositionPriorWhenItsTemperatureIsHigh) {
  Replayed keyformer("decode:keyformer(recent=0,temperature=1000,rise=0)");
  std::vector<std::vector<float>> rows;
  for (std::size_t i = 1; i <= 12; ++i) rows.emplace_back(i, 1.0f / static_cast<float>(i));
  keyformer.event(StepPhase::block, 12, {rows});
  EXPECT_EQ(keyformer.keep(4), (Tokens{0, 1, 2, 3}));
}

TEST(Keyformer, FreezesTheKeysOfThePromptWhenTold) {
  StepSweep sweep({"decode:keyformer(freeze=true,recent=0.5)"}, {20});
  const UnitResult result = sweep.run({});
  const std::span<const std::uint32_t> gone = std::span(result.kept.front().evicted_at).first(140);
  const std::vector<TokenIndex> first = held_at(gone, 120, 0), last = held_at(gone, 120, 19);
  EXPECT_EQ(std::vector<TokenIndex>(first.begin(), first.begin() + 10), std::vector<TokenIndex>(last.begin(), last.begin() + 10));
}

// At the end of a dense prefill the decode-time forms choose what the one-shot forms choose.
TEST(StepwisePolicies, AgreeWithTheirOneShotFormsAtTheEndOfThePrompt) {
  const std::vector<std::pair<std::string, std::string>> pairs{{"decode:h2o(recent=0)", "h2o"},
                                                               {"decode:h2o(recent=0,unit=query)", "h2o(unit=query)"},
                                                               {"decode:tova(newest=true)", "tova"},
                                                               {"decode:streaming_llm", "streaming_llm"}};
  for (const auto& [stepwise, one_shot] : pairs) {
    StepSweep steps({stepwise}, {5, 31, 90});
    Sweep once({one_shot}, {5, 31, 90});
    const UnitResult a = steps.run({}), b = once.run({});
    ASSERT_EQ(a.kept.size(), b.kept.size());
    for (std::size_t i = 0; i < a.kept.size(); ++i) {
      EXPECT_EQ(a.kept[i].indices, b.kept[i].indices) << stepwise;
      EXPECT_EQ(a.kept[i].offsets, b.kept[i].offsets) << stepwise;
    }
  }
}

TEST(Decoding, KeepsWhatTheScoreKeepsOfTheWholeCache) {
  Shape shape;
  StepSweep sweep({"decode:decoding(score=knorm,every=8)"}, {30});
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty());
  const std::span<const std::uint32_t> gone = std::span(result.kept.front().evicted_at).first(140);
  EXPECT_EQ(held_at(gone, 120, 7).size(), 128u);  // nothing leaves before the first compression
  std::vector<TokenIndex> expected(128);
  std::iota(expected.begin(), expected.end(), 0u);
  const HeadBlock block = std::move(make_blocks(shape)[0]);
  const auto norm = [&](TokenIndex p) {
    double sum = 0;
    for (std::size_t c = 0; c < shape.key_dim; ++c) sum += static_cast<double>(block.key(p, c)) * static_cast<double>(block.key(p, c));
    return sum;
  };
  std::stable_sort(expected.begin(), expected.end(), [&](TokenIndex a, TokenIndex b) { return norm(a) < norm(b); });
  expected.resize(30);
  expected.push_back(128);
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(held_at(gone, 120, 8), expected);
}

TEST(Decoding, RefusesScoresOfTheWholePrompt) {
  EXPECT_THROW(StepSweep({"decode:decoding(score=h2o)"}, {10}), UserError);
}

}  // namespace
}  // namespace kvsim::test
