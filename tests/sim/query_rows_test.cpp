// Attention of chosen query rows against the plain double computation.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "sim/features.h"
#include "tests/policies/dense_features.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

using Source = QueryRows::Source;

/// The same KV head twice: as the engine sees it, and dense in double.
struct Twice {
  Shape shape{.prompt = 75, .decode = 11};
  LayerContext context = make_layer(shape);
  std::vector<HeadBlock> blocks = make_blocks(shape);
  DenseLayer dense;
  std::unique_ptr<BlockFeatures> features;

  explicit Twice(std::uint32_t kv_head = 1) {
    const std::size_t tokens = shape.prompt + shape.decode, n = 5;
    HeadBlock& block = blocks[kv_head];
    Philox random(7, 7);
    block.lookahead_query["snapkv-16"] = Matrix<float>(shape.group * n, shape.key_dim);
    Matrix<float>& pseudo = block.lookahead_query["snapkv-16"];
    for (std::size_t i = 0; i < pseudo.rows(); ++i)
      for (std::size_t c = 0; c < pseudo.cols(); ++c) pseudo(i, c) = static_cast<float>(random.next_double() * 4 - 2);
    context.geometry.lookaheads = {{"snapkv-16", 16, n}};
    dense.geometry = context.geometry;
    const auto element = [&](const Matrix<float>& (*of)(const HeadBlock&), std::size_t h, std::size_t t, std::size_t c) {
      return static_cast<double>(of(blocks[h])(t, c));
    };
    dense.fill(
        [&](std::size_t h, std::size_t t, std::size_t c) {
          return static_cast<double>(blocks[h / shape.group].query(h % shape.group * tokens + t, c));
        },
        [&](std::size_t h, std::size_t t, std::size_t c) {
          return element([](const HeadBlock& b) -> const Matrix<float>& { return b.key; }, h, t, c);
        },
        [&](std::size_t h, std::size_t t, std::size_t c) {
          return element([](const HeadBlock& b) -> const Matrix<float>& { return b.value; }, h, t, c);
        });
    auto& queries = dense.lookahead["snapkv-16"];
    queries.resize(shape.kv_heads * shape.group);
    for (std::size_t h = 0; h < shape.group; ++h) {
      for (std::size_t i = 0; i < n; ++i) {
        queries[kv_head * shape.group + h].emplace_back();
        for (std::size_t c = 0; c < shape.key_dim; ++c)
          queries[kv_head * shape.group + h].back().push_back(static_cast<double>(pseudo(h * n + i, c)));
      }
    }
    features = std::make_unique<BlockFeatures>(block, context, std::vector<std::vector<float>>{}, 16);
  }
};

void expect_equal(MatrixView<const float> got, MatrixView<const float> expected, const std::string& what) {
  ASSERT_EQ(got.rows, expected.rows) << what;
  ASSERT_EQ(got.cols, expected.cols) << what;
  for (std::size_t r = 0; r < got.rows; ++r)
    for (std::size_t c = 0; c < got.cols; ++c) ASSERT_NEAR(got(r, c), expected(r, c), 2e-6) << what << " at " << r << "," << c;
}

TEST(QueryRows, EqualThePlainComputationForEverySource) {
  const Twice twice;
  const DenseFeatures dense(twice.dense, 1);
  const std::vector<QueryRows> sets{{.source = Source::window, .count = 16},
                                    {.source = Source::window, .count = 3},
                                    {.source = Source::window, .count = 8, .behind = 5},
                                    {.source = Source::prompt, .first = 0, .count = 9},
                                    {.source = Source::prompt, .first = 20, .count = 55},
                                    {.source = Source::lookahead, .count = 0, .pass = "snapkv-16"},
                                    {.source = Source::lookahead, .count = 3, .pass = "snapkv-16"},
                                    {.source = Source::lookahead, .count = 5, .staircase = true, .pass = "snapkv-16"},
                                    {.source = Source::oracle},
                                    {.source = Source::oracle, .count = 4}};
  for (std::size_t s = 0; s < sets.size(); ++s) {
    for (std::size_t h = 0; h < twice.shape.group; ++h) {
      const std::string what = fmt::format("set {}, head {}", s, h);
      expect_equal(twice.features->queries(sets[s], h), dense.queries(sets[s], h), what + " queries");
      expect_equal(twice.features->attention(sets[s], h), dense.attention(sets[s], h), what + " attention");
      expect_equal(twice.features->outputs(sets[s], h), dense.outputs(sets[s], h), what + " outputs");
    }
  }
}

TEST(QueryRows, OfTheFutureAreTheSameBitsOutOfTheExactSteps) {
  const Twice twice;
  const HeadBlock& block = twice.blocks[1];
  const ExactSteps exact(block, twice.context, {0, twice.shape.decode}, false);
  const BlockFeatures held(block, twice.context, {}, 16, {}, &exact);
  const auto bits = [](MatrixView<const float> view) {
    std::vector<std::uint32_t> out;
    for (std::size_t r = 0; r < view.rows; ++r)
      for (std::size_t c = 0; c < view.cols; ++c) out.push_back(std::bit_cast<std::uint32_t>(view(r, c)));
    return out;
  };
  for (const std::uint32_t count : {0u, 4u, 11u}) {
    for (std::size_t h = 0; h < twice.shape.group; ++h) {
      const QueryRows rows{.source = Source::oracle, .count = count};
      EXPECT_EQ(bits(held.attention(rows, h)), bits(twice.features->attention(rows, h))) << count << " of head " << h;
      EXPECT_EQ(bits(held.outputs(rows, h)), bits(twice.features->outputs(rows, h))) << count << " of head " << h;
    }
  }
  EXPECT_EQ(held.attention({.source = Source::oracle}, 0).data, exact.weights().data);
}

TEST(QueryRows, TilesOfThePromptAddUpToTheColumnSums) {
  const Twice twice;
  const DenseFeatures dense(twice.dense, 1);
  std::vector<double> sum(twice.shape.prompt, 0.0);
  std::size_t next = 0;
  twice.features->each_prompt_tile(2, [&](const PromptTile& tile) {
    EXPECT_EQ(tile.first, next);
    next = tile.first + tile.count;
    ASSERT_EQ(tile.weights.rows, next);
    for (std::size_t t = 0; t < tile.weights.rows; ++t)
      for (std::size_t i = 0; i < tile.count; ++i) sum[t] += static_cast<double>(tile.weights(t, i));
  });
  EXPECT_EQ(next, twice.shape.prompt);
  for (std::size_t t = 0; t < sum.size(); ++t) EXPECT_NEAR(sum[t], dense.attention_sum(2)[t], 1e-5);
}

TEST(QueryRows, HindsightReplacesGuessesByTheTrueQueries) {
  const Twice twice;
  const HindsightFeatures hindsight(*twice.features);
  expect_equal(hindsight.attention({.source = Source::window, .count = 4}, 0),
               twice.features->attention({.source = Source::oracle}, 0), "window");
  expect_equal(hindsight.attention({.source = Source::lookahead, .pass = "snapkv-16"}, 0),
               twice.features->attention({.source = Source::oracle}, 0), "lookahead");
}

TEST(SharedResults, AreComputedOnceAndMayNest) {
  const Twice twice;
  int runs = 0;
  const auto outer = [&] {
    ++runs;
    const std::span<const float> inner = twice.features->shared("inner", [&] {
      ++runs;
      return std::vector<float>{1, 2};
    });
    return std::vector<float>{inner[0] + 10, inner[1] + 10};
  };
  EXPECT_FLOAT_EQ(twice.features->shared("outer", outer)[1], 12);
  EXPECT_FLOAT_EQ(twice.features->shared("outer", outer)[0], 11);
  EXPECT_EQ(runs, 2);
}

}  // namespace
}  // namespace kvsim::test
