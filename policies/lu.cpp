// LU-KV: head budgets over the whole model from a curve that was derived from other traces.
//
// arXiv:2602.08585, kvpress's LUKVPress. The file holds [99, layers, KV heads]: the ratio that is pruned from every head
// when 1, 2, ... 99% of the cache are; `kvsim-plot`'s package derives one from results (python -m
// kvsim_analysis.budget_curve). At a budget of b of T tokens the row of the nearest percentage is read, halves to the even
// one, and every head keeps 1 - C of its tokens. The press rounds every layer by itself and has no exact total
// (total=repo); here shares are scaled so that the sum over the recorded layers is exact. First `sinks` and last `recent`
// tokens come first, as in the press; its default score is expected attention with epsilon 0.02.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/error.h"
#include "policies/allotment.h"
#include "policies/layer_preference.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "lu",
    .summary = "head budgets from a curve derived from other traces, around any score",
    .reference = "arXiv:2602.08585; kvpress LUKVPress",
    .accounting = "budget tokens per KV head on average over the recorded layers (total=repo: what the curve says)",
    .nested = false};  // a head's share may fall from one percentage to the next

constexpr std::array<std::string_view, 2> kTotalChoices{"exact", "repo"};
constexpr std::size_t kRows = 99;
constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max() / 4;

struct Lu final : ScoreWrapper {
  std::string file_;
  std::string dataset_ = "/curve";
  std::uint32_t sinks_ = 4;
  std::uint32_t recent_ = 1;
  std::size_t total_ = 0;
  const ExternalArray* curve_ = nullptr;  // owned by the program's Resources

  Lu() : ScoreWrapper(kTraits, "") { score_ = bind_policy(parse_specs("expected_attention(epsilon=0.02)").front()); }
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.text("file", file_, "HDF5 file with the curve");
    f.text("dataset", dataset_, "path of the array [99, layers, KV heads] inside it");
    f.number("sinks", sinks_, 0, kAny, "first tokens that come first");
    f.number("recent", recent_, 0, kAny, "last prompt tokens that come first");
    f.choice("total", total_, kTotalChoices, "keep the total over the layers exactly, or what the press keeps");
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    const PolicyTraits& inner = score_->traits();
    if (score_->scope() != Scope::head || score_->unit() != Unit::kv || inner.order_by_budget || inner.own_size)
      throw UserError("lu: score={} shares budget itself or keeps no set per KV head", inner.name);
    if (file_.empty()) throw UserError("lu needs file=... with a curve; python -m kvsim_analysis.budget_curve derives one from results");
    curve_ = &resources.array(file_, dataset_);
    if (std::any_of(curve_->data.begin(), curve_->data.end(), [](float v) { return std::isnan(v); }))
      throw UserError("{} in {} holds a value that is not a number", dataset_, file_);
  }
  void check(const LayerGeometry& layer) const override {
    ScoreWrapper::check(layer);
    const auto& shape = curve_->shape;
    if (shape.size() == 3 && shape[0] == kRows && shape[2] == layer.kv_heads &&
        (shape[1] == layer.model_layers || shape[1] == layer.recorded_layers.size()))
      return;
    throw UserError("{} in {} has shape [{}], expected [{}, {}, {}] (percent pruned, layers, KV heads)", dataset_, file_,
                    fmt::join(shape, ", "), kRows, layer.model_layers, layer.kv_heads);
  }
  Scope scope() const override { return Scope::model; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    score_->score(head, out);
    out[0].protected_tokens = protected_order(out[0].score.size(), sinks_, recent_);
  }
  void join(const LayerGeometry& layer, LayerScores& scores) const override {
    score_->join(layer, scores);
    lift_protected(scores);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking&, std::uint32_t budget, std::span<std::uint32_t> kept) const override {
    const auto prompt = static_cast<std::uint32_t>(layer.prompt);
    if (budget >= prompt) return std::fill(kept.begin(), kept.end(), prompt);
    const double pruned = 1.0 - static_cast<double>(budget) / static_cast<double>(prompt);
    const auto row = static_cast<std::size_t>(std::clamp(std::nearbyint(100 * pruned) - 1, 0.0, 98.0));
    const std::size_t place = layer_place(layer);
    if (total_ == 1) return as_the_press(shares_of(layer, row, place), prompt, kept);
    std::vector<double> shares;
    for (std::size_t l = 0; l < layer.recorded_layers.size(); ++l) {
      const std::vector<float> own = shares_of(layer, row, l);
      // A head that the curve leaves nothing still takes what no other head can hold.
      for (const float share : own) shares.push_back(std::max(static_cast<double>(share), 1e-9) * prompt);
    }
    const std::vector<std::uint32_t> counts = round_to_total(shares, std::uint64_t{budget} * shares.size(), prompt);
    std::copy_n(counts.begin() + static_cast<std::ptrdiff_t>(place * kept.size()), kept.size(), kept.begin());
  }

 private:
  /// Kept share of every head of a recorded layer.
  std::vector<float> shares_of(const LayerGeometry& layer, std::size_t row, std::size_t place) const {
    const std::size_t layers = curve_->shape[1], heads = curve_->shape[2];
    const std::size_t l = layers == layer.model_layers ? layer.recorded_layers[place] : place;
    std::vector<float> shares;
    for (std::size_t h = 0; h < heads; ++h) shares.push_back(std::clamp(1.0f - curve_->data[(row * layers + l) * heads + h], 0.0f, 1.0f));
    return shares;
  }
  /// Floors, then one more for the largest fractions until the layer's rounded sum is reached; one token at least.
  static void as_the_press(const std::vector<float>& shares, std::uint32_t prompt, std::span<std::uint32_t> kept) {
    std::vector<float> keep;
    for (const float share : shares) keep.push_back(share * static_cast<float>(prompt));
    const float sum = std::accumulate(keep.begin(), keep.end(), 0.0f);
    const auto heads = static_cast<float>(keep.size());
    const auto total = static_cast<std::uint64_t>(std::clamp(std::nearbyint(sum), heads, heads * static_cast<float>(prompt)));
    std::uint64_t floors = 0;
    std::vector<std::pair<float, std::size_t>> rest;
    for (std::size_t h = 0; h < keep.size(); ++h) {
      kept[h] = static_cast<std::uint32_t>(keep[h]);
      floors += kept[h];
      rest.emplace_back(-(keep[h] - std::floor(keep[h])), h);
    }
    std::sort(rest.begin(), rest.end());
    for (std::size_t i = 0; i < rest.size() && floors + i < total; ++i) ++kept[rest[i].second];
    for (std::uint32_t& count : kept) count = std::clamp(count, 1u, prompt);
  }
};

const RegisterPolicy<Lu> registered{kTraits};

}  // namespace
}  // namespace kvsim
