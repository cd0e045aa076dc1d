// Curves and overlaps on the GPU against the CPU kernels. Skipped, not passed, where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/error.h"
#include "tests/gpu/head_cases.h"

namespace kvsim {
namespace {

class CudaCurves : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::devices().empty()) GTEST_SKIP() << "no GPU";
    device = cuda::open_device(0, 0);
  }
  std::unique_ptr<Device> device;
};

/// Results of a call, kept.
struct Kept {
  explicit Kept(const CurveResults& of)
      : shape(of),
        error(of.error, of.error + cells()),
        recall(of.recall, of.recall + cells()),
        agree(of.agree, of.agree + cells()),
        found(of.found, of.found + kMassFractions.size() * cells()) {}
  std::size_t cells() const { return shape.rankings * shape.counts * shape.stride; }
  CurveResults shape;
  std::vector<float> error, recall;
  std::vector<std::uint32_t> agree, found;
};

/// How many of the first `count` of an order have a rank below the limit, by the device's own ranks.
std::uint32_t counted(const Matrix<std::uint32_t>& ranks, std::span<const TokenIndex> order,
                      std::uint32_t count, std::size_t row, std::uint32_t limit) {
  std::uint32_t n = 0;
  for (std::uint32_t i = 0; i < count; ++i) n += ranks(order[i], row) < limit ? 1u : 0u;
  return n;
}

std::vector<std::uint32_t> some_counts(std::uint32_t prompt) {
  std::vector<std::uint32_t> counts{0, 1, 1, 7, 31, 32, 33, 64, 100, prompt / 2, prompt - 1, prompt};
  for (std::uint32_t& count : counts) count = std::min(count, prompt);
  std::sort(counts.begin(), counts.end());
  return counts;
}

TEST_F(CudaCurves, CurvesAreThoseOfTheCpu) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const PreparedHead ready(head);
    const auto gpu = device->load(head.input());
    const std::vector<std::uint32_t> counts = some_counts(static_cast<std::uint32_t>(of.shape.prompt));
    const std::vector<TokenIndex> first = shuffled(of.shape.prompt, 1), second = shuffled(of.shape.prompt, 2);
    const std::size_t last_head = (of.shape.group - 1) * of.shape.steps;
    const std::vector<Ranking> rankings{{first, counts, {}, 0, head.rows()},
                                        {second, counts, {}, 0, head.rows()},
                                        {second, counts, {}, last_head, head.rows()}};
    const CurveResults out = gpu->curves(rankings, false);
    ASSERT_EQ(out.counts, counts.size());
    ASSERT_EQ(out.rankings, rankings.size());
    for (std::size_t r = 0; r < rankings.size(); ++r) {
      const Curve curve = run_curve(head, ready, rankings[r].order, counts);
      for (std::size_t b = 0; b < counts.size(); ++b)
        for (std::size_t row = rankings[r].row_begin; row < rankings[r].row_end; ++row) {
          const std::size_t at = out.at(r, b) + row;
          const std::string where = "ranking " + std::to_string(r) + " count " + std::to_string(counts[b]) +
                                    " row " + std::to_string(row);
          ASSERT_NEAR(out.recall[at], curve.recall(b, row), 2e-5f * curve.recall(b, row) + 1e-12f) << where;
          ASSERT_EQ(std::isnan(out.error[at]), std::isnan(curve.error(b, row))) << where;
          if (!std::isnan(out.error[at])) {
            ASSERT_NEAR(out.error[at], curve.error(b, row), 1e-5f + 1e-5f * curve.error(b, row)) << where;
          }
        }
    }
  }
}

/// What a curve says of the rows of a ranking against the CPU: errors, recalls, and o' - o.
void compare(const CurveResults& out, std::size_t r, const Curve& cpu, MatrixView<const float> exact,
             MatrixView<const float> delta, std::size_t dv, std::size_t begin, std::size_t end) {
  for (std::size_t b = 0; b < out.counts; ++b)
    for (std::size_t row = begin; row < end; ++row) {
      const std::size_t at = out.at(r, b) + row;
      const std::string where =
          "ranking " + std::to_string(r) + " count " + std::to_string(b) + " row " + std::to_string(row);
      ASSERT_NEAR(out.recall[at], cpu.recall(b, row), 2e-5f * cpu.recall(b, row) + 1e-12f) << where;
      ASSERT_EQ(std::isnan(out.error[at]), std::isnan(cpu.error(b, row))) << where;
      if (std::isnan(out.error[at])) continue;
      ASSERT_NEAR(out.error[at], cpu.error(b, row), 1e-5f + 1e-5f * cpu.error(b, row)) << where;
      double norm = 0, difference = 0;
      for (std::size_t c = 0; c < dv; ++c) norm += std::pow(static_cast<double>(exact(c, row)), 2.0);
      for (std::size_t c = 0; c < dv; ++c) {
        const double wanted = static_cast<double>(delta(b * dv + c, row));
        norm += wanted * wanted;
        difference += std::pow(
            static_cast<double>(out.delta[(out.at(r, b)) * dv + c * out.stride + row]) - wanted, 2.0);
      }
      ASSERT_LE(std::sqrt(difference), 5e-5 * std::sqrt(norm)) << where;  // of |o| and |o' - o|
    }
}

TEST_F(CudaCurves, DeltasAndEveryRowsOwnOrderAreThoseOfTheCpu) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const PreparedHead ready(head);
    const auto gpu = device->load(head.input());
    const Matrix<std::uint32_t> ranks = gpu->ranks();
    std::vector<std::uint32_t> counts = some_counts(static_cast<std::uint32_t>(of.shape.prompt));
    const std::vector<TokenIndex> order = shuffled(of.shape.prompt, 1);
    const std::size_t dv = of.shape.value_dim;
    Matrix<float> delta(counts.size() * dv, head.rows(), kRowPad);
    const auto cpu = [&](bool own) {
      Curve curve(counts.size(), head.rows());
      CurveOutput out = curve.output();
      out.delta = delta.data();
      out.delta_stride = dv * delta.stride();
      const CurveInput in = ready.input(head, order, counts);
      if (own) {
        own_order_curve(in, MatrixView<const std::uint32_t>(ranks.view()), 0, head.rows(), out);
      } else {
        curve_pass(in, 0, head.rows(), out);
      }
      return curve;
    };
    const Curve plain = cpu(false);
    compare(gpu->curves(std::vector<Ranking>{{order, counts, {}, 0, head.rows()}}, true), 0, plain,
            ready.exact.view(), delta.view(), dv, 0, head.rows());
    if (of.window != 0) continue;  // a row's own order then is shorter than the counts
    const Curve own = cpu(true);
    compare(gpu->own_order(counts, true), 0, own, ready.exact.view(), delta.view(), dv, 0, head.rows());
  }
}

TEST_F(CudaCurves, OverlapsCountTheDevicesRanks) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(of.text());
    const HeadCase head(of);
    const auto gpu = device->load(head.input());
    const Matrix<std::uint32_t> ranks = gpu->ranks();
    const std::vector<std::uint32_t> counts = some_counts(static_cast<std::uint32_t>(of.shape.prompt));
    std::vector<std::uint32_t> other = counts;
    for (std::uint32_t& count : other) count = count * 3 / 4;
    Matrix<std::uint32_t> limits(counts.size(), head.rows());
    for (std::size_t b = 0; b < counts.size(); ++b)
      for (std::size_t row = 0; row < head.rows(); ++row)
        limits(b, row) = counts[b] * static_cast<std::uint32_t>(row % 7) / 7;
    std::vector<std::vector<TokenIndex>> orders;
    std::vector<Ranking> rankings;
    for (std::size_t r = 0; r < 19; ++r) orders.push_back(shuffled(of.shape.prompt, r));
    for (std::size_t r = 0; r < orders.size(); ++r) {
      const std::size_t begin = r % 5 == 1 ? (of.shape.group - 1) * of.shape.steps : 0;
      rankings.push_back({orders[r], r % 4 == 2 ? other : counts, {}, begin, head.rows()});
      if (r % 6 == 5) rankings.back().limits = limits.view();
    }
    const CurveResults out = gpu->curves(rankings, false);
    for (std::size_t r = 0; r < rankings.size(); ++r)
      for (std::size_t b = 0; b < counts.size(); ++b)
        for (std::size_t row = rankings[r].row_begin; row < rankings[r].row_end; row += 3) {
          const std::size_t at = out.at(r, b) + row;
          const std::uint32_t count = rankings[r].counts[b],
                              limit = rankings[r].limits.empty() ? count : limits(b, row);
          const std::string where = "ranking " + std::to_string(r) + " count " + std::to_string(count) +
                                    " row " + std::to_string(row);
          ASSERT_EQ(out.agree[at], counted(ranks, orders[r], count, row, limit)) << where;
          for (std::size_t c = 0; c < kMassFractions.size(); ++c)
            ASSERT_EQ(out.found[out.found_at(c, r, b) + row],
                      counted(ranks, orders[r], count, row, gpu->exact().needed_prompt[c][row]))
                << where << " fraction " << c;
        }
  }
}

TEST_F(CudaCurves, ManyBudgetsGiveWhatFewGive) {
  const HeadCase head(cases()[1]);
  const auto gpu = device->load(head.input());
  std::vector<std::uint32_t> many;
  for (std::uint32_t count = 5; count <= 1000; count += 5) many.push_back(count);
  const std::vector<std::uint32_t> few{5, 250, 1000};
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 5);
  const Kept of_many(gpu->curves(std::vector<Ranking>{{order, many, {}, 0, head.rows()}}, false));
  const Kept of_few(gpu->curves(std::vector<Ranking>{{order, few, {}, 0, head.rows()}}, false));
  for (std::size_t i = 0; i < few.size(); ++i) {
    const std::size_t b = few[i] / 5 - 1;
    for (std::size_t row = 0; row < head.rows(); ++row) {
      const std::size_t at = of_few.shape.at(0, i) + row, same = of_many.shape.at(0, b) + row;
      ASSERT_NEAR(of_few.recall[at], of_many.recall[same], 1e-5f);
      ASSERT_EQ(of_few.agree[at], of_many.agree[same]);
      for (std::size_t c = 0; c < kMassFractions.size(); ++c)
        ASSERT_EQ(of_few.found[of_few.shape.found_at(c, 0, i) + row],
                  of_many.found[of_many.shape.found_at(c, 0, b) + row]);
    }
  }
}

TEST_F(CudaCurves, TheSameInputGivesTheSameBitsHoweverRowsAreCut) {
  const HeadCase head(cases()[3]), other(cases()[0]);
  const std::vector<std::uint32_t> counts{10, 500, 2000};
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 5);
  const std::vector<Ranking> rankings{{order, counts, {}, 0, head.rows()}};
  const auto same_bits = [](float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
  };
  const Kept once(device->load(head.input())->curves(rankings, false));
  const auto between = device->load(other.input());
  const Kept again(device->load(head.input())->curves(rankings, false));
  HeadInput part = head.input();
  part.queries = part.queries.rows_from(64, 128);
  part.position = part.position.subspan(64, 128);
  const std::vector<Ranking> of_part{{order, counts, {}, 0, 128}};
  const Kept cut(device->load(part)->curves(of_part, false));
  for (std::size_t b = 0; b < counts.size(); ++b)
    for (std::size_t row = 0; row < head.rows(); ++row) {
      const std::size_t at = once.shape.at(0, b) + row;
      ASSERT_TRUE(same_bits(once.error[at], again.error[at]) && same_bits(once.recall[at], again.recall[at]));
      ASSERT_EQ(once.agree[at], again.agree[at]);
      if (row < 64 || row >= 192) continue;
      const std::size_t in_part = cut.shape.at(0, b) + row - 64;
      ASSERT_TRUE(same_bits(once.error[at], cut.error[in_part]) &&
                  same_bits(once.recall[at], cut.recall[in_part]))
          << row;
      ASSERT_EQ(once.agree[at], cut.agree[in_part]);
      for (std::size_t c = 0; c < kMassFractions.size(); ++c)
        ASSERT_EQ(once.found[once.shape.found_at(c, 0, b) + row],
                  cut.found[cut.shape.found_at(c, 0, b) + row - 64]);
    }
}

TEST_F(CudaCurves, RefusesWhatDoesNotFitTogether) {
  const HeadCase head(cases()[0]);
  const auto gpu = device->load(head.input());
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 5);
  const std::vector<std::uint32_t> falling{10, 5}, far{10, 100000};
  EXPECT_THROW(gpu->curves(std::vector<Ranking>{{order, falling, {}, 0, 1}}, false), InternalError);
  EXPECT_THROW(gpu->curves(std::vector<Ranking>{{order, far, {}, 0, 1}}, false), InternalError);
}

}  // namespace
}  // namespace kvsim
