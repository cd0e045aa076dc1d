// What a ranking policy keeps in one layer.
#include "sim/selection.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"

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

LayerSelection select_layer(const Policy& policy, const LayerGeometry& layer, LayerScores scores,
                            std::span<const BudgetPoint> budgets) {
  LayerRanking ranking = rank_layer(policy, layer, std::move(scores));
  LayerSelection selection;
  selection.unit = ranking.scores.unit;
  const std::size_t units = ranking.order.size();
  selection.units.resize(units);
  std::vector<std::uint32_t> kept(units);
  for (const BudgetPoint& budget : budgets) {
    policy.allocate(layer, ranking, budget.tokens, kept);
    for (std::size_t u = 0; u < units; ++u) {
      auto& counts = selection.units[u].counts;
      KVSIM_CHECK(kept[u] <= layer.prompt, "{} keeps {} of {} tokens", policy.traits().name, kept[u], layer.prompt);
      KVSIM_CHECK(!policy.traits().nested || counts.empty() || counts.back() <= kept[u],
                  "{} keeps fewer tokens at a larger budget ({})", policy.traits().name, budget.tokens);
      counts.push_back(kept[u]);
    }
  }
  for (std::size_t u = 0; u < units; ++u) {
    UnitSelection& unit = selection.units[u];
    unit.order = std::move(ranking.order[u]);
    unit.protected_count = ranking.scores.units[u].protected_tokens.size();
    for (const std::uint32_t count : unit.counts)
      unit.near_ties.push_back(count_near_ties(ranking.scores.units[u], unit, count));
    unit.sort_counts();
  }
  return selection;
}

KeptSet kept_set(const LayerSelection& selection, std::uint32_t variant, std::uint32_t budget) {
  KeptSet set;
  set.variant = variant;
  set.budget = budget;
  set.unit = unit_name(selection.unit);
  set.offsets.push_back(0);
  for (const UnitSelection& unit : selection.units) {
    const auto begin = static_cast<std::ptrdiff_t>(set.indices.size());
    set.indices.insert(set.indices.end(), unit.order.begin(), unit.order.begin() + unit.counts[budget]);
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
