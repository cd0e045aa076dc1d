// SimLayerKV: layers whose last query looks at the first and newest tokens only keep no others.
//
// arXiv:2410.13846, kvpress's SimLayerKVPress. A layer is lazy when the attention of the last `last` queries (softmax over
// all keys, mean over query heads and queries) on the first `initial` tokens and on the newest `recent` of the tokens
// before those queries sums to more than `threshold`; prompts of initial + recent + last tokens or fewer have no lazy
// layer. A lazy layer keeps its first `initial` and its last recent - last tokens, the others share what is left of the
// budget equally and keep first tokens and newest ones too: at a budget of the whole prompt that is the press, which has
// no budget. Its threshold is 1.0, no layer is lazy; its authors suggest 0.9 for Llama 3, 0.65 for Llama 2, 0.8 for
// Mistral, 0.85 for Qwen.
#include <algorithm>
#include <limits>

#include "kernels/error.h"
#include "policies/layer_preference.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "simlayer",
    .summary = "layers whose last query looks at first and newest tokens only keep no others",
    .reference = "arXiv:2410.13846; kvpress SimLayerKVPress",
    .accounting = "budget tokens per KV head on average over the recorded layers at most; lazy layers keep initial + recent - last",
    .model_wide = true,
    .own_size = true};

constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max() / 4;

struct SimLayer final : Policy {
  double threshold_ = 1.0;
  std::uint32_t initial_ = 4;
  std::uint32_t recent_ = 1024;
  std::uint32_t last_ = 1;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.number("threshold", threshold_, 0.0, 1.0, "attention above which a layer is lazy; 1 = none is");
    f.number("initial", initial_, 0, kAny, "first tokens that a lazy layer keeps");
    f.number("recent", recent_, 1, kAny, "newest tokens that a lazy layer keeps, the last queries' own counted");
    f.number("last", last_, 1, kAny, "last prompt queries that are looked at");
  }
  void prepare(Resources&) override {
    if (last_ >= recent_) throw UserError("simlayer: last={} leaves no token of recent={}", last_, recent_);
  }
  Need needs() const override { return Need::window_queries; }
  std::uint32_t window() const override { return last_; }
  Scope scope() const override { return Scope::model; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t prompt = head.geometry().prompt;
    out[0].score.resize(prompt);
    for (std::size_t t = 0; t < prompt; ++t) out[0].score[t] = static_cast<float>(t);
    out[0].protected_tokens = protected_order(prompt, initial_, 0);
    double sum = 0;
    if (prompt > std::size_t{initial_} + recent_ + last_) {
      const std::size_t columns = prompt - last_;
      for (std::size_t h = 0; h < head.geometry().group; ++h) {
        const MatrixView<const float> rows = head.attention({.source = QueryRows::Source::window, .count = last_}, h);
        for (std::size_t t = 0; t < columns; ++t)
          for (std::size_t r = 0; (t < initial_ || t + recent_ >= columns) && r < last_; ++r) sum += static_cast<double>(rows.row(t)[r]);
      }
    }
    out[0].extra = {static_cast<float>(sum / static_cast<double>(head.geometry().group * last_))};
  }
  /// Mean over the heads: how much of the last queries' attention a lazy layer's tokens have.
  std::vector<float> summarise(const LayerGeometry&, const LayerRanking& ranking) const override {
    double sum = 0;
    for (const UnitScores& unit : ranking.scores.units) sum += static_cast<double>(unit.extra[0]);
    return {static_cast<float>(sum / static_cast<double>(ranking.scores.units.size()))};
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const std::uint64_t mean = std::min<std::uint64_t>(budget, layer.prompt);
    const std::uint64_t lazy_tokens = std::min<std::uint64_t>(mean, initial_ + recent_ - last_);
    const auto lazy = [&](const std::vector<float>& summary) { return static_cast<double>(summary[0]) > threshold_; };
    std::uint64_t lazy_layers = 0, busy_before = 0;
    const std::size_t place = layer_place(layer);
    for (std::size_t l = 0; l < ranking.summaries.size(); ++l) {
      if (lazy(ranking.summaries[l])) {
        ++lazy_layers;
      } else if (l < place) {
        ++busy_before;
      }
    }
    std::uint64_t own = lazy_tokens;
    if (!lazy(ranking.summaries[place])) {
      const std::uint64_t busy = ranking.summaries.size() - lazy_layers;
      const std::uint64_t rest = mean * ranking.summaries.size() - lazy_layers * lazy_tokens;
      own = std::min<std::uint64_t>(layer.prompt, rest / busy + (busy_before < rest % busy ? 1 : 0));
    }
    std::fill(kept.begin(), kept.end(), static_cast<std::uint32_t>(own));
  }
};

const RegisterPolicy<SimLayer> registered{kTraits};

}  // namespace
}  // namespace kvsim
