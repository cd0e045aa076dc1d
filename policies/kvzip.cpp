// KVzip: keeps what the model looks at when it has to repeat the prompt.
//
// arXiv:2505.23416, kvpress's KVzipPress. A second pass over the prompt is recorded (kvsim-record --second-pass
// repeat); a token's score is the largest attention weight that it gets from any query of that pass and any query head of
// the group. plus=true uses weights times |v Wo| / |x|. The first 4 tokens come before all others, as in kvpress 0.5.5
// (its earlier versions gave them 1, which only scores of the plus form exceed). Budgets: the best tokens over all layers and heads
// of the model, or of each layer with layerwise=true. The counts of all layers sum to the budget exactly.
#include <algorithm>
#include <limits>

#include "kernels/error.h"
#include "policies/allotment.h"
#include "policies/layer_preference.h"
#include "policies/model_pool.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "kvzip",
    .summary = "largest attention when the model repeats the prompt, one ranking over all layers and heads",
    .reference = "arXiv:2505.23416; kvpress KVzipPress",
    .accounting = "budget tokens per KV head on average over the recorded layers; the sinks come first",
    .model_wide = true};

constexpr float kComesFirst = 1e9f;  // above every weight, as the press lifts its sinks over the largest score

struct KvZip final : Policy {
  PolicyTraits traits_ = kTraits;
  bool layerwise_ = false;
  std::uint32_t sinks_ = 4;
  bool plus_ = false;

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    f.flag("layerwise", layerwise_, "rank the heads of each layer by themselves");
    f.number("sinks", sinks_, 0, std::numeric_limits<std::uint32_t>::max(), "first tokens, kept before all others");
    f.flag("plus", plus_, "weigh by what the value writes, relative to the block's input");
    if (traits_.model_wide == layerwise_) traits_.model_wide = !layerwise_;
  }
  Need needs() const override { return Need::second_pass; }
  Scope scope() const override { return layerwise_ ? Scope::layer : Scope::model; }
  void check(const LayerGeometry& layer) const override {
    const auto& names = layer.second_pass;
    if (std::find(names.begin(), names.end(), statistic()) == names.end())
      throw UserError("the second pass holds no statistic '{}': record with --second-pass repeat", statistic());
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    std::vector<float>& score = out[0].score;
    score.assign(head.geometry().prompt, 0.0f);
    for (std::size_t h = 0; h < head.geometry().group; ++h) {
      const std::span<const float> row = head.second_pass(statistic(), h);
      for (std::size_t t = 0; t < score.size(); ++t) score[t] = std::max(score[t], row[t]);
    }
    std::fill_n(score.begin(), std::min<std::size_t>(sinks_, score.size()), kComesFirst);
  }
  std::vector<float> summarise(const LayerGeometry&, const LayerRanking& ranking) const override {
    return pool_summary(ranking);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const std::uint64_t total = std::min<std::uint64_t>(budget, layer.prompt) * kept.size();
    const std::vector<std::uint32_t> counts =
        layerwise_ ? joint_counts(ranking, total, std::vector<std::uint32_t>(kept.size(), 0))
                   : model_pool_counts(ranking.summaries, layer_place(layer), total * ranking.summaries.size(), 0);
    std::copy(counts.begin(), counts.end(), kept.begin());
  }

 private:
  std::string statistic() const { return plus_ ? "kvzip_plus" : "kvzip"; }
};

const RegisterPolicy<KvZip> registered{kTraits};

}  // namespace
}  // namespace kvsim
