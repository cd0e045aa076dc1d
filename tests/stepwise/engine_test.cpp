// The stepwise engine against definitions computed step by step in double.
#include <gtest/gtest.h>
#include <omp.h>

#include "tests/stepwise/step_sweep.h"

namespace kvsim::test {
namespace {

/// Checks every figure of every step of a result against the plain definitions, from the times of eviction alone.
/// Where weights underflow in float the order of ranks is that of positions: `ranks` = false leaves those figures out.
void expect_plain_figures(StepSweep& sweep, const Shape& shape, bool ranks = true) {
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  const LayerContext layer = make_layer(shape);
  const std::vector<HeadBlock> blocks = make_blocks(shape);
  std::size_t checked = 0;
  for (const KeptSet& kept : result.kept) {
    const std::size_t tokens = shape.prompt + shape.decode, units = kept.evicted_at.size() / tokens;
    for (std::uint32_t kv = 0; kv < shape.kv_heads; ++kv) {
      for (std::size_t step = 0; step < shape.decode; ++step) {
        PlainStep mean;
        for (std::size_t h = 0; h < shape.group; ++h) {
          const std::size_t unit = units == shape.kv_heads ? kv : kv * shape.group + h;
          const PlainStep one = plain_step(blocks[kv], layer, h, step,
                                           held_at(std::span(kept.evicted_at).subspan(unit * tokens, tokens), shape.prompt, step));
          const double share = 1.0 / static_cast<double>(shape.group);
          mean.error += share * one.error;
          mean.recall += share * one.recall;
          mean.consistency += share * one.consistency;
          mean.miss += share * one.miss;
        }
        for (const StepDetail& detail : result.detail) {
          if (detail.kv_head != kv || detail.variant != kept.variant || detail.budget != kept.budget) continue;
          const double value = static_cast<double>(detail.steps[step]);
          const auto expect = [&](const char* name, double expected, double tolerance) {
            if (detail.metric != sweep.metric(name)) return;
            EXPECT_NEAR(value, expected, tolerance) << name << " head " << kv << " step " << step << " budget " << kept.budget;
            ++checked;
          };
          expect("output_error", mean.error, 2e-6 + 1e-5 * mean.error);
          expect("attention_recall", mean.recall, 1e-6);
          if (!ranks) continue;
          expect("query_consistency", mean.consistency, 1e-6);
          expect("miss_rate", mean.miss, 1e-6);
        }
      }
    }
  }
  EXPECT_EQ(checked, result.kept.size() * shape.kv_heads * shape.decode * (ranks ? 4 : 2));
}

TEST(StepwiseUnit, MeasuresEveryStepOverWhatWasHeld) {
  Shape shape;
  shape.decode = 37;  // no multiple of a tile
  StepSweep sweep({"decode:streaming_llm", "decode:h2o"}, {1, 9, 40, 90});
  expect_plain_figures(sweep, shape);
}

TEST(StepwiseUnit, MeasuresQueryHeadsWithCachesOfTheirOwn) {
  StepSweep sweep({"decode:h2o(unit=query)"}, {12, 60});
  expect_plain_figures(sweep, {});
}

TEST(StepwiseUnit, MeasuresSlidingWindowsAndSoftCaps) {
  Shape shape;
  shape.window = 50;
  shape.softcap = 4;
  StepSweep sweep({"decode:streaming_llm", "decode:tova"}, {10, 45, 200});
  expect_plain_figures(sweep, shape);
}

TEST(StepwiseUnit, RecomputesWhatUnderflowsInTheSharedSoftmax) {
  Shape shape;
  shape.sharpness = 60;
  StepSweep sweep({"decode:streaming_llm(sinks=0)"}, {2});
  expect_plain_figures(sweep, shape, false);
}

TEST(StepwiseUnit, RollsTheWindowOverPromptAndDecode) {
  Shape shape;
  shape.prompt = 20;
  shape.decode = 6;
  StepSweep sweep({"decode:streaming_llm(sinks=2)"}, {5});
  const UnitResult result = sweep.run(shape);
  ASSERT_EQ(result.kept.size(), 1u);
  const KeptSet& kept = result.kept.front();
  EXPECT_EQ(std::vector<std::uint32_t>(kept.indices.begin(), kept.indices.begin() + 5), (std::vector<std::uint32_t>{0, 1, 17, 18, 19}));
  // Step t adds 20 + t and evicts 17 + t.
  for (std::uint32_t p = 0; p < 26; ++p) {
    const std::uint32_t expected = p < 2 || p >= 23 ? kNeverEvicted : p < 17 ? kEvictedInPrompt : p - 17;
    EXPECT_EQ(kept.evicted_at[p], expected) << p;
  }
  EXPECT_EQ(result.rows.front().resident_tokens, 6.0);  // 5 held and the step's own
  EXPECT_EQ(result.rows.front().peak_tokens, 20.0);
  EXPECT_EQ(result.rows.front().evicted, 21.0);
  EXPECT_FALSE(result.rows.front().clamped);
}

TEST(StepwiseUnit, BoundsThePeakWhenThePromptIsReadInBlocks) {
  StepSweep sweep({"decode:streaming_llm(block=16)", "decode:h2o(block=16)"}, {24});
  for (const ResultRow& row : sweep.run({}).rows) {
    EXPECT_EQ(row.peak_tokens, 24.0 + 16.0);
    EXPECT_EQ(row.resident_tokens, 25.0);
  }
}

TEST(StepwiseUnit, WaitsForTheBufferAndForTheInterval) {
  Shape shape;
  shape.prompt = 40;
  shape.decode = 20;
  StepSweep sweep({"decode:streaming_llm(buffer=4)", "decode:streaming_llm(every=5)", "decode:streaming_llm(prompt_end=false,every=100)"}, {10});
  const UnitResult result = sweep.run(shape);
  const std::size_t tokens = 60;
  for (const KeptSet& kept : result.kept) {
    std::vector<std::size_t> sizes;
    for (std::size_t step = 0; step < shape.decode; ++step) sizes.push_back(held_at(std::span(kept.evicted_at).first(tokens), shape.prompt, step).size());
    if (kept.variant == 0) {
      EXPECT_EQ(std::vector<std::size_t>(sizes.begin(), sizes.begin() + 6), (std::vector<std::size_t>{11, 12, 13, 14, 11, 12}));
    }
    if (kept.variant == 1) {
      EXPECT_EQ(std::vector<std::size_t>(sizes.begin(), sizes.begin() + 6), (std::vector<std::size_t>{11, 12, 13, 14, 15, 11}));
    }
    if (kept.variant == 2) {
      EXPECT_EQ(sizes.back(), 60u);
    }
  }
}

TEST(StepwiseUnit, FlagsCapacitiesBelowWhatIsProtected) {
  StepSweep sweep({"decode:streaming_llm(sinks=8)", "decode:vatp(sinks=20)"}, {3, 100});
  const UnitResult result = sweep.run({});
  for (const ResultRow& row : result.rows) EXPECT_EQ(row.clamped, row.budget == 0) << row.variant;
  const std::span<const std::uint32_t> gone = std::span(result.kept.front().evicted_at).first(140);
  EXPECT_EQ(held_at(gone, 120, 5), (std::vector<TokenIndex>{0, 1, 2, 125}));
}

/// Shifted positions against the definition: a slot's key and the query meet at the distance of their slots.
TEST(StepwiseUnit, ShiftsPositionsByTheDistanceOfSlots) {
  Shape shape;
  shape.decode = 5;
  LayerContext layer = make_layer(shape);
  std::vector<float> frequencies;
  for (std::size_t i = 0; i < shape.key_dim / 2; ++i) frequencies.push_back(static_cast<float>(std::pow(10.0, -0.4 * static_cast<double>(i))));
  layer.inverse_frequency = frequencies;
  layer.rope_layout = RopeLayout::half;
  StepSweep sweep({"decode:streaming_llm(shift=true)", "decode:streaming_llm"}, {10, 500});
  ShapeSource source(shape);
  const UnitResult result = replay_stepwise_unit(layer, sweep.settings, make_inputs(shape), source);
  const std::vector<HeadBlock> blocks = make_blocks(shape);
  const HeadBlock& block = blocks[0];
  const auto rotated = [&](const float* from, double places) {
    std::vector<double> x(from, from + shape.key_dim);
    for (std::size_t i = 0; i < shape.key_dim / 2; ++i) {
      const double angle = places * static_cast<double>(frequencies[i]), a = x[i], b = x[i + shape.key_dim / 2];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + shape.key_dim / 2] = b * std::cos(angle) + a * std::sin(angle);
    }
    return x;
  };
  for (std::size_t step = 0; step < shape.decode; ++step) {
    std::vector<TokenIndex> held{0, 1, 2, 3};
    for (TokenIndex p = static_cast<TokenIndex>(shape.prompt + step - 6); p <= shape.prompt + step; ++p) held.push_back(p);
    double mean = 0;
    for (std::size_t h = 0; h < shape.group; ++h) {
      const std::size_t row = h * 125 + shape.prompt + step;
      const std::vector<double> q = rotated(block.query.row(row), static_cast<double>(held.size() - 1) - static_cast<double>(held.back()));
      std::vector<double> w, output(shape.value_dim, 0.0), exact(shape.value_dim, 0.0);
      double sum = 0;
      for (std::size_t s = 0; s < held.size(); ++s) {
        const std::vector<double> k = rotated(block.key.row(held[s]), static_cast<double>(s) - static_cast<double>(held[s]));
        double dot = 0;
        for (std::size_t c = 0; c < k.size(); ++c) dot += q[c] * k[c];
        w.push_back(std::exp(dot * layer.rule.scale));
        sum += w.back();
      }
      std::vector<TokenIndex> all;
      for (TokenIndex p = 0; p <= shape.prompt + step; ++p) all.push_back(p);
      const std::vector<double> full = plain_weights(block, layer, row, all);
      double norm = 0, difference = 0;
      for (std::size_t c = 0; c < shape.value_dim; ++c) {
        for (std::size_t s = 0; s < held.size(); ++s) output[c] += w[s] / sum * static_cast<double>(block.value(held[s], c));
        for (std::size_t i = 0; i < all.size(); ++i) exact[c] += full[i] * static_cast<double>(block.value(all[i], c));
        norm += exact[c] * exact[c];
        difference += (output[c] - exact[c]) * (output[c] - exact[c]);
      }
      mean += std::sqrt(difference / norm) / static_cast<double>(shape.group);
    }
    bool found = false;
    for (const StepDetail& detail : result.detail) {
      if (detail.kv_head != 0 || detail.variant != 0 || detail.budget != 0 || detail.metric != sweep.metric("output_error")) continue;
      EXPECT_NEAR(static_cast<double>(detail.steps[step]), mean, 1e-5 * mean) << step;
      found = true;
    }
    EXPECT_TRUE(found);
  }
  // What is read, and so recall, does not depend on positions.
  for (const ResultRow& row : result.rows)
    if (row.variant == 0)
      for (const ResultRow& plain : result.rows)
        if (plain.variant == 1 && plain.budget == row.budget && plain.kv_head == row.kv_head) {
          EXPECT_EQ(row.values[sweep.metric("attention_recall")], plain.values[sweep.metric("attention_recall")]);
        }
}

TEST(StepwiseUnit, ProjectsErrorsOfAllHeadsTogether) {
  Shape shape;
  shape.hidden = 21;
  StepSweep sweep({"decode:streaming_llm"}, {12, 200});
  const UnitResult result = sweep.run(shape);
  ASSERT_EQ(result.layer_rows.size(), 2u);
  EXPECT_GT(result.layer_rows[0].values[0], 0.01);
  EXPECT_LT(result.layer_rows[1].values[0], 1e-6);
}

TEST(StepwiseUnit, GivesTheSameBitsForAnyChunkOfSteps) {
  Shape shape;
  shape.decode = 53;
  shape.hidden = 8;
  shape.samples = 2;
  const auto values = [&](std::size_t chunk) {
    StepSweep sweep({"decode:streaming_llm", "decode:h2o(unit=query)", "decode:tova"}, {7, 33});
    sweep.settings.memory.step_chunk = chunk;
    const UnitResult result = sweep.run(shape);
    std::vector<double> list;
    for (const ResultRow& row : result.rows)
      for (const double value : row.values) list.push_back(std::isnan(value) ? -1 : value);
    for (const LayerRow& row : result.layer_rows) list.push_back(row.values[0]);
    for (const LayerEffect& effect : result.effects)
      for (const auto* numbers : {&effect.response, &effect.relative}) list.insert(list.end(), numbers->begin(), numbers->end());
    return list;
  };
  const std::vector<double> expected = values(53);
  EXPECT_EQ(values(16), expected);
  EXPECT_EQ(values(32), expected);
}

}  // namespace
}  // namespace kvsim::test
