// kvsim trace queries, from traces to policies that read its file; and what kvsim list says of methods it
// does not replay.
#include <gtest/gtest.h>

#include <set>

#include "policies/not_replayed.h"
#include "policies/registry.h"
#include "sim/query_library.h"
#include "tests/cli/program.h"
#include "traces/h5/file.h"
#include "traces/trace_reader.h"

namespace kvsim::test {
namespace {

const std::string kSynth =
    "kvsim trace synth --layers 2 --query-heads 4 --kv-heads 2 --head-dim 16 --prompt 80 --decode 6 ";

TEST(TraceQueries, AreReadByThePoliciesTheyAreMadeFor) {
  const Folder folder;
  ASSERT_EQ(shell(kSynth + "--seed 1 -o " + (folder / "a.h5")).code, 0);
  ASSERT_EQ(shell(kSynth + "--seed 2 -o " + (folder / "b.h5")).code, 0);
  const Outcome made = shell("kvsim trace queries " + (folder / "a.h5") + " " + (folder / "b.h5") + " -o " +
                             (folder / "q.h5"));
  ASSERT_EQ(made.code, 0) << made.text;
  EXPECT_NE(made.text.find("2 layers, 2 KV heads from 2 traces"), std::string::npos) << made.text;
  const Outcome run =
      shell("kvsim run --trace " + (folder / "a.h5") + " --policy \"qfilter(file=" + (folder / "q.h5") +
            ")\" --policy \"expected_attention_stats(file=" + (folder / "q.h5") +
            ")\" --policy qfilter --budget 25% --out " + (folder / "out"));
  EXPECT_EQ(run.code, 0) << run.text;
  const std::string csv = read(folder / "out/results.csv");
  EXPECT_NE(csv.find("expected_attention_stats"), std::string::npos);
}

TEST(TraceQueries, RefusesWhatDoesNotBelongTogether) {
  const Folder folder;
  ASSERT_EQ(shell(kSynth + "-o " + (folder / "a.h5")).code, 0);
  ASSERT_EQ(shell(kSynth + "--queries window:20 -o " + (folder / "w.h5")).code, 0);
  ASSERT_EQ(shell("kvsim trace synth --layers 1 --query-heads 4 --kv-heads 2 --head-dim 16 --prompt 80 "
                  "--decode 6 -o " +
                  (folder / "one.h5"))
                .code,
            0);
  const auto refused = [&](const std::string& arguments, const std::string& part) {
    const Outcome outcome = shell("kvsim trace queries " + arguments);
    EXPECT_EQ(outcome.code, 2) << outcome.text;
    EXPECT_NE(outcome.text.find(part), std::string::npos) << outcome.text;
  };
  refused((folder / "w.h5") + " -o " + (folder / "q.h5"), "--queries all");
  refused((folder / "a.h5") + " " + (folder / "one.h5") + " -o " + (folder / "q.h5"),
          "other heads or recorded layers");
  refused((folder / "a.h5") + " -o " + (folder / "a.h5"), "source and target");
  refused((folder / "a.h5") + " --sinks 80 -o " + (folder / "q.h5"), "not longer");
  refused("-o " + (folder / "q.h5"), "needs traces");
}

TEST(QueryLibrary, PoolsTheQueriesOfAllTraces) {
  const Folder folder;
  ASSERT_EQ(shell(kSynth + "--seed 1 -o " + (folder / "a.h5")).code, 0);
  ASSERT_EQ(shell(kSynth + "--seed 2 -o " + (folder / "b.h5")).code, 0);
  const auto nothing = [] {};
  const QueryLibrary a = gather_queries({folder / "a.h5"}, 4, nothing),
                     b = gather_queries({folder / "b.h5"}, 4, nothing);
  const QueryLibrary both = gather_queries({folder / "a.h5", folder / "b.h5"}, 4, nothing);
  ASSERT_EQ(both.mean.size(), 2u * 4 * 16);
  ASSERT_EQ(both.covariance.size(), 2u * 4 * 16 * 16);
  ASSERT_EQ(both.filters.size(), 2u * 2 * 16);
  for (std::size_t i = 0; i < both.mean.size(); ++i) {
    EXPECT_NEAR(both.mean[i], (a.mean[i] + b.mean[i]) / 2, 1e-5);
    // 76 queries each: squares about the joint mean, divisor 151
    const std::size_t head = i / 16, c = i % 16, at = (head * 16 + c) * 16 + c;
    const double shift = (static_cast<double>(a.mean[i]) - static_cast<double>(b.mean[i])) / 2;
    const double expected =
        (75 * (static_cast<double>(a.covariance[at]) + static_cast<double>(b.covariance[at])) +
         152 * shift * shift) /
        151;
    EXPECT_NEAR(both.covariance[at], expected, 1e-4 * std::max(1.0, expected));
  }
}

TEST(ListPolicies, NamesWhatIsNotReplayedWithItsReason) {
  const Outcome listed = shell("kvsim list policies --all");
  ASSERT_EQ(listed.code, 0);
  std::string_view before;
  for (const NotReplayed& one : not_replayed()) {
    EXPECT_NE(listed.text.find(std::string(one.reason)), std::string::npos) << one.name;
    EXPECT_GT(one.reason.size(), 30u) << one.name;
    EXPECT_LT(before, one.name);
    EXPECT_EQ(find_policy(one.name), nullptr) << one.name << " is replayed after all";
    before = one.name;
  }
  EXPECT_EQ(shell("kvsim list policies").text.find("not replayed"), std::string::npos);
}

TEST(ListPolicies, HoldsEveryScorerOfKvpressAndItsNeighbours) {
  // The reference's tables of presses and of KVCache-Factory's methods: scorers and wrappers around them.
  const std::set<std::string> replayed{"ada",
                                       "block",
                                       "caote",
                                       "capkv",
                                       "chunk",
                                       "chunkkv",
                                       "compactor",
                                       "critical",
                                       "cur",
                                       "dropkv",
                                       "expected_attention",
                                       "expected_attention_stats",
                                       "fast_caote",
                                       "fastkvzip",
                                       "finch",
                                       "h2o",
                                       "keydiff",
                                       "knorm",
                                       "kvzap",
                                       "lagkv",
                                       "laq",
                                       "laq_pp",
                                       "leverage",
                                       "nacl",
                                       "noncausal",
                                       "obcache",
                                       "observed_attention",
                                       "oracle_output",
                                       "pyramidkv",
                                       "qfilter",
                                       "random",
                                       "scissorhands",
                                       "skip",
                                       "snapkv",
                                       "streaming_llm",
                                       "tova",
                                       "vatp"};
  for (const std::string& name : replayed) EXPECT_NE(find_policy(name), nullptr) << name;
  const std::set<std::string_view> explained{"composed",  "entropy_gated_chunkkv",
                                             "gear",      "headkv",
                                             "kivi",      "kvgrad",
                                             "kvquant",   "less",
                                             "look_m",    "minference",
                                             "minicache", "quest",
                                             "restorekv", "skipkv_steering",
                                             "zigzagkv"};
  std::set<std::string_view> listed;
  for (const NotReplayed& one : not_replayed()) listed.insert(one.name);
  for (const std::string_view name : explained) EXPECT_TRUE(listed.contains(name)) << name;
}

}  // namespace
}  // namespace kvsim::test
