// Cutting and joining: a part holds the very numbers of the whole.
#include "traces/cut.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/traces/support.h"
#include "traces/trace_reader.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;

void expect_equal(MatrixView<const float> a, MatrixView<const float> b) {
  ASSERT_EQ(a.rows, b.rows);
  ASSERT_EQ(a.cols, b.cols);
  for (std::size_t r = 0; r < a.rows; ++r)
    ASSERT_TRUE(std::equal(a.row(r), a.row(r) + a.cols, b.row(r))) << r;
}

class CutTrace : public ::testing::Test {
 protected:
  void SetUp() override {
    SynthOptions options = testing::small_options();
    options.layers = 4;
    options.kv_heads = 4;
    options.query_heads = 8;
    synthesise(options, whole_);
  }
  TemporaryFolder folder_;
  std::string whole_ = folder_.file("whole.h5"), part_ = folder_.file("part.h5");
};

BlockRequest everything() {
  BlockRequest request;
  request.all_queries = request.attention_stats = request.query_stats = request.output_proj = true;
  return request;
}

TEST_F(CutTrace, KeepsTheNumbersOfLayersAndHeads) {
  CutOptions options;
  options.layers = {1, 3};
  options.heads = {0, 2, 3};
  EXPECT_TRUE(cut_trace(whole_, part_, options).empty());
  const TraceReader whole = TraceReader::open(whole_), part = TraceReader::open(part_);
  EXPECT_EQ(part.info().num_layers, 4u);
  ASSERT_EQ(part.info().layers.size(), 2u);
  EXPECT_EQ(part.info().layers[1].index, 3u);
  EXPECT_EQ(part.info().num_kv_heads, 3u);
  EXPECT_EQ(part.info().num_query_heads, 6u);
  EXPECT_EQ(part.info().layers[0].sliding_window, whole.info().layers[1].sliding_window);
  EXPECT_EQ(part.info().segments.size(), whole.info().segments.size());
  EXPECT_EQ(part.info().token_text, whole.info().token_text);
  const std::uint32_t heads[] = {0, 2, 3};
  for (std::size_t l = 0; l < 2; ++l) {
    for (std::uint32_t h = 0; h < 3; ++h) {
      const HeadBlock a = whole.read_head(2 * l + 1, heads[h], everything()),
                      b = part.read_head(l, h, everything());
      expect_equal(a.key.view(), b.key.view());
      expect_equal(a.value.view(), b.value.view());
      expect_equal(a.query.view(), b.query.view());
      expect_equal(a.output_proj.view(), b.output_proj.view());
      expect_equal(a.query_mean.view(), b.query_mean.view());
      expect_equal(a.query_covariance.view(), b.query_covariance.view());
      expect_equal(a.attention_stats.at("sum_sq").view(), b.attention_stats.at("sum_sq").view());
      EXPECT_EQ(a.query_stats_sinks, b.query_stats_sinks);
    }
  }
}

TEST_F(CutTrace, CutsStepsOffTheEnd) {
  CutOptions options;
  options.steps = 3;
  cut_trace(whole_, part_, options);
  const TraceReader whole = TraceReader::open(whole_), part = TraceReader::open(part_);
  EXPECT_EQ(part.info().decode_len, 3u);
  EXPECT_EQ(part.info().token_id.size(), part.info().tokens());
  EXPECT_EQ(part.info().segments.back().end, part.info().tokens());
  const HeadBlock a = whole.read_head(2, 1, everything()), b = part.read_head(2, 1, everything());
  const std::size_t tokens = part.info().tokens(), queries = a.query.rows() / 2;
  expect_equal(a.key.view().rows_from(0, tokens), b.key.view());
  for (std::size_t g = 0; g < 2; ++g) {
    expect_equal(a.query.view().rows_from(g * queries, queries - 5),
                 b.query.view().rows_from(g * (queries - 5), queries - 5));
  }
}

TEST_F(CutTrace, EverythingCutIsTheWhole) {
  cut_trace(whole_, part_, {});
  EXPECT_EQ(TraceReader::open(part_).info().digest, TraceReader::open(whole_).info().digest);
}

TEST_F(CutTrace, JoinedPartsAreTheWhole) {
  CutOptions low, high;
  low.layers = {0, 2};
  high.layers = {1, 3};
  cut_trace(whole_, folder_.file("low.h5"), low);
  cut_trace(whole_, folder_.file("high.h5"), high);
  merge_traces({folder_.file("high.h5"), folder_.file("low.h5")}, part_);
  const TraceReader whole = TraceReader::open(whole_), joined = TraceReader::open(part_);
  EXPECT_EQ(joined.info().digest, whole.info().digest);
  for (std::size_t l = 0; l < 4; ++l) {
    EXPECT_EQ(joined.info().layers[l].sliding_window, whole.info().layers[l].sliding_window);
    EXPECT_EQ(joined.info().layers[l].softmax_scale, whole.info().layers[l].softmax_scale);
  }
}

TEST_F(CutTrace, WhatIsNotThereCannotBeKept) {
  const auto cut = [&](const CutOptions& options) {
    return user_error([&] { cut_trace(whole_, part_, options); });
  };
  CutOptions options;
  options.layers = {1, 4};
  expect_contains(cut(options), "layers: found 4, expected among those of the trace: 0, 1, 2, 3");
  options.layers = {2, 1};
  expect_contains(cut(options), "expected ascending");
  options.layers.reset();
  options.heads = {9};
  expect_contains(cut(options), "KV heads: found 9");
  options.heads.reset();
  options.steps = 9;
  expect_contains(cut(options), "steps: found 9, expected 1 to 8");
  EXPECT_FALSE(std::filesystem::exists(part_));
}

TEST_F(CutTrace, TracesThatDoNotBelongTogetherAreNotJoined) {
  SynthOptions options = testing::small_options();
  options.kv_heads = 4;
  options.query_heads = 8;
  options.layers = 4;
  options.seed = 99;
  synthesise(options, folder_.file("other.h5"));
  CutOptions one, two;
  one.layers = {0};
  two.layers = {1};
  cut_trace(whole_, folder_.file("one.h5"), one);
  cut_trace(folder_.file("other.h5"), folder_.file("two.h5"), two);
  const auto join = [&](const std::string& a, const std::string& b) {
    return user_error([&] { merge_traces({folder_.file(a), folder_.file(b)}, part_); });
  };
  expect_contains(join("one.h5", "two.h5"), "/tokens/id differs from");
  expect_contains(join("one.h5", "whole.h5"), "holds layer 0, which");
  EXPECT_FALSE(std::filesystem::exists(part_));
}

}  // namespace
}  // namespace kvsim
