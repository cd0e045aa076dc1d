// CAKE's layer budgets.
#include "policies/layer_preference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"

namespace kvsim {
namespace {

constexpr std::size_t kFloats = 4;

void push_split(std::vector<float>& out, double value) {
  const auto high = static_cast<float>(value);
  out.push_back(high);
  out.push_back(static_cast<float>(value - static_cast<double>(high)));
}

/// Gives `amount` in equal parts to the layers below the cap, the remainder to the first of them.
void spread_evenly(std::vector<std::uint64_t>& budgets, std::uint64_t amount, std::uint64_t cap) {
  std::vector<std::size_t> open;
  for (std::size_t l = 0; l < budgets.size(); ++l)
    if (budgets[l] < cap) open.push_back(l);
  for (std::size_t i = 0; i < open.size(); ++i)
    budgets[open[i]] += amount / open.size() + (i < amount % open.size() ? 1 : 0);
}

}  // namespace

std::vector<float> AttentionSpread::to_floats() const {
  std::vector<float> out;
  push_split(out, entropy);
  push_split(out, variance);
  return out;
}

AttentionSpread AttentionSpread::from_floats(std::span<const float> four) {
  KVSIM_CHECK(four.size() == kFloats, "a spread of {} floats", four.size());
  const auto join = [&](std::size_t i) { return static_cast<double>(four[i]) + static_cast<double>(four[i + 1]); };
  return {join(0), join(2)};
}

AttentionSpread attention_spread(const HeadFeatures& head, const std::vector<QueryRows>& rows, std::size_t candidates) {
  AttentionSpread spread;
  std::vector<double> row;
  for (std::size_t h = 0; h < head.geometry().group; ++h) {
    std::vector<MatrixView<const float>> parts;
    for (const QueryRows& set : rows) parts.push_back(head.attention(set, h));
    for (std::size_t t = 0; t < candidates; ++t) {
      row.clear();
      for (const MatrixView<const float>& part : parts)
        for (std::size_t r = 0; r < part.cols; ++r) row.push_back(static_cast<double>(part.row(t)[r]));
      KVSIM_CHECK(row.size() > 1, "the variance of {} queries", row.size());
      double sum = 0, squares = 0;
      for (const double a : row) {
        spread.entropy -= a * std::log(a + 1e-10);
        sum += a;
      }
      const double mean = sum / static_cast<double>(row.size());
      for (const double a : row) squares += (a - mean) * (a - mean);
      spread.variance += squares / static_cast<double>(row.size() - 1);
    }
  }
  return spread;
}

std::vector<float> summarise_spread(const LayerScores& scores) {
  AttentionSpread sum;
  for (const UnitScores& unit : scores.units) {
    if (unit.extra.empty()) continue;
    const AttentionSpread one = AttentionSpread::from_floats(std::span(unit.extra).last(kFloats));
    sum.entropy += one.entropy;
    sum.variance += one.variance;
  }
  return sum.to_floats();
}

double LayerPreference::preference(const AttentionSpread& spread) const {
  return std::pow(std::max(spread.entropy, 0.0), 1 / tau1) * std::pow(std::max(spread.variance, 0.0), 1 / tau2);
}

std::uint32_t LayerPreference::tokens(std::span<const std::vector<float>> summaries, std::size_t place, std::uint32_t budget,
                                      std::uint32_t guarded, std::uint32_t prompt) const {
  KVSIM_CHECK(place < summaries.size(), "layer {} of {} summaries", place, summaries.size());
  const std::uint32_t mean = std::min(budget, prompt);
  if (mean <= guarded) return mean;
  const std::uint64_t total = std::uint64_t{mean - guarded} * summaries.size();
  std::vector<double> preferences;
  for (const std::vector<float>& summary : summaries) preferences.push_back(preference(AttentionSpread::from_floats(summary)));
  const std::uint32_t cap = prompt - guarded;
  if (!cascade) return guarded + share_by_preference(preferences, total, cap)[place];
  // Stage m: layers 0 .. m have arrived and share the whole total.
  std::uint32_t least = cap;
  for (std::size_t m = place; m < summaries.size(); ++m)
    least = std::min(least, share_by_preference(std::span(preferences).first(m + 1), total, cap)[place]);
  return guarded + least;
}

std::vector<std::uint32_t> share_by_preference(std::span<const double> preference, std::uint64_t total, std::uint32_t cap) {
  const double sum = std::accumulate(preference.begin(), preference.end(), 0.0);
  std::vector<std::uint64_t> budgets;
  for (const double p : preference) {
    // No layer is preferred where all are alike, down to nothing.
    const double share = sum > 0 ? p / sum : 1.0 / static_cast<double>(preference.size());
    budgets.push_back(static_cast<std::uint64_t>(static_cast<double>(total) * share));
  }
  const std::uint64_t reachable = std::min<std::uint64_t>(total, std::uint64_t{cap} * preference.size());
  const auto held = [&] { return std::accumulate(budgets.begin(), budgets.end(), std::uint64_t{0}); };
  const auto clamp = [&] {
    const std::uint64_t before = held();
    for (std::uint64_t& budget : budgets) budget = std::min<std::uint64_t>(budget, cap);
    return before - held();
  };
  for (std::uint64_t excess = clamp(); excess > 0 || held() < reachable; excess = clamp()) {
    spread_evenly(budgets, excess, cap);
    if (const std::uint64_t now = held(); now < reachable) spread_evenly(budgets, reachable - now, cap);
  }
  // Rounding of the proportions upwards can give out a token too many.
  std::uint64_t surplus = held() > reachable ? held() - reachable : 0;
  for (std::size_t l = 0; surplus > 0; l = (l + 1) % budgets.size())
    if (budgets[l] > 0) --budgets[l], --surplus;
  std::vector<std::uint32_t> out;
  for (const std::uint64_t budget : budgets) out.push_back(static_cast<std::uint32_t>(budget));
  return out;
}

std::size_t layer_place(const LayerGeometry& layer) {
  const auto& recorded = layer.recorded_layers;
  const auto found = std::find(recorded.begin(), recorded.end(), layer.layer);
  KVSIM_CHECK(found != recorded.end(), "layer {} is not a recorded one", layer.layer);
  return static_cast<std::size_t>(found - recorded.begin());
}

}  // namespace kvsim
