// Per layer: a list of shares, one per layer, around any score.
//
// kvpress's PerLayerCompressionPress, with the shares as proportions of a common budget rather than as absolute ratios, so
// that one list serves every budget: layer l keeps budget * share_l / mean share tokens per unit, whole numbers whose sum
// over the recorded layers is exact. A layer holds the prompt at most; what that leaves goes to the others in proportion.
#include <algorithm>
#include <cmath>
#include <charconv>
#include <numeric>

#include "kernels/error.h"
#include "policies/allotment.h"
#include "policies/layer_preference.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "per_layer",
    .summary = "layer budgets by a given list of shares, around any score",
    .reference = "kvpress PerLayerCompressionPress",
    .accounting = "budget tokens per unit on average over the recorded layers, exactly",
    .nested = false};  // rounding can take a token back when the budget grows

struct PerLayer final : ScoreWrapper {
  SpecValue shares_{SpecValue::Kind::list, {}, {}, {}};
  std::vector<double> values_;

  PerLayer() : ScoreWrapper(kTraits, "snapkv") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.value("shares", shares_, "one number per layer of the model, or per recorded one, e.g. [2,1,1,0.5]");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    const PolicyTraits& inner = score_->traits();
    if (score_->scope() == Scope::model || inner.order_by_budget || inner.own_size)
      throw UserError("per_layer: score={} shares budget over the layers itself or has another order at every budget", inner.name);
    if (shares_.kind != SpecValue::Kind::list || shares_.items.empty())
      throw UserError("per_layer needs shares=[...], one number per layer");
    values_.clear();
    for (const SpecValue& item : shares_.items) {
      double value = 0;
      const char* const end = item.text.data() + item.text.size();
      const auto [at, error] = std::from_chars(item.text.data(), end, value);
      if (item.kind != SpecValue::Kind::word || error != std::errc() || at != end || !(value >= 0) || !std::isfinite(value))
        throw UserError("per_layer: share {} is no number of 0 or more", to_text(item));
      values_.push_back(value);
    }
    if (std::accumulate(values_.begin(), values_.end(), 0.0) <= 0) throw UserError("per_layer: all shares are 0");
  }
  void check(const LayerGeometry& layer) const override {
    ScoreWrapper::check(layer);
    if (values_.size() != layer.model_layers && values_.size() != layer.recorded_layers.size()) {
      const std::string recorded = layer.recorded_layers.size() == layer.model_layers
                                       ? std::string()
                                       : fmt::format(" ({} recorded)", layer.recorded_layers.size());
      throw UserError("shares has {} numbers, the model {} layers{}", values_.size(), layer.model_layers, recorded);
    }
    if (std::accumulate(values_.begin(), values_.end(), 0.0, [&, l = std::size_t{0}](double sum, double share) mutable {
          const bool used = is_recorded(layer, l++);
          return sum + (used ? share : 0.0);
        }) <= 0)
      throw UserError("the shares of all recorded layers are 0");
  }
  Scope scope() const override { return Scope::model; }

  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const auto prompt = static_cast<std::uint32_t>(layer.prompt);
    std::vector<double> shares;
    for (std::size_t l = 0; l < values_.size(); ++l)
      if (is_recorded(layer, l)) shares.push_back(values_[l]);
    const std::uint64_t total = std::uint64_t{std::min(budget, prompt)} * shares.size();
    // Layers without a share take what the others cannot hold.
    const auto open = static_cast<std::uint64_t>(std::count_if(shares.begin(), shares.end(), [](double s) { return s > 0; }));
    if (total > open * prompt)
      for (double& share : shares) share = share > 0 ? share * 1e12 : 1.0;
    const std::vector<std::uint32_t> counts = round_to_total(shares, total, prompt);
    score_->allocate(layer, ranking, counts[layer_place(layer)], kept);
  }

 private:
  /// Whether entry `l` of the list belongs to a recorded layer.
  bool is_recorded(const LayerGeometry& layer, std::size_t l) const {
    const auto& recorded = layer.recorded_layers;
    return values_.size() == recorded.size() || std::find(recorded.begin(), recorded.end(), l) != recorded.end();
  }
};

const RegisterPolicy<PerLayer> registered{kTraits};

}  // namespace
}  // namespace kvsim
