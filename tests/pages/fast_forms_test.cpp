// Policies whose data structures are clever equal their plain forms, request for request.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "policies/paging/predictor.h"
#include "tests/pages/slow_learning.h"

namespace kvsim::test {
namespace {

struct Case {
  Sequence sequence;
  std::uint64_t k;
};

/// Uniform, skewed, drifting and looping requests, with labels or with more or less right next uses.
Case random_case(Philox& philox, bool labels) {
  Case c;
  c.k = 1 + philox.next_below(24);
  const std::uint32_t universe = static_cast<std::uint32_t>(c.k) + 1 + philox.next_below(24);
  const std::uint32_t length = 1 + philox.next_below(400), kind = philox.next_below(4);
  for (std::uint32_t t = 0; t < length; ++t) {
    std::uint32_t page = philox.next_below(universe);
    if (kind == 1) page = std::min(page, philox.next_below(universe));
    if (kind == 2) page = (t / 20 + page / 3) % universe;
    if (kind == 3 && philox.next_below(8) != 0) page = t % (static_cast<std::uint32_t>(c.k) + 1);
    c.sequence.pages.push_back(page);
  }
  const std::uint32_t noise = philox.next_below(3) * 20;
  for (const double exact : c.sequence.next_use()) {
    const double number = labels ? philox.next_below(2) : exact + (noise == 0 ? 0 : philox.next_below(noise));
    c.sequence.numbers.push_back(noise == 40 ? -number : number);
  }
  return c;
}

using Slow = std::uint64_t (*)(const Sequence&, std::size_t, RandomSource&);

void expect_equal(const std::string& name, Slow slow, bool labels, int rounds) {
  Philox philox(41, labels ? 1 : 2);
  const auto policy = policy_of(name + "(predictor=file" + (labels ? "_label" : "") + "(path=\"p\"))");
  for (int round = 0; round < rounds; ++round) {
    const Case c = random_case(philox, labels);
    const auto seed = static_cast<std::uint32_t>(round);
    CacheSetup setup = setup_of(c.sequence, c.k);
    setup.random_override = [seed](RandomPurpose, std::uint64_t) {
      return std::make_unique<LcgSource>(seed);
    };
    LcgSource random(seed);
    ASSERT_EQ(run(*policy, c.sequence, setup).tally.misses, slow(c.sequence, c.k, random))
        << name << " k=" << c.k << " round " << round;
  }
}

TEST(FastForms, MarkPredict) { expect_equal("mark_predict", slow_mark_predict, true, 3000); }
TEST(FastForms, TrustDoubt) { expect_equal("trust_doubt", slow_trust_doubt, false, 3000); }
TEST(FastForms, FollowerRobust) { expect_equal("follower_robust", slow_follower_robust, false, 3000); }

TEST(FastForms, PlecoIsItsDefinitionToTwoBillionths) {
  Philox philox(42, 1);
  double worst = 0;
  for (const std::uint32_t universe : {1u, 2u, 30u, 1000u}) {
    Sequence s;
    for (int t = 0; t < 6000; ++t)
      s.pages.push_back(std::min(philox.next_below(universe), philox.next_below(universe)));
    const std::vector<double> exact = slow_pleco(s);
    PredictorField field("pleco", PredictionKind::next_use);
    field.prepare("test");
    const CacheSetup setup = setup_of(s, 10);
    const std::unique_ptr<Prediction> run = field->start(setup);
    for (std::size_t t = 0; t < s.pages.size(); ++t) {
      // Beside t - 1 the prediction is 1 / probability, and that is what is computed.
      const double time = static_cast<double>(t);
      const double fast = run->predict({.page = s.pages[t], .time = t}) - time;
      worst = std::max(worst, std::abs(fast / (exact[t] - time) - 1));
    }
  }
  EXPECT_LT(worst, 2e-9);
  EXPECT_GT(worst, 0);  // the two are not one code
}

/// Scores that change at every step, all of them, against a scan of the residents.
TEST(FastForms, FollowScoresNamesTheLowestScoreOfEveryStep) {
  Philox philox(43, 1);
  for (int round = 0; round < 1000; ++round) {
    const std::uint32_t k = 1 + philox.next_below(12), universe = k + 1 + philox.next_below(12), steps = 60;
    Matrix<float> mass(steps, universe);
    for (std::uint32_t s = 0; s < steps; ++s) {
      for (std::uint32_t p = 0; p < universe; ++p) mass(s, p) = static_cast<float>(philox.next_below(6));
    }
    Sequence sequence;
    for (std::uint32_t s = 0; s < steps; ++s) sequence.pages.push_back(philox.next_below(universe));
    AttentionScores scores{.mass = mass.view(), .lookahead = {}, .first_step = 0};
    const bool fixed = round % 3 == 0;
    if (fixed) scores.lookahead = mass.view();
    CacheSetup setup = setup_of(sequence, k);
    setup.attention = &scores;
    const std::string source = fixed ? "lookahead" : "last";
    const auto policy = policy_of("follow_scores(predictor=attention(source=" + source + "))");

    std::vector<Page> cache;
    std::uint64_t misses = 0;
    for (std::uint32_t t = 0; t < steps; ++t) {
      const Page q = sequence.pages[t];
      if (std::find(cache.begin(), cache.end(), q) != cache.end()) continue;
      ++misses;
      if (cache.size() < k) {
        cache.push_back(q);
        continue;
      }
      const auto score = [&](Page p) {
        double sum = 0;
        for (std::uint32_t s = 0; s < steps; ++s) sum += static_cast<double>(mass(s, p));
        return fixed ? sum : t == 0 ? 0.0 : static_cast<double>(mass(t - 1, p));
      };
      *std::min_element(cache.begin(), cache.end(), [&](Page a, Page b) { return score(a) < score(b); }) = q;
    }
    ASSERT_EQ(run(*policy, sequence, setup).tally.misses, misses) << source << " k=" << k;
  }
}

}  // namespace
}  // namespace kvsim::test
