// KVCompose: composite tokens, the j-th best of every head together, ranked over all layers by a second reading.
//
// arXiv:2509.05165, kvpress's KVComposePress. The prompt is read a second time on top of its cache (kvsim-record
// --second-pass repeat); per query head a key's statistic is the largest (queries=max) or mean weight over those queries.
// Joined over the group (group), times |v| (vnorm), plus the mean over the KV heads (across). structured=true: composite j
// of a layer is the mean (heads) of its heads' j-th largest scores; the best composites over all layers give each layer
// its count, the same for all of its heads, and every head keeps its own best tokens. The first `least` composites of
// every layer come first, and those of the first recorded layer count as the best of all layers, as in the press.
// structured=false ranks the tokens of all layers and heads together.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/error.h"
#include "policies/layer_preference.h"
#include "policies/model_pool.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "kvcompose",
    .summary = "attention of a second reading; composite tokens of all heads compete over all layers",
    .reference = "arXiv:2509.05165; kvpress KVComposePress",
    .accounting = "budget tokens per KV head on average over the recorded layers; nothing is protected",
    .model_wide = true};

constexpr std::array<std::string_view, 2> kQueryChoices{"max", "mean"};
constexpr std::array<std::string_view, 2> kJoinChoices{"mean", "max"};
constexpr float kComesFirst = 1e9f;  // added to the composites that every layer keeps, as in the press

struct KvCompose final : Policy {
  bool structured_ = true;
  std::size_t queries_ = 0;
  std::size_t group_ = 0;
  std::size_t heads_ = 0;
  bool vnorm_ = false;
  bool across_ = true;
  std::uint32_t least_ = 0;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.flag("structured", structured_, "all heads of a layer keep the same number of tokens");
    f.choice("queries", queries_, kQueryChoices, "how the second reading's queries are joined");
    f.choice("group", group_, kJoinChoices, "how the query heads of a KV head are joined");
    f.choice("heads", heads_, kJoinChoices, "structured: how the heads of a layer make a composite");
    f.flag("vnorm", vnorm_, "multiply by the norm of the value");
    f.flag("across", across_, "add the mean over the KV heads of the layer");
    f.number("least", least_, 0, std::numeric_limits<std::uint32_t>::max(), "structured: tokens that every layer keeps");
  }
  Need needs() const override { return vnorm_ ? Need::second_pass | Need::values : Need::second_pass; }
  Scope scope() const override { return Scope::model; }
  void check(const LayerGeometry& layer) const override {
    const auto& names = layer.second_pass;
    if (std::find(names.begin(), names.end(), statistic()) == names.end())
      throw UserError("the second pass holds no statistic '{}': record with --second-pass repeat", statistic());
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    std::vector<std::vector<double>> rows;
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      const std::span<const float> row = head.second_pass(statistic(), h);
      rows.emplace_back(row.begin(), row.end());
    }
    std::vector<double> score = join_group(rows, group_ == 0 ? Group::mean : Group::max);
    for (std::size_t t = 0; vnorm_ && t < score.size(); ++t) {
      double squares = 0;
      for (std::size_t c = 0; c < head.values().cols; ++c) squares += std::pow(static_cast<double>(head.values().row(t)[c]), 2);
      score[t] *= std::sqrt(squares);
    }
    out[0].score = to_scores(score);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override {
    if (!across_) return;
    const auto heads = static_cast<double>(scores.units.size());
    for (std::size_t t = 0; t < scores.units[0].score.size(); ++t) {
      double sum = 0;
      for (const UnitScores& unit : scores.units) sum += static_cast<double>(unit.score[t]);
      for (UnitScores& unit : scores.units) unit.score[t] = static_cast<float>(static_cast<double>(unit.score[t]) + sum / heads);
    }
  }
  std::vector<float> summarise(const LayerGeometry&, const LayerRanking& ranking) const override {
    return structured_ ? composites(ranking) : pool_summary(ranking);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const std::uint64_t mean = std::min<std::uint64_t>(budget, layer.prompt), layers = ranking.summaries.size();
    if (structured_) {
      const std::vector<std::vector<float>> rows = competing(ranking.summaries);
      std::fill(kept.begin(), kept.end(), model_pool_counts(rows, layer_place(layer), mean * layers, 0)[0]);
      return;
    }
    const std::vector<std::uint32_t> counts =
        model_pool_counts(ranking.summaries, layer_place(layer), mean * layers * kept.size(), 0);
    std::copy(counts.begin(), counts.end(), kept.begin());
  }

 private:
  std::string statistic() const { return queries_ == 0 ? "kvcompose_max" : "kvcompose_mean"; }

  /// The composites of a layer as a pool of one unit.
  std::vector<float> composites(const LayerRanking& ranking) const {
    const auto& units = ranking.scores.units;
    const std::size_t tokens = units[0].score.size();
    std::vector<float> row{1.0f, static_cast<float>(tokens), 0.0f};
    for (std::size_t j = 0; j < tokens; ++j) {
      double sum = 0, most = -std::numeric_limits<double>::infinity();
      for (std::size_t u = 0; u < units.size(); ++u) {
        const auto score = static_cast<double>(units[u].score[ranking.order[u][j]]);
        sum += score;
        most = std::max(most, score);
      }
      row.push_back(static_cast<float>(heads_ == 0 ? sum / static_cast<double>(units.size()) : most));
    }
    return row;
  }
  /// What competes: the first layer with the maximum over all layers, and the first ranks lifted above everything.
  std::vector<std::vector<float>> competing(std::span<const std::vector<float>> summaries) const {
    constexpr std::size_t kHeader = 3;
    std::vector<std::vector<float>> rows(summaries.begin(), summaries.end());
    for (std::size_t l = 1; l < rows.size(); ++l)
      for (std::size_t i = kHeader; i < rows[0].size(); ++i) rows[0][i] = std::max(rows[0][i], rows[l][i]);
    for (std::vector<float>& row : rows)
      for (std::size_t i = kHeader; i < row.size() && i - kHeader < least_; ++i) row[i] += kComesFirst;
    return rows;
  }
};

const RegisterPolicy<KvCompose> registered{kTraits};

}  // namespace
}  // namespace kvsim
