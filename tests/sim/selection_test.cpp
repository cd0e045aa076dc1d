// Selections of policies that have another order at every budget, or keep fewer tokens than they may.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/sim/synthetic_unit.h"

namespace kvsim::test {
namespace {

LayerScores two_units() {
  LayerScores scores;
  scores.units.resize(2);
  for (UnitScores& unit : scores.units) unit.score = {5, 4, 3, 2, 1, 0};
  return scores;
}

/// Ranks by its scores; at every budget by the orders that the test gives.
struct Given final : Policy {
  PolicyTraits traits_{.name = "given", .summary = "", .reference = "", .accounting = "", .nested = false, .order_by_budget = true};
  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor&) override {}
  Need needs() const override { return Need::none; }
  void score(const HeadFeatures&, std::span<UnitScores>) const override {}
};

const std::vector<BudgetPoint> kBudgets{{"1", 1}, {"2", 2}, {"3", 3}, {"9", 9}};

LayerGeometry six_tokens() {
  LayerGeometry layer;
  layer.prompt = 6;
  layer.kv_heads = 2;
  return layer;
}

TEST(SelectLayer, JoinsBudgetsThatShareTheirOrders) {
  SelectionInput input{two_units(), {}, {}};
  // The first unit changes its order at the last but one budget, the second never.
  input.scores.units[0].orders = {{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}, {5, 4, 3, 2, 1, 0}, {5, 4, 3, 2, 1, 0}};
  const Selection selection = select_layer(Given(), six_tokens(), std::move(input), kBudgets);
  ASSERT_EQ(selection.parts.size(), 2u);
  EXPECT_EQ(selection.parts[0].budgets, (std::vector<std::size_t>{0, 1}));
  EXPECT_EQ(selection.parts[1].budgets, (std::vector<std::size_t>{2, 3}));
  EXPECT_EQ(selection.parts[1].units[0].counts, (std::vector<std::uint32_t>{3, 6}));
  EXPECT_EQ(selection.at(2).budget, 0u);
  EXPECT_EQ(kept_set(selection, 0, 1).indices, (std::vector<std::uint32_t>{0, 1, 0, 1}));
  EXPECT_EQ(kept_set(selection, 0, 2).indices, (std::vector<std::uint32_t>{3, 4, 5, 0, 1, 2}));
}

TEST(SelectLayer, CompletesShortOrdersAsTheScoresHaveThem) {
  SelectionInput input{two_units(), {}, {}};
  input.scores.units[0].orders = {{3}, {3, 1}, {3, 1, 0}, {3, 1, 0, 2, 4, 5}};
  const Selection selection = select_layer(Given(), six_tokens(), std::move(input), kBudgets);
  EXPECT_EQ(selection.at(0).part.units[0].order, (std::vector<TokenIndex>{3, 0, 1, 2, 4, 5}));
  EXPECT_EQ(selection.at(1).part.units[0].order, (std::vector<TokenIndex>{3, 1, 0, 2, 4, 5}));
}

TEST(SelectLayer, CountsNearTiesOnlyOnOrdersOfTheScore) {
  SelectionInput input{two_units(), {}, {}};
  for (UnitScores& unit : input.scores.units) unit.score = {1, 1, 1, 1, 0, 0};
  input.scores.units[1].orders.assign(4, {2, 1, 0, 3, 4, 5});
  const Selection selection = select_layer(Given(), six_tokens(), std::move(input), kBudgets);
  EXPECT_EQ(selection.at(1).part.units[0].near_ties[1], 2);
  EXPECT_EQ(selection.at(1).part.units[1].near_ties[1], 0);
}

TEST(SelectLayer, ProtectsOnlyWhatAnOrderBeginsWith) {
  SelectionInput input{two_units(), {}, {}};
  for (UnitScores& unit : input.scores.units) unit.protected_tokens = {5, 0};
  input.scores.units[0].orders.assign(4, {0, 5, 1, 2, 3, 4});
  input.scores.units[1].orders.assign(4, {0, 1, 5, 2, 3, 4});
  const Selection selection = select_layer(Given(), six_tokens(), std::move(input), kBudgets);
  EXPECT_EQ(selection.at(0).part.units[0].protected_count, 2u);
  EXPECT_EQ(selection.at(0).part.units[1].protected_count, 0u);
}

TEST(SelectLayer, RefusesOrdersThatNameATokenTwiceOrEndTooEarly) {
  for (const std::vector<TokenIndex>& order : {std::vector<TokenIndex>{1, 1}, {1}, {7, 1}}) {
    SelectionInput input{two_units(), {}, {}};
    input.scores.units[0].orders.assign(4, order);
    EXPECT_THROW(select_layer(Given(), six_tokens(), std::move(input), std::span(kBudgets).subspan(1, 1)), InternalError);
  }
}

TEST(ReplayUnit, ReportsTheSizeThatAPolicyChose) {
  Sweep sweep({"test_own_size", "knorm"}, {30, 60});
  const Shape shape;
  const UnitResult result = sweep.run(shape);
  ASSERT_TRUE(result.failures.empty());
  const std::size_t bytes = sweep.metric("resident_bytes");
  std::size_t seen = 0;
  for (const ResultRow& row : result.rows) {
    const std::uint32_t budget = sweep.settings.budgets[row.budget].tokens;
    const std::uint32_t kept = row.variant == 1 ? budget : row.kv_head == 0 ? budget * 2 / 3 : budget / 2;
    EXPECT_EQ(row.evicted, static_cast<double>(shape.prompt - kept));
    const double decoded = (static_cast<double>(shape.decode) + 1) / 2;
    EXPECT_DOUBLE_EQ(row.resident_tokens, kept + decoded);
    EXPECT_DOUBLE_EQ(row.values[bytes], (kept + decoded) * static_cast<double>((shape.key_dim + shape.value_dim) * 2));
    ++seen;
  }
  EXPECT_EQ(seen, 8u);
}

TEST(ReplayUnit, MeasuresAnOrderOfOneBudgetLikeAPolicyThatRanksOnce) {
  // At a single budget the order is only one of many that nobody sees: the same rows as with more budgets around it.
  const auto rows_at = [](const std::vector<std::uint32_t>& budgets, std::uint32_t wanted) {
    Sweep sweep({"test_orders", "test_orders(unit=query)"}, budgets);
    std::vector<double> values;
    for (const ResultRow& row : sweep.run({}).rows) {
      if (sweep.settings.budgets[row.budget].tokens != wanted) continue;
      values.insert(values.end(), {row.resident_tokens, row.evicted});
      for (const double value : row.values) values.push_back(std::isnan(value) ? -1.0 : value);
    }
    return values;
  };
  const std::vector<double> alone = rows_at({20}, 20);
  EXPECT_GT(alone.size(), 40u);
  EXPECT_EQ(rows_at({20, 50, 80, 120}, 20), alone);
}

}  // namespace
}  // namespace kvsim::test
