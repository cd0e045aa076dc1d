// The GPU behind kernels/backend.h against the CPU kernels on peaky heads. Skipped, not passed, where there
// is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/error.h"
#include "kernels/removal.h"
#include "tests/gpu/head_cases.h"

namespace kvsim {
namespace {

class CudaReplay : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::devices().empty()) GTEST_SKIP() << "no GPU";
    device = cuda::open_device(0, 0);
  }
  std::unique_ptr<DeviceHead> load(const HeadCase& head) { return device->load(head.input()); }
  std::unique_ptr<Device> device;
};

TEST_F(CudaReplay, ExactWeightsOutputsRanksAndNeededSetsAreThoseOfTheCpu) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const OnCpu cpu(head);
    const auto gpu = load(head);
    const Matrix<float> weights = gpu->weights();
    const Matrix<std::uint32_t> ranks = gpu->ranks();
    const HeadExact& exact = gpu->exact();
    ASSERT_EQ(weights.rows(), head.tokens());
    ASSERT_EQ(ranks.rows(), of.shape.prompt);
    std::size_t moved = 0;
    for (std::size_t row = 0; row < head.rows(); ++row) {
      for (std::size_t t = 0; t < head.tokens(); ++t) {
        const double expected = static_cast<double>(cpu.ready.weights(t, row));
        ASSERT_NEAR(static_cast<double>(weights(t, row)), expected, 2e-6 * expected + 1e-37)
            << "token " << t << " row " << row;
      }
      double norm = 0, error = 0;
      for (std::size_t c = 0; c < of.shape.value_dim; ++c) {
        const double expected = static_cast<double>(cpu.ready.exact(c, row));
        norm += expected * expected;
        error += std::pow(static_cast<double>(exact.output(row, c)) - expected, 2.0);
      }
      ASSERT_LE(std::sqrt(error), 2e-6 * std::sqrt(norm)) << "row " << row;
      for (std::size_t t = 0; t < of.shape.prompt; ++t) {
        ASSERT_EQ(ranks(t, row) == 0xFFFFFFFFu, cpu.ranks(t, row) == 0xFFFFFFFFu)
            << "token " << t << " row " << row;
        moved += ranks(t, row) != cpu.ranks(t, row);
      }
      for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
        EXPECT_NEAR(exact.needed_total[c][row], cpu.total[c][row], 1) << "fraction " << c << " row " << row;
        EXPECT_NEAR(exact.needed_prompt[c][row], cpu.prompt[c][row], 1) << "fraction " << c << " row " << row;
      }
    }
    // Weights differ in their last bit here and there, so near ties may change places.
    EXPECT_LE(static_cast<double>(moved), 0.02 * static_cast<double>(head.rows() * of.shape.prompt))
        << moved << " ranks";
  }
}

TEST_F(CudaReplay, RanksOrderTheDevicesOwnWeightsWithTiesToTheEarlierPosition) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const auto gpu = load(head);
    const Matrix<float> weights = gpu->weights();
    const Matrix<std::uint32_t> ranks = gpu->ranks();
    for (std::size_t row = 0; row < head.rows(); row += 7) {
      std::vector<TokenIndex> seen;
      for (TokenIndex t = 0; t < of.shape.prompt; ++t)
        if (head.sees(row, t)) seen.push_back(t);
      std::ranges::stable_sort(seen, std::ranges::greater{}, [&](TokenIndex t) { return weights(t, row); });
      for (std::uint32_t rank = 0; rank < seen.size(); ++rank)
        ASSERT_EQ(ranks(seen[rank], row), rank) << "row " << row;
    }
  }
}

TEST_F(CudaReplay, EqualWeightsRankByPosition) {
  Case of{.shape = {.prompt = 9000, .steps = 20, .group = 2, .head_dim = 64, .value_dim = 64}};
  HeadCase head(of);
  for (std::size_t t = 0; t < head.tokens(); ++t)
    for (std::size_t c = 0; c < of.shape.head_dim; ++c) head.keys(t, c) = t % 3 == 0 ? 1.0f : 0.0f;
  const auto gpu = load(head);
  const Matrix<float> weights = gpu->weights();
  const Matrix<std::uint32_t> ranks = gpu->ranks();
  for (std::size_t row = 0; row < head.rows(); ++row) {
    const bool thirds_first = weights(0, row) > weights(1, row);
    if (weights(0, row) == weights(1, row)) continue;
    const std::uint32_t thirds = 3000;
    for (std::uint32_t t = 0; t < of.shape.prompt; ++t) {
      const std::uint32_t own = t % 3 == 0 ? t / 3 : t - t / 3 - 1;
      const std::uint32_t before = (t % 3 == 0) == thirds_first ? 0u : thirds_first ? thirds : 6000u;
      ASSERT_EQ(ranks(t, row), before + own) << "token " << t << " row " << row;
    }
  }
}

TEST_F(CudaReplay, SumsOfRowsAreThoseOfTheCpuAndTheSameForCutsAtSixteen) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const OnCpu cpu(head);
    const auto gpu = load(head);
    const std::size_t prompt = of.shape.prompt, begin = of.shape.group > 1 ? of.shape.steps : 0,
                      end = head.rows();
    std::vector<double> sum(prompt, 0.5), squares(prompt, 0.25), expected_sum(prompt),
        expected_squares(prompt, 0.25);
    gpu->add_prompt_sums(begin, end, sum);
    gpu->add_removal_squares(begin, end, squares);
    column_sums(cpu.ready.weights.view().rows_from(0, prompt), begin, end, expected_sum);
    // With the device's own weights: where one is all but 1, the last bit of it decides 1 - a.
    const Matrix<float> weights = gpu->weights();
    Matrix<float> outputs(of.shape.value_dim, head.rows(), kRowPad);
    for (std::size_t r = 0; r < head.rows(); ++r)
      for (std::size_t c = 0; c < of.shape.value_dim; ++c) outputs(c, r) = gpu->exact().output(r, c);
    removal_squares(weights.view(), head.values.view(), outputs.view(), begin, end, expected_squares);
    for (std::size_t t = 0; t < prompt; ++t) {
      EXPECT_NEAR(sum[t], expected_sum[t] + 0.5, 1e-6 * (expected_sum[t] + 0.5));
      EXPECT_NEAR(squares[t], expected_squares[t], 1e-5 * expected_squares[t]);
    }
    std::vector<double> cut_sum(prompt, 0.5), cut_squares(prompt, 0.25);
    for (std::size_t at = begin; at < end;) {
      const std::size_t next = std::min(end, at + (at == begin ? 16 : 48));
      gpu->add_prompt_sums(at, next, cut_sum);
      gpu->add_removal_squares(at, next, cut_squares);
      at = next;
    }
    EXPECT_EQ(sum, cut_sum);
    EXPECT_EQ(squares, cut_squares);
  }
}

TEST_F(CudaReplay, OtherQueriesAttendToThePrompt) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const auto gpu = load(head);
    const std::size_t prompt = of.shape.prompt, rows = std::min<std::size_t>(head.rows(), 70);
    std::vector<TokenIndex> position(rows);
    for (std::size_t r = 0; r < rows; ++r) position[r] = static_cast<TokenIndex>((r * 37 + 5) % prompt);
    Matrix<float> queries(rows, of.shape.head_dim);
    for (std::size_t r = 0; r < rows; ++r)
      std::copy_n(head.queries.row(rows - 1 - r), of.shape.head_dim, queries.row(r));
    Matrix<float> expected(prompt, rows, kRowPad);
    attention_weights(head.keys.view().rows_from(0, prompt), queries.view(), position, head.rule, 0, rows,
                      expected.view());
    const Matrix<float> before = gpu->weights();
    const Matrix<float> weights = gpu->attention(queries.view(), position);
    ASSERT_EQ(weights.rows(), prompt);
    ASSERT_EQ(weights.stride(), expected.stride());
    for (std::size_t t = 0; t < prompt; ++t)
      for (std::size_t r = 0; r < weights.stride(); ++r) {
        const double wanted = r < rows ? static_cast<double>(expected(t, r)) : 0.0;
        ASSERT_NEAR(static_cast<double>(weights.row(t)[r]), wanted, 2e-6 * wanted + 1e-37)
            << "token " << t << " row " << r;
      }
    const std::vector<RowRange> ranges{{0, rows}, {rows / 2, rows}, {1, 1}};
    Matrix<double> sums(ranges.size(), prompt);
    gpu->attention_sums(queries.view(), position, ranges, sums.view());
    std::vector<double> wanted(prompt);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      column_sums(expected.view(), ranges[i].begin, ranges[i].end, wanted);
      for (std::size_t t = 0; t < prompt; ++t) EXPECT_NEAR(sums(i, t), wanted[t], 2e-6 * wanted[t] + 1e-30) << "range " << i;
    }
    const Matrix<float> after = gpu->weights();
    EXPECT_TRUE(std::equal(before.data(), before.data() + before.rows() * before.stride(), after.data()));
  }
}

TEST_F(CudaReplay, LoadingAFewRowsGivesTheBitsOfLoadingAll) {
  for (const std::size_t which : {std::size_t{1}, std::size_t{3}, std::size_t{5}}) {
    const Case of = cases()[which];
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const std::size_t begin = 16, rows = std::min<std::size_t>(head.rows() - begin, 48);
    HeadInput part = head.input();
    part.queries = part.queries.rows_from(begin, rows);
    part.position = part.position.subspan(begin, rows);
    const auto all = load(head);
    const auto few = device->load(part);  // both are held
    const Matrix<float> all_weights = all->weights(), few_weights = few->weights();
    const Matrix<std::uint32_t> all_ranks = all->ranks(), few_ranks = few->ranks();
    for (std::size_t t = 0; t < head.tokens(); ++t)
      for (std::size_t r = 0; r < rows; ++r)
        ASSERT_EQ(all_weights(t, begin + r), few_weights(t, r)) << t << " " << r;
    for (std::size_t t = 0; t < of.shape.prompt; ++t)
      for (std::size_t r = 0; r < rows; ++r)
        ASSERT_EQ(all_ranks(t, begin + r), few_ranks(t, r)) << t << " " << r;
    for (std::size_t r = 0; r < rows; ++r)
      for (std::size_t c = 0; c < of.shape.value_dim; ++c)
        ASSERT_EQ(all->exact().output(begin + r, c), few->exact().output(r, c));
  }
}

TEST_F(CudaReplay, WhatTravelsNarrowIsTheSame) {
  for (const DType type : {DType::float16, DType::bfloat16}) {
    Case of{.shape = {.prompt = 500,
                      .steps = 30,
                      .group = 2,
                      .head_dim = 80,
                      .value_dim = 80,
                      .half = type == DType::bfloat16},
            .stored = type};
    HeadCase head(of);
    head.round_to(type);
    HeadInput wide = head.input(), narrow = head.input();
    wide.stored = DType::float32;
    const Matrix<float> expected = device->load(wide)->weights(), weights = device->load(narrow)->weights();
    EXPECT_TRUE(
        std::equal(expected.data(), expected.data() + expected.rows() * expected.stride(), weights.data()));
    head.keys(3, 5) = 1.0f + 0x1p-20f;  // no number of the type: the keys must travel as floats
    wide.keys = narrow.keys = head.keys.view();
    const Matrix<float> changed = device->load(wide)->weights(), packed = device->load(narrow)->weights();
    EXPECT_TRUE(
        std::equal(changed.data(), changed.data() + changed.rows() * changed.stride(), packed.data()));
  }
}

TEST_F(CudaReplay, LongPromptsRankInThirtyTwoBits) {
  const Case of{.shape = {.prompt = 70000,
                          .steps = 16,
                          .group = 1,
                          .head_dim = 64,
                          .value_dim = 64,
                          .seed = 9,
                          .half = true},
                .stored = DType::bfloat16};
  const HeadCase head(of);
  const OnCpu cpu(head);
  const auto gpu = load(head);
  const Matrix<std::uint32_t> ranks = gpu->ranks();
  std::size_t moved = 0;
  for (std::size_t t = 0; t < of.shape.prompt; ++t)
    for (std::size_t r = 0; r < head.rows(); ++r) moved += ranks(t, r) != cpu.ranks(t, r);
  EXPECT_LE(static_cast<double>(moved), 0.1 * 16 * 70000) << moved << " ranks";
  const std::vector<TokenIndex> order = shuffled(of.shape.prompt, 5);
  const std::vector<std::uint32_t> counts{1, 4096, 35000, 66000, 70000};
  const std::vector<Ranking> rankings{{order, counts, {}, 0, head.rows()}};
  const CurveResults curve = gpu->curves(rankings, false);
  for (std::size_t row = 0; row < head.rows(); ++row) {
    for (std::size_t b = 0; b < counts.size(); ++b) {
      std::uint32_t agree = 0;
      for (std::size_t i = 0; i < counts[b]; ++i) agree += ranks(order[i], row) < counts[b] ? 1u : 0u;
      ASSERT_EQ(curve.agree[curve.at(0, b) + row], agree) << "count " << counts[b] << " row " << row;
    }
    ASSERT_EQ(curve.found[curve.found_at(2, 0, 4) + row], gpu->exact().needed_prompt[2][row]);
  }
}

TEST_F(CudaReplay, MemoryIsWhatWasSaid) {
  const Case of{
      .shape = {.prompt = 8000, .steps = 128, .group = 4, .head_dim = 128, .value_dim = 128, .half = true},
      .stored = DType::bfloat16};
  const HeadCase head(of);
  const DeviceShape shape{.prompt = 8000, .decode = 128, .rows = 512, .key_dim = 128, .value_dim = 128};
  const std::size_t one = device->head_bytes(shape), work = device->work_bytes(shape);
  // Exactly what was said for three heads is enough; work counts what rare floats would take, so some of a
  // fourth may fit.
  const auto tight = cuda::open_device(0, 3 * one + work);
  EXPECT_EQ(tight->memory(), 3 * one + work);
  std::vector<std::unique_ptr<DeviceHead>> heads;
  for (int i = 0; i < 3; ++i) ASSERT_NO_THROW(heads.push_back(tight->load(head.input()))) << i;
  try {
    for (int i = 0; i < 2; ++i) heads.push_back(tight->load(head.input()));
    FAIL() << "five heads in the memory of three";
  } catch (const DeviceError& error) {
    EXPECT_TRUE(error.out_of_memory()) << error.what();
  }
  heads.resize(2);  // a head that was given back makes room, and nothing is lost
  const auto again = tight->load(head.input());
  const Matrix<float> expected = heads[0]->weights(), weights = again->weights();
  EXPECT_TRUE(
      std::equal(expected.data(), expected.data() + expected.rows() * expected.stride(), weights.data()));
}

TEST_F(CudaReplay, WithoutRanksAHeadStillHasItsWeights) {
  const HeadCase head(cases()[1]);
  HeadInput input = head.input();
  input.ranks = false;
  const auto bare = device->load(input), full = load(head);
  const Matrix<float> expected = full->weights(), weights = bare->weights();
  EXPECT_TRUE(
      std::equal(expected.data(), expected.data() + expected.rows() * expected.stride(), weights.data()));
  EXPECT_THROW(bare->ranks(), InternalError);
}

}  // namespace
}  // namespace kvsim
