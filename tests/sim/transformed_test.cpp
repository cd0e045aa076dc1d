// Attention over transformed entries against plain double-precision loops.
#include <gtest/gtest.h>

#include <cmath>

#include "policies/recipe.h"
#include "tests/reference/attention.h"
#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

constexpr PolicyTraits kTraits{.name = "test_transform",
                               .summary = "keeps by key norm, changes every key and value in a made-up way",
                               .reference = "a test",
                               .accounting = "budget tokens per unit",
                               .transforms = true};

float changed_key(float x, std::size_t channel) { return channel % 3 == 0 ? 0.0f : 1.1f * x; }
float changed_value(float x, TokenIndex token) { return token % 2 == 0 ? x : x + 0.25f; }

struct TestTransform final : Policy {
  std::size_t unit_ = 0;
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override { f.choice("unit", unit_, kUnitChoices, "what owns a kept set"); }
  Need needs() const override { return Need::keys | Need::values; }
  Unit unit() const override { return unit_ == 0 ? Unit::kv : Unit::query; }
  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    for (std::size_t u = 0; u < out.size(); ++u) {
      out[u].score = to_scores(key_norm_scores(head.keys()));
      for (std::size_t t = u; t < out[u].score.size(); t += 5) out[u].score[t] += 3.0f;
    }
  }
  Transformed transform(const HeadFeatures& head, std::size_t, std::span<const TokenIndex> kept) const override {
    Transformed entries{Matrix<float>(kept.size(), head.keys().cols), Matrix<float>(kept.size(), head.values().cols), 0.75};
    for (std::size_t i = 0; i < kept.size(); ++i) {
      for (std::size_t c = 0; c < head.keys().cols; ++c) entries.keys(i, c) = changed_key(head.keys().row(kept[i])[c], c);
      for (std::size_t c = 0; c < head.values().cols; ++c) entries.values(i, c) = changed_value(head.values().row(kept[i])[c], kept[i]);
    }
    return entries;
  }
};
const RegisterPolicy<TestTransform> registered{kTraits};

/// Mean errors of a KV head over its query heads and steps, by definition.
struct Naive {
  double output = 0, logit = 0;

  Naive(const LayerContext& layer, const HeadBlock& block, const std::vector<std::vector<TokenIndex>>& units) {
    const LayerGeometry& g = layer.geometry;
    HeadBlock other;
    other.key = Matrix<float>(g.prompt + g.decode, g.key_dim);
    other.value = Matrix<float>(g.prompt + g.decode, g.value_dim);
    for (std::size_t t = 0; t < g.prompt + g.decode; ++t) {
      const bool kept_as_it_is = t >= g.prompt;
      for (std::size_t c = 0; c < g.key_dim; ++c) other.key(t, c) = kept_as_it_is ? block.key(t, c) : changed_key(block.key(t, c), c);
      for (std::size_t c = 0; c < g.value_dim; ++c)
        other.value(t, c) = kept_as_it_is ? block.value(t, c) : changed_value(block.value(t, c), static_cast<TokenIndex>(t));
    }
    const double rows = static_cast<double>(g.group * g.decode);
    for (std::size_t row = 0; row < g.group * g.decode; ++row) {
      const std::vector<TokenIndex>& kept = units[units.size() == 1 ? 0 : row / g.decode];
      const auto position = static_cast<TokenIndex>(g.prompt + row % g.decode);
      const float* const query = block.query.row(row / g.decode * (g.prompt + g.decode) + position);
      std::vector<TokenIndex> held = kept;
      for (TokenIndex p = static_cast<TokenIndex>(g.prompt); p <= position; ++p) held.push_back(p);
      const auto exact = reference::output(reference::attention(block.key.view(), query, position, layer.rule), block.value.view());
      const auto got = reference::output(reference::kept_attention(other.key.view(), query, position, layer.rule, held), other.value.view());
      output += reference::relative_error(got, exact) / rows;
      double lost = 0, whole = 0;
      for (const TokenIndex t : kept) {
        if (!reference::sees(position, layer.rule.window, t)) continue;
        const double before = reference::logit(block.key.view(), query, layer.rule, t);
        lost += std::pow(reference::logit(other.key.view(), query, layer.rule, t) - before, 2);
        whole += before * before;
      }
      logit += (lost > 0 ? std::sqrt(lost / whole) : 0.0) / rows;
    }
  }
};

void expect_matches(const Shape& shape, const std::string& spec) {
  Sweep sweep({spec, "test_transform"}, {1, 7, 40, 120});
  const LayerContext layer = make_layer(shape);
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty()) << result.failures.front().message;
  const std::vector<HeadBlock> blocks = make_blocks(shape);
  std::size_t compared = 0;
  for (const KeptSet& set : result.kept) {
    const std::size_t own = set.unit == "query" ? shape.group : 1;
    for (const ResultRow& row : result.rows) {
      if (row.variant != set.variant || row.budget != set.budget) continue;
      std::vector<std::vector<TokenIndex>> units;
      for (std::size_t u = row.kv_head * own; u < (row.kv_head + 1) * own; ++u)
        units.emplace_back(set.indices.begin() + static_cast<std::ptrdiff_t>(set.offsets[u]), set.indices.begin() + static_cast<std::ptrdiff_t>(set.offsets[u + 1]));
      const Naive naive(layer, blocks[row.kv_head], units);
      EXPECT_NEAR(row.values[sweep.metric("output_error")], naive.output, 2e-6 * std::max(1.0, naive.output));
      EXPECT_NEAR(row.values[sweep.metric("logit_error")], naive.logit, 2e-6);
      EXPECT_GT(naive.output, 1e-3);
      ++compared;
    }
  }
  EXPECT_EQ(compared, result.rows.size());
}

TEST(MeasureTransformed, MatchesItsDefinitionForEveryUnit) {
  expect_matches({}, "test_transform(unit=query)");
}

TEST(MeasureTransformed, MatchesItsDefinitionUnderWindowsAndSoftcaps) {
  Shape shape;
  shape.window = 37;
  shape.softcap = 6;
  shape.decode = 33;
  shape.group = 7;
  expect_matches(shape, "test_transform(unit=query)");
}

TEST(MeasureTransformed, CountsTheBytesThatAreLeftAndMovesNothingElse) {
  Sweep sweep({"test_transform", "test_transform(unit=query)", "knorm"}, {30});
  const Shape shape;
  const UnitResult result = sweep.run(shape);
  const double entry = static_cast<double>((shape.key_dim + shape.value_dim) * 2), decoded = (static_cast<double>(shape.decode) + 1) / 2;
  for (const ResultRow& row : result.rows) {
    const double share = row.variant == 2 ? 1.0 : 0.75, sets = row.variant == 1 ? static_cast<double>(shape.group) : 1.0;
    EXPECT_NEAR(row.values[sweep.metric("resident_bytes")], (30 * share + decoded) * entry * sets, 1e-6);
    EXPECT_DOUBLE_EQ(row.resident_tokens, 30 + decoded);
    EXPECT_EQ(std::isnan(row.values[sweep.metric("logit_error")]), row.variant == 2);
  }
}

TEST(MeasureTransformed, GivesTheSameBitsHeldStreamedAndInChunks) {
  Shape shape;
  shape.hidden = 20;
  shape.decode = 50;
  const auto values = [&](bool hold, std::size_t chunk, std::size_t batch) {
    Sweep sweep({"knorm", "test_transform(unit=query)", "test_transform"}, {5, 40, 120});
    sweep.settings.memory = {hold, chunk, batch, 0};
    sweep.settings.detail = true;
    const UnitResult result = sweep.run(shape);
    std::vector<double> list;
    for (const ResultRow& row : result.rows) list.insert(list.end(), row.values.begin(), row.values.end());
    for (const LayerRow& row : result.layer_rows) list.insert(list.end(), row.values.begin(), row.values.end());
    for (const StepDetail& detail : result.detail) list.insert(list.end(), detail.steps.begin(), detail.steps.end());
    for (double& value : list) value = std::isnan(value) ? -12345.0 : value;
    return list;
  };
  const std::vector<double> expected = values(true, 50, 3);
  EXPECT_GT(expected.size(), 1000u);
  EXPECT_EQ(values(false, 16, 2), expected);
  EXPECT_EQ(values(false, 32, 1), expected);
}

}  // namespace
}  // namespace kvsim::test
