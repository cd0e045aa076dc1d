// How a budget is shared: over the heads of a layer, over the layers of a model, and to whole tokens.
#include "policies/allotment.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/error.h"
#include "kernels/order.h"

namespace kvsim {
namespace {

/// One unit of a ranking, with its free tokens as a descending list of scores.
struct RankedUnit {
  std::span<const TokenIndex> order;
  std::span<const float> score;
  std::uint32_t guarded = 0;  // protected tokens, first in the order
  std::uint32_t floor = 0;

  /// Tokens kept when all free tokens with score bits above `bits` are.
  std::uint32_t above(std::uint32_t bits) const {
    const auto end = std::partition_point(order.begin() + guarded, order.end(),
                                          [&](TokenIndex t) { return ordered_bits(score[t]) > bits; });
    return std::max(floor, static_cast<std::uint32_t>(end - order.begin()));
  }
  std::uint32_t places(std::uint32_t level) const { return std::max(floor, std::min(guarded, level)); }
};

std::vector<RankedUnit> ranked_units(const LayerRanking& ranking, std::span<const std::uint32_t> floors) {
  std::vector<RankedUnit> units;
  for (std::size_t u = 0; u < ranking.order.size(); ++u) {
    const UnitScores& scores = ranking.scores.units[u];
    units.push_back({ranking.order[u], scores.score,
                     static_cast<std::uint32_t>(scores.protected_tokens.size()),
                     std::min(floors[u], static_cast<std::uint32_t>(scores.score.size()))});
  }
  return units;
}

template <typename Count>
std::uint64_t sum_over(const std::vector<RankedUnit>& units, Count count) {
  return std::accumulate(units.begin(), units.end(), std::uint64_t{0},
                         [&](std::uint64_t sum, const RankedUnit& unit) { return sum + count(unit); });
}

/// The budget ends inside the protected tokens: they are taken place by place.
std::vector<std::uint32_t> counts_by_place(const std::vector<RankedUnit>& units, std::uint64_t total) {
  std::uint32_t level = 0;
  while (sum_over(units, [&](const RankedUnit& u) { return u.places(level + 1); }) <= total) ++level;
  std::vector<std::uint32_t> counts;
  for (const RankedUnit& unit : units) counts.push_back(unit.places(level));
  std::uint64_t left = total - std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  for (std::size_t u = 0; u < units.size() && left > 0; ++u) {
    if (units[u].places(level + 1) > counts[u]) {
      ++counts[u];
      --left;
    }
  }
  return counts;
}

/// Smallest score bits so that all better tokens fit into `total`.
std::uint32_t cut_of(const std::vector<RankedUnit>& units, std::uint64_t total) {
  std::uint32_t low = 0, high = std::numeric_limits<std::uint32_t>::max();
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (sum_over(units, [&](const RankedUnit& u) { return u.above(middle); }) <= total) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// kvpress's profile: a real number of tokens for layer `index` of `layers`.
double pyramid_share(double mean, double beta, double tokens, double window, std::uint32_t index,
                     std::uint32_t layers) {
  double least = mean / beta;
  double most = 2 * mean - least;
  if (most >= tokens - window) {
    most = tokens - window;
    least = 2 * mean - most;
  }
  const bool usable = tokens >= most && most >= least && least >= window;
  if (!usable || layers < 2) return mean;
  return most - static_cast<double>(index) * (most - least) / (layers - 1);
}

}  // namespace

std::vector<std::uint32_t> round_to_total(std::vector<double> shares, std::uint64_t total,
                                          std::uint32_t most) {
  KVSIM_CHECK(total <= std::uint64_t{most} * shares.size(), "{} tokens do not fit into {} units of {}", total,
              shares.size(), most);
  const auto target = static_cast<double>(total);
  std::vector<bool> full(shares.size(), false);
  for (bool again = true; again;) {  // scale what is not full; every round fills at least one more
    double fixed = 0, open = 0;
    for (std::size_t i = 0; i < shares.size(); ++i) (full[i] ? fixed : open) += full[i] ? most : shares[i];
    again = false;
    const double factor = open > 0 ? (target - fixed) / open : 0.0;
    for (std::size_t i = 0; i < shares.size(); ++i) {
      if (!full[i] && shares[i] * factor > most) again = full[i] = true;
    }
    if (again) continue;
    for (std::size_t i = 0; i < shares.size(); ++i) shares[i] = full[i] ? most : shares[i] * factor;
  }
  std::vector<std::uint32_t> counts(shares.size());
  std::vector<std::pair<double, std::size_t>> rest;
  std::uint64_t sum = 0;
  constexpr double kNearlyWhole = 1e-9;  // a share that is whole but for the scaling must not lose a token
  for (std::size_t i = 0; i < shares.size(); ++i) {
    counts[i] = static_cast<std::uint32_t>(std::floor(shares[i] + kNearlyWhole));
    rest.emplace_back(counts[i] - shares[i], i);
    sum += counts[i];
  }
  std::sort(rest.begin(), rest.end());
  for (std::size_t round = 0; sum < total; round = (round + 1) % rest.size()) {
    std::uint32_t& count = counts[rest[round].second];
    if (count < most) {
      ++count;
      ++sum;
    }
  }
  return counts;
}

std::vector<std::uint32_t> joint_counts(const LayerRanking& ranking, std::uint64_t total,
                                        std::span<const std::uint32_t> floors) {
  const std::vector<RankedUnit> units = ranked_units(ranking, floors);
  const auto all_places = [](const RankedUnit& u) { return u.places(u.guarded); };
  if (sum_over(units, all_places) > total) return counts_by_place(units, total);
  const std::uint32_t cut = cut_of(units, total);
  std::vector<std::uint32_t> counts;
  std::vector<std::pair<TokenIndex, std::size_t>> ties;
  for (std::size_t u = 0; u < units.size(); ++u) {
    counts.push_back(units[u].above(cut));
    const std::uint32_t end =
        cut == 0 ? static_cast<std::uint32_t>(units[u].order.size()) : units[u].above(cut - 1);
    for (std::uint32_t i = counts[u]; i < end; ++i) ties.emplace_back(units[u].order[i], u);
  }
  const std::uint64_t left = total - std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  const auto last = ties.begin() + static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(left, ties.size()));
  std::nth_element(ties.begin(), last, ties.end());
  for (auto tie = ties.begin(); tie != last; ++tie) ++counts[tie->second];
  return counts;
}

void HeadShare::apply(const LayerRanking& ranking, std::span<std::uint32_t> kept) const {
  const std::uint64_t total = std::accumulate(kept.begin(), kept.end(), std::uint64_t{0});
  const double mean = static_cast<double>(total) / static_cast<double>(kept.size());
  const auto& units = ranking.scores.units;
  std::vector<std::uint32_t> floors(kept.size());
  if (form == Form::guarantee) {
    std::fill(floors.begin(), floors.end(), static_cast<std::uint32_t>(std::floor(mean) * alpha));
    const std::vector<std::uint32_t> counts = joint_counts(ranking, total, floors);
    std::copy(counts.begin(), counts.end(), kept.begin());
    return;
  }
  if (mean >= static_cast<double>(units[0].score.size())) return;  // everything is kept
  std::uint64_t guarded = 0;
  std::uint32_t most = std::numeric_limits<std::uint32_t>::max();
  for (std::size_t u = 0; u < units.size(); ++u) {
    floors[u] = static_cast<std::uint32_t>(units[u].protected_tokens.size());
    if (floors[u] >= mean) return;  // nothing to shift
    guarded += floors[u];
    most = std::min(most, static_cast<std::uint32_t>(units[u].score.size()) - floors[u]);
  }
  const std::vector<std::uint32_t> counts = joint_counts(ranking, total, floors);
  std::vector<double> shares;
  for (std::size_t u = 0; u < kept.size(); ++u) {
    const double uniform = alpha * (mean - floors[u]);
    shares.push_back((1 - alpha) * (counts[u] - floors[u]) + (repo ? std::trunc(uniform) : uniform));
  }
  if (!repo) {
    const std::vector<std::uint32_t> whole = round_to_total(shares, total - guarded, most);
    for (std::size_t u = 0; u < kept.size(); ++u) kept[u] = floors[u] + whole[u];
    return;
  }
  for (std::size_t u = 0; u < kept.size(); ++u) {
    kept[u] = floors[u] + std::min(most, static_cast<std::uint32_t>(std::nearbyint(shares[u])));
  }
}

double authors_layer_share(double beyond, double beta, double room, std::uint32_t index, std::uint32_t layers,
                           bool whole) {
  double least = whole ? std::floor(beyond / beta) : beyond / beta;
  double most = 2 * beyond - least;
  if (most >= room) {
    most = room;
    least = 2 * beyond - most;
  }
  const double step = (most - least) / (layers - 1);
  return most - index * (whole ? std::floor(step) : step);
}

std::uint32_t LayerSlope::tokens(const LayerGeometry& layer, std::uint32_t budget, std::size_t window) const {
  const auto prompt = static_cast<std::uint32_t>(layer.prompt);
  const std::uint32_t mean = std::min(budget, prompt);
  const auto share = [&](std::uint32_t index) {
    const auto guarded = static_cast<double>(window);
    if (form == Form::authors) {
      const double beyond = mean - guarded;
      const bool flat = beyond <= 0 || prompt <= mean || prompt < 2 * beyond || layer.model_layers < 2;
      return flat ? static_cast<double>(mean)
                  : guarded +
                        authors_layer_share(beyond, beta, prompt - guarded, index, layer.model_layers, repo);
    }
    return pyramid_share(mean, beta, prompt, guarded, index, layer.model_layers);
  };
  const auto& recorded = layer.recorded_layers;
  const auto place = std::find(recorded.begin(), recorded.end(), layer.layer);
  if (repo || place == recorded.end()) {
    return std::min(prompt, static_cast<std::uint32_t>(std::nearbyint(share(layer.layer))));
  }
  std::vector<double> shares;
  for (const std::uint32_t index : recorded) shares.push_back(share(index));
  const std::uint64_t total = std::uint64_t{mean} * recorded.size();
  return round_to_total(std::move(shares), total, prompt)[static_cast<std::size_t>(place - recorded.begin())];
}

}  // namespace kvsim
