// Statistics of a recording: against plain loops over exact attention, and cases whose answer is known.
#include "sim/trace_statistics.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "tests/traces/support.h"

namespace kvsim {
namespace {

using testing::expect_contains;
using testing::TemporaryFolder;
using testing::user_error;

struct Row {
  double mean;
  std::uint64_t count;
};

Row find(const std::vector<StatisticRow>& rows, TraceStatistic what, std::uint32_t parameter,
         std::uint32_t head = 0) {
  for (const StatisticRow& row : rows) {
    if (row.statistic == what && row.parameter == parameter && row.query_head == head)
      return {row.mean, row.count};
  }
  ADD_FAILURE() << "no row for " << name_of(what) << " " << parameter;
  return {0, 0};
}

/// Three prompt tokens and three steps; attention [tokens][steps], by hand.
struct Small {
  Matrix<float> queries{3, 2};
  Matrix<float> attention{6, 3};
  Small() {
    const float q[3][2] = {{1, 0}, {0, 2}, {-3, 0}};
    const float a[3][6] = {
        {.5f, .1f, .1f, .3f, 0, 0}, {.4f, .05f, .05f, .3f, .2f, 0}, {.1f, .5f, .1f, .1f, .1f, .1f}};
    for (std::size_t t = 0; t < 3; ++t) {
      for (std::size_t c = 0; c < 2; ++c) queries(t, c) = q[t][c];
      for (std::size_t i = 0; i < 6; ++i) attention(i, t) = a[t][i];
    }
  }
  std::vector<StatisticRow> rows(std::uint32_t window = 0) const {
    StatisticsOptions options;
    options.lags = {1, 2, 4};
    options.top = 2;
    options.masses = {1, 2};
    return head_statistics(queries.view(), attention.view(), 3, window, options);
  }
};

TEST(HeadStatistics, FollowTheirDefinitionsOnAHandMadeHead) {
  const auto rows = Small().rows();
  using S = TraceStatistic;
  // cos of the steps' directions: x, y, -x.
  EXPECT_DOUBLE_EQ(find(rows, S::query_similarity, 1).mean, 0.0);
  EXPECT_DOUBLE_EQ(find(rows, S::query_similarity, 2).mean, -1.0);
  EXPECT_EQ(find(rows, S::query_similarity, 2).count, 1u);
  // Top 2 of step 0 {0,3}; step 1 among the 4 tokens of step 0 {0,3}; step 2 among the 5 of step 1 {1,0},
  // step 1 {0,3}.
  EXPECT_DOUBLE_EQ(find(rows, S::top_overlap, 1).mean, (1.0 + 0.5) / 2);
  EXPECT_DOUBLE_EQ(find(rows, S::top_overlap_chance, 1).mean, (2.0 / 4 + 2.0 / 5) / 2);
  // Important: step 0 (1/4) {0,3}; step 1 (1/5) {0,3,4}; step 2 (1/6) {1}.
  EXPECT_DOUBLE_EQ(find(rows, S::persistence, 1).mean, (1.0 + 0.0) / 2);
  EXPECT_DOUBLE_EQ(find(rows, S::persistence_window, 2).mean, 0.0);
  EXPECT_NEAR(find(rows, S::important_share, 0).mean, (2.0 / 4 + 3.0 / 5 + 1.0 / 6) / 3, 1e-12);
  EXPECT_NEAR(find(rows, S::sink_mass, 2).mean, (0.6 + 0.45 + 0.6) / 3, 1e-7);
  EXPECT_NEAR(find(rows, S::recent_mass, 1).mean, (0.3 + 0.2 + 0.1) / 3, 1e-7);
  // A lag that no pair of steps has is left out.
  EXPECT_TRUE(std::none_of(rows.begin(), rows.end(), [](const StatisticRow& r) { return r.parameter == 4; }));
}

TEST(HeadStatistics, CompareOnlyWhatBothQueriesSeeThroughAWindow) {
  // A window of 4: step 0 sees {0..3}, step 1 {1..4}, step 2 {2..5}.
  const auto rows = Small().rows(4);
  using S = TraceStatistic;
  // Both see {1,2,3} (and {2,3,4}): top 2 of step 0 there {3,1}, of step 1 {3,1} (a tie with 2, the earlier
  // goes first); step 1 {3,4}, step 2 {2,3}: ties at .1.
  EXPECT_DOUBLE_EQ(find(rows, S::top_overlap, 1).mean, (1.0 + 0.5) / 2);
  EXPECT_EQ(find(rows, S::top_overlap, 2).count, 0u);  // {2,3}: as many as there are top tokens
  EXPECT_TRUE(std::isnan(find(rows, S::top_overlap, 2).mean));
}

/// The definitions of trace_statistics.h in plain loops, from keys and queries.
struct Plain {
  std::vector<std::vector<double>> attention;  // [S][visible tokens]
  const TraceInfo& info;
  const LayerInfo& layer;

  Plain(const HeadBlock& block, const TraceInfo& i, const LayerInfo& l, std::size_t head)
      : info(i), layer(l) {
    for (std::size_t t = 0; t < info.decode_len; ++t) {
      const std::size_t seen = info.prompt_len + t + 1;
      std::vector<double> weight(seen, 0.0);
      double total = 0.0;
      for (std::size_t j = first(t); j < seen; ++j) {
        double dot = 0.0;
        for (std::size_t c = 0; c < info.head_dim; ++c) {
          dot += static_cast<double>(block.query(head * info.decode_len + t, c)) *
                 static_cast<double>(block.key(j, c));
        }
        weight[j] = std::exp(dot * layer.softmax_scale);
        total += weight[j];
      }
      for (double& w : weight) w /= total;
      attention.push_back(weight);
    }
  }
  std::size_t first(std::size_t t) const {
    const std::size_t seen = info.prompt_len + t + 1;
    return layer.sliding_window == 0 || seen <= layer.sliding_window ? 0 : seen - layer.sliding_window;
  }
  bool important(std::size_t t, std::size_t j) const {
    return attention[t][j] * static_cast<double>(attention[t].size() - first(t)) >= 1.0;
  }
  std::set<std::size_t> top(std::size_t t, std::size_t from, std::size_t to, std::size_t count) const {
    std::vector<std::size_t> order;
    for (std::size_t j = from; j < to; ++j) order.push_back(j);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return attention[t][a] > attention[t][b]; });
    return {order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count)};
  }
  double overlap(std::size_t lag, std::size_t count) const {
    double sum = 0.0, steps = 0.0;
    for (std::size_t t = lag; t < attention.size(); ++t) {
      const std::size_t from = first(t), to = attention[t - lag].size();
      if (to <= from + count) continue;
      const auto a = top(t, from, to, count), b = top(t - lag, from, to, count);
      for (const std::size_t j : a) sum += b.count(j) ? 1.0 / static_cast<double>(count) : 0.0;
      steps += 1;
    }
    return sum / steps;
  }
  double persistence(std::size_t near, std::size_t far) const {
    double sum = 0.0, steps = 0.0;
    for (std::size_t t = far; t < attention.size(); ++t) {
      double of = 0.0, still = 0.0;
      for (std::size_t j = first(t); j < attention[t - far].size(); ++j) {
        if (!important(t, j)) continue;
        of += 1;
        bool was = false;
        for (std::size_t k = near; k <= far; ++k) was = was || (j >= first(t - k) && important(t - k, j));
        still += was ? 1 : 0;
      }
      if (of > 0) {
        sum += still / of;
        steps += 1;
      }
    }
    return sum / steps;
  }
};

TEST(LayerStatistics, EqualPlainLoopsWithAndWithoutASlidingWindow) {
  const TemporaryFolder folder;
  SynthOptions synth = testing::small_options();
  synth.decode = 20;
  synthesise(synth, folder.file("t.h5"));
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  StatisticsOptions options;
  options.lags = {1, 3, 7};
  options.top = 6;
  for (std::size_t l = 0; l < 2; ++l) {
    const LayerInfo& layer = reader.info().layers[l];
    EXPECT_EQ(layer.sliding_window, l == 0 ? 20u : 0u);
    const auto rows = layer_statistics(reader, l, options);
    for (std::uint32_t h = 0; h < 4; ++h) {
      const Plain plain(reader.read_head(l, h / 2, {}), reader.info(), layer, h % 2);
      for (const std::uint32_t lag : options.lags) {
        using S = TraceStatistic;
        // A weight within a rounding of the even share or of its neighbour may fall on either side.
        EXPECT_NEAR(find(rows, S::top_overlap, lag, h).mean, plain.overlap(lag, 6), 0.02);
        EXPECT_NEAR(find(rows, S::persistence, lag, h).mean, plain.persistence(lag, lag), 0.02);
        EXPECT_NEAR(find(rows, S::persistence_window, lag, h).mean, plain.persistence(1, lag), 0.02);
      }
      double sinks = 0.0;
      for (const auto& row : plain.attention) sinks += row[0] + row[1] + row[2] + row[3];
      EXPECT_NEAR(find(rows, TraceStatistic::sink_mass, 4, h).mean, sinks / 20, 1e-6);
    }
  }
}

TEST(LayerStatistics, DoNotDependOnTheNumberOfThreads) {
  const TemporaryFolder folder;
  synthesise(testing::small_options(), folder.file("t.h5"));
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one = layer_statistics(reader, 1, {});
  omp_set_num_threads(3);
  const auto three = layer_statistics(reader, 1, {});
  omp_set_num_threads(before);
  ASSERT_EQ(one.size(), three.size());
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(one[i].mean == three[i].mean || (std::isnan(one[i].mean) && std::isnan(three[i].mean)));
    EXPECT_EQ(one[i].count, three[i].count);
  }
}

TEST(LayerStatistics, RefuseImpossibleOptions) {
  const TemporaryFolder folder;
  synthesise(testing::small_options(), folder.file("t.h5"));
  const TraceReader reader = TraceReader::open(folder.file("t.h5"));
  StatisticsOptions options;
  options.lags = {2, 1};
  expect_contains(user_error([&] { layer_statistics(reader, 0, options); }),
                  "lags: found 2,1, expected ascending numbers above 0");
  options.lags = {1};
  options.top = 0;
  expect_contains(user_error([&] { layer_statistics(reader, 0, options); }), "top: found 0");
}

}  // namespace
}  // namespace kvsim
