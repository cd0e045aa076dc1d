// The CUDA backend against the CPU kernels on peaky heads. Skipped, not passed, where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/error.h"
#include "tests/kernels/peaky_head.h"

namespace kvsim {
namespace {

using cuda::CurveResults;
using cuda::HeadReplay;
using cuda::Ranking;

/// What the CPU kernels say of a head.
struct OnCpu {
  explicit OnCpu(const PeakyHead& head) : ready(head), ranks(head.shape.prompt, head.rows(), 2 * kRowPad) {
    RankOutput<std::uint32_t> out{ranks.view(), {}, {}};
    for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
      total[c].assign(ready.weights.stride(), 0);
      prompt[c].assign(ready.weights.stride(), 0);
      out.needed_total[c] = total[c];
      out.needed_prompt[c] = prompt[c];
    }
    for (std::size_t row = 0; row < head.rows(); row += kRowPad)
      rank_rows(ready.weights.view(), head.shape.prompt, head.position, head.rule.window, row, std::min(head.rows(), row + kRowPad), out);
  }
  PreparedHead ready;
  Matrix<std::uint32_t> ranks;
  std::array<std::vector<std::uint32_t>, kMassFractions.size()> total, prompt;
};

class CudaReplay : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::devices().empty()) GTEST_SKIP() << "no GPU";
    replay.emplace(0);
  }
  void load(const PeakyHead& head) {
    replay->load({head.keys.view(), head.values.view(), head.queries.view(), head.position, head.shape.prompt, head.rule});
  }
  std::optional<HeadReplay> replay;
};

struct Case {
  PeakyShape shape;
  std::uint32_t window = 0;
  double softcap = 0;
};

std::vector<Case> cases() {
  return {{.shape = {.half = true}},
          {.shape = {.prompt = 1000, .steps = 49, .group = 3, .head_dim = 64, .value_dim = 64, .half = true}},
          {.shape = {.prompt = 517, .steps = 33, .group = 5, .head_dim = 80, .value_dim = 80, .seed = 3}},
          {.shape = {.prompt = 2000, .steps = 64, .group = 4, .head_dim = 128, .value_dim = 128, .reach = 60, .seed = 4, .half = true}},
          {.shape = {.prompt = 300, .steps = 20, .group = 2, .head_dim = 32, .value_dim = 200, .seed = 5}},
          {.shape = {.prompt = 700, .steps = 40, .group = 2, .seed = 6, .half = true}, .window = 256},
          {.shape = {.prompt = 400, .steps = 16, .group = 1, .seed = 7, .half = true}, .softcap = 30},
          {.shape = {.prompt = 1, .steps = 1, .group = 1, .seed = 8, .half = true}}};
}

PeakyHead make(const Case& of) {
  PeakyHead head(of.shape);
  head.rule.window = of.window;
  head.rule.softcap = of.softcap;
  return head;
}

TEST_F(CudaReplay, ExactWeightsOutputsRanksAndNeededSetsAreThoseOfTheCpu) {
  for (const Case& of : cases()) {
    SCOPED_TRACE(testing::Message() << "prompt " << of.shape.prompt << " value_dim " << of.shape.value_dim << " window " << of.window);
    const PeakyHead head = make(of);
    const OnCpu cpu(head);
    load(head);
    const cuda::ExactResults gpu = replay->exact();
    std::size_t moved = 0, rank_count = 0;
    for (std::size_t row = 0; row < head.rows(); ++row) {
      for (std::size_t t = 0; t < head.tokens(); ++t) {
        const double expected = cpu.ready.weights(t, row);
        ASSERT_NEAR(gpu.weights[t * gpu.stride + row], expected, 2e-6 * expected + 1e-37) << "token " << t << " row " << row;
      }
      for (std::size_t c = 0; c < head.shape.value_dim; ++c)
        ASSERT_NEAR(gpu.output[row * head.shape.value_dim + c], cpu.ready.exact(c, row), 1e-5f) << "row " << row;
      for (std::size_t t = 0; t < head.shape.prompt; ++t) {
        ++rank_count;
        moved += gpu.ranks[t * gpu.stride + row] != cpu.ranks(t, row);
      }
      for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
        EXPECT_NEAR(gpu.needed_total[c * gpu.stride + row], cpu.total[c][row], 1) << "fraction " << c << " row " << row;
        EXPECT_NEAR(gpu.needed_prompt[c * gpu.stride + row], cpu.prompt[c][row], 1) << "fraction " << c << " row " << row;
      }
    }
    // Weights differ in their last bit here and there, so near ties may change places.
    EXPECT_LE(static_cast<double>(moved), 0.02 * static_cast<double>(rank_count)) << moved << " of " << rank_count << " ranks";
  }
}

TEST_F(CudaReplay, PromptSumsAreTheColumnSums) {
  const PeakyHead head = make(cases()[1]);
  const OnCpu cpu(head);
  load(head);
  const std::size_t begin = head.shape.steps, end = 2 * head.shape.steps;
  const std::vector<double> gpu = replay->prompt_sums(begin, end);
  std::vector<double> expected(head.shape.prompt);
  column_sums(cpu.ready.weights.view().rows_from(0, head.shape.prompt), begin, end, expected);
  for (std::size_t t = 0; t < expected.size(); ++t) EXPECT_NEAR(gpu[t], expected[t], 1e-6 * expected[t] + 1e-12);
}

TEST_F(CudaReplay, CurvesAndOverlapsAreThoseOfTheCpu) {
  for (const Case& of : cases()) {
    if (of.window != 0) continue;  // the counts a row may see are then the caller's
    SCOPED_TRACE(testing::Message() << "prompt " << of.shape.prompt << " value_dim " << of.shape.value_dim);
    const PeakyHead head = make(of);
    const OnCpu cpu(head);
    load(head);
    const auto prompt = static_cast<std::uint32_t>(of.shape.prompt);
    std::vector<std::uint32_t> counts{0, 1, 1, 7, 31, 32, 33, 64, 100, prompt / 2, prompt - 1, prompt};
    for (std::uint32_t& count : counts) count = std::min(count, prompt);
    std::sort(counts.begin(), counts.end());
    const std::vector<TokenIndex> first = shuffled(prompt, 1), second = shuffled(prompt, 2);
    const std::vector<Ranking> rankings{{first, counts, 0, head.rows()},
                                        {second, counts, 0, head.rows()},
                                        {second, counts, (of.shape.group - 1) * of.shape.steps, head.rows()}};
    CurveResults gpu;
    replay->curves(rankings, gpu);
    ASSERT_EQ(gpu.counts, counts.size());
    const std::size_t cells = rankings.size() * counts.size() * gpu.stride;
    for (std::size_t r = 0; r < rankings.size(); ++r) {
      const Curve curve = run_curve(head, cpu.ready, rankings[r].order, counts);
      std::vector<Matrix<std::uint32_t>> overlap;
      Matrix<std::uint32_t> limits(counts.size(), head.rows(), kRowPad);
      for (std::size_t b = 0; b < counts.size(); ++b) std::fill_n(limits.row(b), limits.stride(), counts[b]);
      overlap.emplace_back(counts.size(), head.rows());
      std::vector<OverlapQuery> queries{{limits.view(), overlap.back().view()}};
      overlap.reserve(1 + kMassFractions.size());
      for (std::size_t c = 0; c < kMassFractions.size(); ++c) {
        overlap.emplace_back(counts.size(), head.rows());
        queries.push_back({{cpu.prompt[c].data(), 1, cpu.prompt[c].size(), cpu.prompt[c].size()}, overlap.back().view()});
      }
      overlap_counts(MatrixView<const std::uint32_t>(cpu.ranks.view()), rankings[r].order, counts, queries, 0, head.rows());
      for (std::size_t b = 0; b < counts.size(); ++b) {
        for (std::size_t row = rankings[r].row_begin; row < rankings[r].row_end; ++row) {
          const std::size_t at = gpu.at(r, b, row);
          const std::string where = "ranking " + std::to_string(r) + " count " + std::to_string(counts[b]) + " row " + std::to_string(row);
          ASSERT_NEAR(gpu.recall[at], curve.recall(b, row), 2e-5f * curve.recall(b, row) + 1e-12f) << where;
          ASSERT_EQ(std::isnan(gpu.error[at]), std::isnan(curve.error(b, row))) << where;
          if (!std::isnan(gpu.error[at])) {
            ASSERT_NEAR(gpu.error[at], curve.error(b, row), 1e-5f + 1e-5f * curve.error(b, row)) << where;
          }
          ASSERT_NEAR(gpu.agree[at], overlap[0](b, row), 1) << where;
          for (std::size_t c = 0; c < kMassFractions.size(); ++c)
            ASSERT_NEAR(gpu.found[c * cells + at], overlap[1 + c](b, row), 1) << where << " fraction " << c;
        }
      }
    }
  }
}

TEST_F(CudaReplay, ManyBudgetsGiveWhatFewGive) {
  const PeakyHead head = make(cases()[1]);
  load(head);
  std::vector<std::uint32_t> many;
  for (std::uint32_t count = 5; count <= 1000; count += 5) many.push_back(count);
  const std::vector<std::uint32_t> few{5, 250, 1000};
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 5);
  CurveResults of_many, of_few;
  replay->curves(std::vector<Ranking>{{order, many, 0, head.rows()}}, of_many);
  replay->curves(std::vector<Ranking>{{order, few, 0, head.rows()}}, of_few);
  for (std::size_t i = 0; i < few.size(); ++i) {
    const std::size_t b = few[i] / 5 - 1;
    for (std::size_t row = 0; row < head.rows(); ++row) {
      const std::size_t at = of_few.at(0, i, row), same = of_many.at(0, b, row);
      ASSERT_NEAR(of_few.recall[at], of_many.recall[same], 1e-5f);
      ASSERT_EQ(of_few.agree[at], of_many.agree[same]);
      for (std::size_t c = 0; c < kMassFractions.size(); ++c)
        ASSERT_EQ(of_few.found[c * few.size() * of_few.stride + at], of_many.found[c * many.size() * of_many.stride + same]);
    }
  }
}

TEST_F(CudaReplay, TheSameInputGivesTheSameBits) {
  const PeakyHead head = make(cases()[3]), other = make(cases()[0]);
  const std::vector<std::uint32_t> counts{10, 500, 2000};
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 5);
  const std::vector<Ranking> rankings{{order, counts, 0, head.rows()}};
  CurveResults once, again;
  load(head);
  replay->curves(rankings, once);
  load(other);  // what was there before does not matter
  load(head);
  replay->curves(rankings, again);
  const std::size_t cells = counts.size() * once.stride;
  for (std::size_t b = 0; b < counts.size(); ++b) {
    for (std::size_t row = 0; row < head.rows(); ++row) {
      const std::size_t at = once.at(0, b, row);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(once.error[at]), std::bit_cast<std::uint32_t>(again.error[at]));
      ASSERT_EQ(std::bit_cast<std::uint32_t>(once.recall[at]), std::bit_cast<std::uint32_t>(again.recall[at]));
      ASSERT_EQ(once.agree[at], again.agree[at]);
      for (std::size_t c = 0; c < kMassFractions.size(); ++c) ASSERT_EQ(once.found[c * cells + at], again.found[c * cells + at]);
    }
  }
}

TEST_F(CudaReplay, RefusesWhatDoesNotFitTogether) {
  const PeakyHead head = make(cases()[0]);
  load(head);
  const std::vector<TokenIndex> order = shuffled(head.shape.prompt, 5);
  const std::vector<std::uint32_t> falling{10, 5}, far{10, 100000};
  CurveResults out;
  EXPECT_THROW(replay->curves(std::vector<Ranking>{{order, falling, 0, 1}}, out), InternalError);
  EXPECT_THROW(replay->curves(std::vector<Ranking>{{order, far, 0, 1}}, out), InternalError);
}

}  // namespace
}  // namespace kvsim
