// Alignment of window and pseudo queries with the true decode queries, against logits computed one by one in
// double.
#include "sim/query_alignment.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/sim/synthetic_unit.h"

namespace kvsim {
namespace {

constexpr std::size_t kPseudo = 3;

/// A layer with a first pass of three pseudo queries; those of the first query head are its true decode
/// queries.
struct Setting {
  test::Shape shape{.prompt = 30, .decode = 5, .kv_heads = 1, .group = 2, .key_dim = 8};
  LayerContext layer;
  HeadBlock block;
  std::vector<float> frequencies{1.0f, 0.3f, 0.1f, 0.02f};
  std::vector<QueryStandIn> stand_ins{
      {"window-4", {.source = QueryRows::Source::window, .count = 4}},
      {"snapkv-16", {.source = QueryRows::Source::lookahead, .pass = "snapkv-16"}}};

  Setting() {
    layer = test::make_layer(shape);
    layer.geometry.lookaheads = {{"snapkv-16", 16, kPseudo}};
    layer.inverse_frequency = frequencies;
    layer.rope_layout = RopeLayout::half;
    block = std::move(test::make_blocks(shape).front());
    Matrix<float> pseudo(2 * kPseudo, shape.key_dim);
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t i = 0; i < kPseudo; ++i)
        for (std::size_t c = 0; c < shape.key_dim; ++c)
          pseudo(h * kPseudo + i, c) =
              query(h, shape.prompt + i)[c] + (h == 0 ? 0.0f : 0.25f * static_cast<float>(c));
    block.lookahead_query.emplace("snapkv-16", std::move(pseudo));
  }
  const float* query(std::size_t head, std::size_t position) const {
    return block.query.row(head * (shape.prompt + shape.decode) + position);
  }
};

/// |s' - s| / |s| with the means of both taken out.
double logit_error(const Setting& setting, const float* guess, const float* real) {
  std::vector<double> a, b;
  double mean_a = 0, mean_b = 0;
  for (std::size_t i = 0; i < setting.shape.prompt; ++i) {
    double of_guess = 0, of_real = 0;
    for (std::size_t c = 0; c < setting.shape.key_dim; ++c) {
      of_guess += static_cast<double>(guess[c]) * static_cast<double>(setting.block.key(i, c));
      of_real += static_cast<double>(real[c]) * static_cast<double>(setting.block.key(i, c));
    }
    a.push_back(of_guess);
    b.push_back(of_real);
    mean_a += of_guess / static_cast<double>(setting.shape.prompt);
    mean_b += of_real / static_cast<double>(setting.shape.prompt);
  }
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - mean_a - b[i] + mean_b) * (a[i] - mean_a - b[i] + mean_b);
    size += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return std::sqrt(difference / size);
}

double cosine(std::span<const double> a, std::span<const double> b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

/// The vector before it was rotated for `position`, pairs (i, i + 4).
std::vector<double> plain(const Setting& setting, const float* vector, double position) {
  std::vector<double> out(8);
  for (std::size_t i = 0; i < 4; ++i) {
    const double angle = -position * static_cast<double>(setting.frequencies[i]);
    const double x = vector[i], y = vector[i + 4];
    out[i] = x * std::cos(angle) - y * std::sin(angle);
    out[i + 4] = x * std::sin(angle) + y * std::cos(angle);
  }
  return out;
}

TEST(AlignQueries, EqualsPairsComputedOneByOne) {
  const Setting setting;
  const std::vector<QueryAlignment> all = align_queries(setting.layer, setting.block, setting.stand_ins);
  // Distances: a window of 4 before 5 steps 1..8, three pseudo queries beside 5 steps -2..4; two query heads
  // each.
  ASSERT_EQ(all.size(), 2 * (8 + 7));
  std::size_t pairs = 0;
  for (const QueryAlignment& one : all) {
    double sum_cosine = 0, sum_plain = 0, sum_error = 0;
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < (one.stand_in == 0 ? 4 : kPseudo); ++i) {
      for (std::size_t step = 0; step < setting.shape.decode; ++step) {
        const std::size_t at = one.stand_in == 0 ? setting.shape.prompt - 4 + i : setting.shape.prompt + i;
        if (static_cast<std::int64_t>(setting.shape.prompt + step) - static_cast<std::int64_t>(at) !=
            one.distance)
          continue;
        const float* guess =
            one.stand_in == 0
                ? setting.query(one.query_head, at)
                : setting.block.lookahead_query.at("snapkv-16").row(one.query_head * kPseudo + i);
        const float* real = setting.query(one.query_head, setting.shape.prompt + step);
        sum_cosine += cosine(std::vector<double>(guess, guess + 8), std::vector<double>(real, real + 8));
        sum_plain += cosine(plain(setting, guess, static_cast<double>(at)),
                            plain(setting, real, static_cast<double>(setting.shape.prompt + step)));
        sum_error += logit_error(setting, guess, real);
        ++count;
      }
    }
    ASSERT_EQ(one.pairs, count);
    EXPECT_NEAR(one.cosine, sum_cosine / static_cast<double>(count), 1e-6);
    EXPECT_NEAR(one.cosine_unrotated, sum_plain / static_cast<double>(count), 1e-6);
    EXPECT_NEAR(one.logit_error, sum_error / static_cast<double>(count), 1e-6);
    EXPECT_EQ(one.layer, 3u);
    pairs += one.pairs;
  }
  EXPECT_EQ(pairs, 2 * (4 + kPseudo) * setting.shape.decode);
}

TEST(AlignQueries, EqualQueriesAtTheSamePlaceHaveNoError) {
  const Setting setting;
  const std::vector<QueryAlignment> all = align_queries(setting.layer, setting.block, setting.stand_ins);
  const auto same_place = [&](std::uint32_t head) {
    return mean_alignment(all, [=](const QueryAlignment& one) {
      return one.stand_in == 1 && one.query_head == head && one.distance == 0;
    });
  };
  EXPECT_EQ(same_place(0).pairs, kPseudo);
  EXPECT_NEAR(same_place(0).cosine, 1.0, 1e-12);
  EXPECT_LT(same_place(0).logit_error, 1e-6);
  EXPECT_GT(same_place(1).logit_error, 0.01);
  EXPECT_LT(same_place(1).cosine, 0.999);
}

TEST(AlignQueries, ASlidingWindowLeavesOutKeysThatTheFirstStepDoesNotSee) {
  Setting setting;
  const auto error = [&] {
    return align_queries(setting.layer, setting.block, setting.stand_ins).front().logit_error;
  };
  const double all_keys = error();
  setting.layer.geometry.sliding_window = 9;
  const double seen = error();
  EXPECT_NE(seen, all_keys);
  for (std::size_t i = 0; i < 30 - 8; ++i)
    for (std::size_t c = 0; c < 8; ++c) setting.block.key(i, c) += 5.0f;
  EXPECT_EQ(error(), seen);
}

TEST(MeanAlignment, WeighsPairsAndIsUndefinedWithoutAny) {
  std::vector<QueryAlignment> all(2);
  all[0].pairs = 1;
  all[0].cosine = 1.0;
  all[1].pairs = 3;
  all[1].cosine = 0.5;
  EXPECT_DOUBLE_EQ(mean_alignment(all, [](const QueryAlignment&) { return true; }).cosine, 0.625);
  EXPECT_TRUE(std::isnan(mean_alignment(all, [](const QueryAlignment&) { return false; }).cosine));
}

TEST(GuessedTokens, CountsEqualOnesAndThoseBeforeTheFirstMistake) {
  TraceInfo trace;
  trace.prompt_len = 2;
  trace.token_id = {9, 9, 1, 2, 3, 4};
  LookaheadInfo pass;
  pass.token_id = {1, 2, 7, 4, 5, 6};
  const GuessedTokens guessed = guessed_tokens(trace, pass);
  EXPECT_EQ(guessed.compared, 4u);
  EXPECT_EQ(guessed.equal, 3u);
  EXPECT_EQ(guessed.leading, 2u);
}

TEST(QueryStandIns, AreTheWindowAndEveryPass) {
  TraceInfo trace;
  trace.lookaheads.resize(2);
  trace.lookaheads[0].name = "snapkv-64";
  trace.lookaheads[1].name = "snapkv-128";
  const std::vector<QueryStandIn> all = query_stand_ins(trace, 8);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].name, "window-8");
  EXPECT_EQ(all[2].rows.pass, "snapkv-128");
  EXPECT_EQ(query_stand_ins(trace, 0).size(), 2u);
}

}  // namespace
}  // namespace kvsim
