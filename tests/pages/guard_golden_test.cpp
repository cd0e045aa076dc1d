// Golden numbers of Guard and its companions. All come from the reference notes on Guard
// (OptiSys-ZJU/Cache-Coliseum @ 4568bb6) 1.9 and 1.10, where the authors' own classes were run on these
// sequences.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/pages/page_run.h"

namespace kvsim::test {
namespace {

const std::string kFile = "predictor=file(path=\"p\")";
const std::string kBlind = "blindoracle(" + kFile + ")";
const std::string kFollow = "follow_labels(predictor=file_label(path=\"p\"))";
std::string guard(const std::string& base, const std::string& more = "") {
  return "guard(base=" + base + more + ")";
}

void expect_distribution(const std::map<std::uint64_t, double>& got,
                         const std::map<std::uint64_t, double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [cost, probability] : expected) {
    ASSERT_TRUE(got.count(cost)) << cost;
    EXPECT_NEAR(got.at(cost), probability, 1e-12) << cost;
  }
}

class GoldenG1 : public ::testing::Test {
 protected:
  Sequence exact = sequence_of("1 2 3 4 1 2 5 1 2 3 4 5", "4 5 9 10 7 8 11 13 13 13 13 13");
  Sequence labels = sequence_of("1 2 3 4 1 2 5 1 2 3 4 5", "0 0 1 1 0 0 0 1 0 1 0 0");
};

TEST_F(GoldenG1, OraclesGiveThePrintedPredictions) {
  EXPECT_EQ(exact.next_use(), exact.numbers);
  EXPECT_EQ(misses("follow_labels", exact, 3), 7u);  // Belady labels by our own run of Belady
}

TEST_F(GoldenG1, DeterministicPolicies) {
  EXPECT_EQ(misses("belady", exact, 3), 7u);
  EXPECT_EQ(fewest_misses(exact, 3), 7u);
  EXPECT_EQ(misses("lru", exact, 3), 10u);
  EXPECT_EQ(misses(kBlind, exact, 3), 7u);
  EXPECT_EQ(misses("blindoracle", exact, 3), 7u);
}

TEST_F(GoldenG1, EveryRandomBranchIsOptimal) {
  for (const std::string& spec : {guard(kBlind), "predictive_marker(" + kFile + ")", "lmarker(" + kFile + ")",
                                  std::string("follower_robust"), std::string("trust_doubt")}) {
    expect_distribution(distribution(spec, exact, 3), {{7, 1.0}});
  }
  for (const std::string& spec :
       {kFollow, guard(kFollow), std::string("mark0(predictor=file_label(path=\"p\"))")}) {
    expect_distribution(distribution(spec, labels, 3), {{7, 1.0}});
  }
}

TEST_F(GoldenG1, ExactExpectationsOfRandomisedPolicies) {
  EXPECT_NEAR(mean(distribution("marker", exact, 3)), 9.3333, 5e-5);
  EXPECT_NEAR(mean(distribution("random", exact, 3)), 8.9835, 5e-5);
  EXPECT_NEAR(mean(distribution("mark_predict", exact, 3)), 7.6667, 5e-5);
}

class GoldenG2 : public ::testing::Test {
 protected:
  const std::string words = "a b c e d c e b d e b e c d";
  Sequence wrong = sequence_of(words, "3 2 5 6 8 12 9 10 13 10 15 15 15 15");
  Sequence with(const std::string& numbers) const { return sequence_of(words, numbers); }
};

TEST_F(GoldenG2, NextUsesOfTheTable) {
  EXPECT_EQ(wrong.next_use(), numbers_of("15 7 5 6 8 12 9 10 13 11 15 15 15 15"));
}

TEST_F(GoldenG2, WrongPredictionsWithoutEffectiveChance) {
  EXPECT_EQ(misses("belady", wrong, 3), 7u);
  EXPECT_EQ(misses(kBlind, wrong, 3), 11u);
  EXPECT_EQ(misses("lru", wrong, 3), 9u);
  expect_distribution(distribution(guard(kBlind), wrong, 3), {{9, 1.0}});
  expect_distribution(distribution(guard(kBlind, ",relax_times=5"), wrong, 3), {{11, 1.0}});
  expect_distribution(distribution(guard(kBlind, ",follow_if_guarded=true"), wrong, 3), {{9, 1.0}});
  expect_distribution(distribution("lmarker(" + kFile + ")", wrong, 3), {{8, 1.0}});
}

TEST_F(GoldenG2, CountersOfTheHandWorkedTable) {
  CacheSetup setup = setup_of(wrong, 3);
  setup.detail = true;
  const Outcome outcome = run(*policy_of(guard(kBlind)), wrong, setup);
  EXPECT_EQ(outcome.guard.phases, 3u);
  EXPECT_EQ(outcome.guard.guards, 2u);
  EXPECT_EQ(outcome.guard.errors, 2u);
  EXPECT_EQ(outcome.guard.random_evictions, 2u);
  EXPECT_EQ(outcome.guard.base_evictions, 4u);
  ASSERT_EQ(outcome.guard.detail.size(), 3u);
  EXPECT_EQ(outcome.guard.detail[0].begin, 3u);
  EXPECT_EQ(outcome.guard.detail[1].begin, 7u);
  EXPECT_EQ(outcome.guard.detail[2].begin, 12u);
  EXPECT_EQ(outcome.guard.detail[0].misses, 4u);
}

TEST_F(GoldenG2, Labels) {
  const Sequence exact = with("1 1 0 0 0 1 0 0 0 0 0 1 0 0");
  EXPECT_NEAR(mean(distribution(kFollow, exact, 3)), 7, 1e-12);
  EXPECT_NEAR(mean(distribution(guard(kFollow), exact, 3)), 7, 1e-12);
  const Sequence flipped = with("0 0 1 1 1 0 1 1 1 1 1 0 1 1");
  expect_distribution(distribution(guard(kFollow), flipped, 3), {{10, .375}, {11, .5}, {12, .125}});
  EXPECT_NEAR(mean(distribution(kFollow, flipped, 3)), 11.6875, 1e-12);
  for (const std::string all : {"0 0 0 0 0 0 0 0 0 0 0 0 0 0", "1 1 1 1 1 1 1 1 1 1 1 1 1 1"}) {
    EXPECT_NEAR(mean(distribution(guard(kFollow), with(all), 3)), 9.0556, 5e-5);
    EXPECT_NEAR(mean(distribution(kFollow, with(all), 3)), 9.4024, 5e-5);
  }
  EXPECT_NEAR(mean(distribution("random", exact, 3)), 9.4024, 5e-5);
}

TEST_F(GoldenG2, BothFormsOfMarker) {
  EXPECT_NEAR(mean(distribution("marker", wrong, 3)), 8.8333, 5e-5);
  EXPECT_NEAR(mean(distribution("marker_eager", wrong, 3)), 9.1667, 5e-5);
}

TEST_F(GoldenG2, SecondCase) {
  const Sequence s = sequence_of("a b c e a e a c d e a e d e", "1 4 7 5 6 9 10 15 12 11 15 13 15 16");
  EXPECT_EQ(misses("belady", s, 3), 5u);
  EXPECT_EQ(misses(kBlind, s, 3), 8u);
  EXPECT_EQ(misses("lru", s, 3), 8u);
  expect_distribution(distribution(guard(kBlind), s, 3), {{6, 1.0}});
  expect_distribution(distribution(guard(kBlind, ",relax_times=5"), s, 3), {{8, 1.0}});
  expect_distribution(distribution(guard(kBlind, ",follow_if_guarded=true"), s, 3), {{9, 1.0}});
  expect_distribution(distribution("lmarker(" + kFile + ")", s, 3), {{6, 1.0}});
}

TEST(GoldenG3, ExactDistributionOverRealChance) {
  const Sequence s = sequence_of("0 1 2 3 0 1 2 3 0 1 2 3");
  EXPECT_EQ(misses("belady", s, 3), 6u);
  EXPECT_EQ(misses("lru", s, 3), 12u);
  expect_distribution(distribution(guard("lru"), s, 3), {{9, .125}, {10, .375}, {11, .375}, {12, .125}});
  EXPECT_NEAR(mean(distribution(guard("lru"), s, 3)), 10.5, 1e-12);
  expect_distribution(distribution(guard("lru", ",follow_if_guarded=true"), s, 3), {{12, 1.0}});
  expect_distribution(distribution(guard("lru", ",relax_times=2"), s, 3), {{12, 1.0}});
  expect_distribution(distribution(guard("lru", ",relax_times=5"), s, 3), {{12, 1.0}});
  const Sequence classic = sequence_of("1 2 3 4 1 2 5 1 2 3 4 5");
  EXPECT_EQ(misses("lru", classic, 3), 10u);
  expect_distribution(distribution(guard("lru"), classic, 3), {{9, .5}, {10, .5}});
}

/// The sequence and the noise of G4.
struct LongCase {
  Sequence sequence;
  std::vector<double> perfect, noisy, bad, inverted;

  LongCase() {
    Lcg lcg(12345);
    for (std::uint32_t t = 0; t < 2000; ++t) {
      const std::uint32_t a = lcg.draw(), b = lcg.draw();
      sequence.pages.push_back(b % 4 == 0 ? a % 24 : b % 4 == 1 ? (a * b) % 7 : (t / 3) % 24);
    }
    perfect = sequence.next_use();
    for (std::size_t t = 0; t < 2000; ++t) {
      const double z = lcg.draw() % 64;
      noise_sum += z;
      noisy.push_back(perfect[t] + (static_cast<int>(z) % 3 != 0 ? z : 10 * z));
      bad.push_back(static_cast<double>(t) + 1 + z);
      inverted.push_back(-perfect[t]);
    }
  }
  std::uint64_t count(const std::string& spec, std::uint64_t k, GuardCounters* counters = nullptr) const {
    CacheSetup setup = setup_of(sequence, k);
    setup.random_override = [](RandomPurpose, std::uint64_t) { return std::make_unique<LcgSource>(777); };
    const Outcome outcome = run(*policy_of(spec), sequence, setup);
    if (counters != nullptr) *counters = outcome.guard;
    return outcome.tally.misses;
  }
  double noise_sum = 0;
};

TEST(GoldenG4, InputsAreTheReferences) {
  const LongCase c;
  double pages = 0, noisy = 0;
  for (const Page p : c.sequence.pages) pages += p;
  for (const double x : c.noisy) noisy += x;
  EXPECT_EQ(pages, 18826);
  EXPECT_EQ(c.noise_sum, 64164);
  EXPECT_EQ(noisy, 2313423);
  const std::vector<Page> first(c.sequence.pages.begin(), c.sequence.pages.begin() + 16);
  EXPECT_EQ(first, (std::vector<Page>{12, 0, 1, 1, 5, 1, 2, 3, 1, 21, 0, 23, 5, 4, 4, 5}));
}

TEST(GoldenG4, TableAtEight) {
  struct Row {
    const char* name;
    std::vector<double> LongCase::*predictions;
    std::uint64_t blind, guard, relaxed, no_random, lmarker, pred_marker, guards, phases;
  };
  const Row rows[] = {{"perfect", &LongCase::perfect, 592, 592, 592, 592, 871, 871, 0, 76},
                      {"noisy", &LongCase::noisy, 809, 895, 830, 864, 993, 981, 202, 87},
                      {"bad", &LongCase::bad, 1108, 1058, 1101, 1051, 1024, 1030, 317, 92},
                      {"inverted", &LongCase::inverted, 1580, 1370, 1507, 1338, 1219, 1248, 476, 112}};
  LongCase c;
  EXPECT_EQ(c.count("belady", 8), 592u);
  EXPECT_EQ(c.count("lru", 8), 1037u);
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    c.sequence.numbers = c.*row.predictions;
    EXPECT_EQ(c.count(kBlind, 8), row.blind);
    GuardCounters counters;
    EXPECT_EQ(c.count(guard(kBlind), 8, &counters), row.guard);
    EXPECT_EQ(counters.guards, row.guards);
    EXPECT_EQ(counters.phases, row.phases);
    EXPECT_EQ(c.count(guard(kBlind, ",relax_times=5"), 8), row.relaxed);
    EXPECT_EQ(c.count(guard(kBlind, ",follow_if_guarded=true"), 8), row.no_random);
    EXPECT_EQ(c.count("lmarker(" + kFile + ")", 8), row.lmarker);
    // As coded in Cache-Coliseum: its chains never grow, so it never draws.
    EXPECT_EQ(c.count("predictive_marker(" + kFile + ",gamma=1e300)", 8), row.pred_marker);
  }
}

TEST(GoldenG4, OtherCapacities) {
  struct Row {
    std::uint64_t k, opt, lru, fifo, blind, guard;
  };
  const Row rows[] = {{1, 1584, 1584, 1584, 1584, 1584}, {2, 1255, 1424, 1431, 1400, 1426},
                      {3, 1071, 1364, 1373, 1255, 1306}, {4, 934, 1297, 1295, 1133, 1199},
                      {6, 742, 1153, 1165, 958, 1017},   {12, 389, 788, 817, 599, 703},
                      {16, 240, 556, 647, 425, 529},     {20, 117, 372, 335, 232, 295}};
  LongCase c;
  for (const Row& row : rows) {
    SCOPED_TRACE(row.k);
    EXPECT_EQ(c.count("belady", row.k), row.opt);
    EXPECT_EQ(c.count("lru", row.k), row.lru);
    EXPECT_EQ(c.count("fifo", row.k), row.fifo);
    c.sequence.numbers = c.noisy;
    EXPECT_EQ(c.count(kBlind, row.k), row.blind);
    EXPECT_EQ(c.count(guard(kBlind), row.k), row.guard);
    c.sequence.numbers = c.perfect;
    EXPECT_EQ(c.count(guard(kBlind), row.k), row.opt);
  }
}

TEST(GoldenG4, MeansOverTwoHundredSeeds) {
  LongCase c;
  struct Row {
    std::vector<double> LongCase::*predictions;
    double mean, deviation;  // over 200 Mersenne seeds in the reference
  };
  for (const Row& row : {Row{&LongCase::noisy, 892.1, 7.4}, Row{&LongCase::bad, 1062.8, 8.3},
                         Row{&LongCase::inverted, 1365.2, 5.8}}) {
    c.sequence.numbers = c.*row.predictions;
    double sum = 0;
    for (std::uint64_t seed = 0; seed < 200; ++seed)
      sum += static_cast<double>(misses(guard(kBlind), c.sequence, 8, seed));
    // Two means of 200 draws each: five standard errors of their difference.
    EXPECT_NEAR(sum / 200, row.mean, 5 * row.deviation * std::sqrt(2.0 / 200));
  }
}

/// Sum over sets of the misses on a cyclic scan of `lines` lines, ten times, set = line mod sets.
std::uint64_t scan_misses(const std::string& spec, std::uint32_t sets, std::uint32_t ways) {
  std::uint64_t sum = 0;
  for (std::uint32_t set = 0; set < sets; ++set) {
    Sequence s;
    for (int round = 0; round < 10; ++round) {
      for (std::uint32_t line = 0; line < 1000; ++line) {
        if (line % sets == set) s.pages.push_back(line / sets);
      }
    }
    sum += misses(spec, s, ways);
  }
  return sum;
}

TEST(GoldenG5, CyclicScanInSets) {
  EXPECT_EQ(scan_misses("belady", 16, 16), 7696u);
  EXPECT_EQ(scan_misses(guard("blindoracle"), 16, 16), 7696u);
  EXPECT_EQ(scan_misses("mark0", 16, 16), 7696u);
  EXPECT_EQ(scan_misses("lru", 16, 16), 10000u);
  EXPECT_EQ(scan_misses("predictive_marker(predictor=popu,gamma=1e300)", 16, 16), 10000u);
  EXPECT_EQ(scan_misses("blindoracle(predictor=popu)", 16, 16), 7728u);
  EXPECT_EQ(scan_misses("blindoracle(predictor=pleco)", 16, 16), 7696u);
  EXPECT_EQ(scan_misses(guard("blindoracle(predictor=pleco)"), 16, 16), 7696u);
  EXPECT_EQ(scan_misses("belady", 1, 256), 7696u);
  EXPECT_EQ(scan_misses("blindoracle(predictor=popu)", 1, 256), 7697u);
  EXPECT_EQ(scan_misses("belady", 16, 4), 9520u);
  EXPECT_EQ(scan_misses("blindoracle(predictor=popu)", 16, 4), 9568u);
  EXPECT_EQ(scan_misses("blindoracle(predictor=pleco)", 16, 4), 9520u);
}

}  // namespace
}  // namespace kvsim::test
