// What a ranking policy keeps in one layer.
#include "sim/selection.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <set>

#include "kernels/error.h"
#include "policies/stop_signal.h"

namespace kvsim {
namespace {

/// Evicted tokens whose score is as good as that of the last token kept.
std::int64_t count_near_ties(const UnitScores& scores, const UnitSelection& unit, std::uint32_t count) {
  if (count == 0 || count <= unit.protected_count || count >= unit.order.size()) return 0;
  const float last = scores.score[unit.order[count - 1]];
  std::int64_t ties = 0;
  for (std::size_t i = count; i < unit.order.size(); ++i) {
    const float next = scores.score[unit.order[i]];
    if (std::abs(last - next) > kNearTie * std::max(std::abs(last), std::abs(next))) break;
    ++ties;
  }
  return ties;
}

using Orders = std::vector<std::vector<TokenIndex>>;  // [units][T]

/// An order of a budget may end behind what is kept: the others follow as the scores have them.
void complete(const Policy& policy, std::vector<TokenIndex>& order, std::span<const TokenIndex> all, std::uint32_t kept) {
  KVSIM_CHECK(order.size() >= kept, "{} orders {} tokens and keeps {}", policy.traits().name, order.size(), kept);
  std::vector<bool> named(all.size(), false);
  for (const TokenIndex token : order) {
    KVSIM_CHECK(token < named.size() && !named[token], "{} orders token {} twice or out of range", policy.traits().name, token);
    named[token] = true;
  }
  if (order.size() == all.size()) return;
  std::copy_if(all.begin(), all.end(), std::back_inserter(order), [&](TokenIndex token) { return !named[token]; });
}

Orders complete_orders(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking, BudgetAt budget,
                       std::span<const std::uint32_t> kept) {
  Orders orders = order_at(policy, layer, ranking, budget, kept);
  for (std::size_t u = 0; u < orders.size(); ++u) complete(policy, orders[u], ranking.order[u], kept[u]);
  return orders;
}

std::size_t leading_protected(std::span<const TokenIndex> order, const std::vector<TokenIndex>& guarded) {
  const std::set<TokenIndex> wanted(guarded.begin(), guarded.end());
  const std::set<TokenIndex> first(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(guarded.size()));
  return wanted == first ? guarded.size() : 0;
}

/// One part of a selection: orders that some budgets share, and their counts.
struct PartOrders {
  Orders order, hindsight;
  std::vector<std::size_t> budgets;
};

LayerSelection make_part(const LayerRanking& ranking, PartOrders part, std::span<const std::vector<std::uint32_t>> counts) {
  LayerSelection selection;
  selection.unit = ranking.scores.unit;
  selection.hindsight = std::move(part.hindsight);
  selection.budgets = std::move(part.budgets);
  for (std::size_t u = 0; u < part.order.size(); ++u) {
    const UnitScores& scores = ranking.scores.units[u];
    UnitSelection& unit = selection.units.emplace_back();
    const bool by_score = part.order[u] == ranking.order[u];
    unit.order = std::move(part.order[u]);
    unit.protected_count = by_score ? scores.protected_tokens.size() : leading_protected(unit.order, scores.protected_tokens);
    for (const std::size_t budget : selection.budgets) {
      const std::uint32_t count = counts[budget][u];
      unit.counts.push_back(count);
      unit.near_ties.push_back(by_score ? count_near_ties(scores, unit, count) : 0);
    }
    unit.sort_counts();
  }
  return selection;
}

std::vector<std::vector<std::uint32_t>> count_all(const Policy& policy, const LayerGeometry& layer, const LayerRanking& ranking,
                                                  std::span<const BudgetPoint> budgets) {
  std::vector<std::vector<std::uint32_t>> counts;
  for (const BudgetPoint& budget : budgets) {
    std::vector<std::uint32_t> kept(ranking.order.size());
    policy.allocate(layer, ranking, budget.tokens, kept);
    for (std::size_t u = 0; u < kept.size(); ++u) {
      KVSIM_CHECK(kept[u] <= layer.prompt, "{} keeps {} of {} tokens", policy.traits().name, kept[u], layer.prompt);
      KVSIM_CHECK(!policy.traits().nested || counts.empty() || counts.back()[u] <= kept[u],
                  "{} keeps fewer tokens at a larger budget ({})", policy.traits().name, budget.tokens);
    }
    counts.push_back(std::move(kept));
  }
  return counts;
}

}  // namespace

void UnitSelection::sort_counts() {
  std::vector<std::size_t> by_count(counts.size());
  std::iota(by_count.begin(), by_count.end(), 0);
  std::stable_sort(by_count.begin(), by_count.end(), [&](std::size_t a, std::size_t b) { return counts[a] < counts[b]; });
  ascending.clear();
  place.resize(counts.size());
  for (const std::size_t budget : by_count) {
    place[budget] = ascending.size();
    ascending.push_back(counts[budget]);
  }
}

Selection::Place Selection::at(std::size_t budget) const {
  for (const LayerSelection& part : parts) {
    const auto found = std::lower_bound(part.budgets.begin(), part.budgets.end(), budget);
    if (found != part.budgets.end() && *found == budget) return {part, static_cast<std::size_t>(found - part.budgets.begin())};
  }
  throw InternalError("a selection without that budget");
}

Selection select_layer(const Policy& policy, const LayerGeometry& layer, SelectionInput input,
                       std::span<const BudgetPoint> budgets) {
  LayerRanking ranking = rank_layer(policy, layer, std::move(input.scores));
  ranking.summaries = input.summaries;
  LayerRanking hindsight;
  if (!input.hindsight.units.empty()) hindsight = rank_layer(policy, layer, std::move(input.hindsight));
  const std::vector<std::vector<std::uint32_t>> counts = count_all(policy, layer, ranking, budgets);
  Selection selection;
  if (const auto* stops = dynamic_cast<const StopSignal*>(&policy))
    for (std::size_t b = 0; b < budgets.size(); ++b)
      selection.stop_signal.push_back(stops->stop_signal(layer, ranking, budgets[b].tokens, counts[b]));
  if (!policy.traits().order_by_budget) {
    PartOrders all{ranking.order, std::move(hindsight.order), std::vector<std::size_t>(budgets.size())};
    std::iota(all.budgets.begin(), all.budgets.end(), 0);
    selection.parts.push_back(make_part(ranking, std::move(all), counts));
    selection.ranking = std::move(ranking);
    return selection;
  }
  PartOrders part;
  for (std::size_t b = 0; b < budgets.size(); ++b) {
    const BudgetAt at{b, budgets[b].tokens};
    Orders order = complete_orders(policy, layer, ranking, at, counts[b]), ideal;
    if (!hindsight.order.empty()) ideal = complete_orders(policy, layer, hindsight, at, counts[b]);
    if (!part.budgets.empty() && (order != part.order || ideal != part.hindsight)) {
      selection.parts.push_back(make_part(ranking, std::move(part), counts));
      part = {};
    }
    if (part.budgets.empty()) part = {std::move(order), std::move(ideal), {}};
    part.budgets.push_back(b);
  }
  if (!part.budgets.empty()) selection.parts.push_back(make_part(ranking, std::move(part), counts));
  selection.ranking = std::move(ranking);
  return selection;
}

KeptSet kept_set(const Selection& selection, std::uint32_t variant, std::uint32_t budget) {
  const Selection::Place place = selection.at(budget);
  KeptSet set;
  set.variant = variant;
  set.budget = budget;
  set.unit = unit_name(place.part.unit);
  set.offsets.push_back(0);
  for (const UnitSelection& unit : place.part.units) {
    const auto begin = static_cast<std::ptrdiff_t>(set.indices.size());
    set.indices.insert(set.indices.end(), unit.order.begin(), unit.order.begin() + unit.counts[place.budget]);
    std::sort(set.indices.begin() + begin, set.indices.end());
    set.offsets.push_back(set.indices.size());
  }
  return set;
}

const char* unit_name(Unit unit) {
  switch (unit) {
    case Unit::kv: return "kv";
    case Unit::query: return "query";
    case Unit::layer: return "layer";
  }
  return "kv";
}

}  // namespace kvsim
