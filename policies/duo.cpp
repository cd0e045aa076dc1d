// DuoAttention: retrieval heads keep everything, streaming heads the first and the newest tokens only.
//
// arXiv:2410.10819, kvpress's DuoAttentionPress. Every KV head of the model has a score, large for retrieval heads: from a
// file (the authors' pattern as an array [layers, KV heads]), or found from the trace as the press does on the fly: mean
// query and mean key before the rotary embedding, turned to `length` consecutive positions, the last query's softmax, and
// the mean over positions of its running sum, averaged over the group. (The press averages that over texts; here the text
// is the trace's own prompt, whose first tokens the query statistics leave out.)
//
// The press is told how many heads stream; here the budget says it: every head has its sinks and recents, and the heads
// with the largest scores get the rest of the prompt, one after the other, until the budget is spent; the last of them in
// part, newest tokens first. At kvpress's effective ratios that is the press; below sinks + recent tokens all heads stream.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/error.h"
#include "policies/layer_preference.h"
#include "policies/recipe.h"
#include "policies/registry.h"
#include "policies/rotation.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "duo",
    .summary = "retrieval heads keep everything, streaming heads the first and newest tokens",
    .reference = "arXiv:2410.10819; kvpress DuoAttentionPress",
    .accounting = "budget tokens per KV head on average over the recorded layers, exactly; sinks and recents of all heads first",
    .model_wide = true};

constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max() / 4;

struct Duo final : Policy {
  PolicyTraits traits_ = kTraits;
  std::string file_;
  std::string dataset_;
  std::uint32_t sinks_ = 128;
  std::uint32_t recent_ = 256;
  std::uint32_t length_ = 500;
  const ExternalArray* pattern_ = nullptr;  // owned by the program's Resources

  const PolicyTraits& traits() const override { return traits_; }
  void fields(FieldVisitor& f) override {
    f.text("file", file_, "HDF5 file with the heads' scores; \"\" = found from the trace");
    f.text("dataset", dataset_, "path of the array [layers, KV heads] inside it");
    f.number("sinks", sinks_, 0, kAny, "first tokens that streaming heads keep");
    f.number("recent", recent_, 1, kAny, "newest tokens that streaming heads keep");
    f.number("length", length_, 2, 1u << 20, "from the trace: positions that the mean query looks back on");
    if (traits_.model_wide != file_.empty()) traits_.model_wide = file_.empty();
  }
  void prepare(Resources& resources) override {
    if (file_.empty() != dataset_.empty()) throw UserError("duo: file and dataset go together");
    if (file_.empty()) return;
    pattern_ = &resources.array(file_, dataset_);
    if (std::any_of(pattern_->data.begin(), pattern_->data.end(), [](float v) { return std::isnan(v); }))
      throw UserError("{} in {} holds a value that is not a number", dataset_, file_);
  }
  void check(const LayerGeometry& layer) const override {
    if (pattern_ == nullptr) return;
    const auto& shape = pattern_->shape;
    if (shape.size() == 2 && shape[1] == layer.kv_heads && (shape[0] == layer.model_layers || shape[0] == layer.recorded_layers.size())) return;
    throw UserError("{} in {} has shape [{}], expected [{}, {}] (layers, KV heads)", dataset_, file_, fmt::join(shape, ", "),
                    layer.model_layers, layer.kv_heads);
  }
  Need needs() const override { return file_.empty() ? Need::keys | Need::query_stats : Need::none; }
  Scope scope() const override { return Scope::model; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const std::size_t prompt = head.geometry().prompt;
    out[0].score.resize(prompt);
    for (std::size_t t = 0; t < prompt; ++t) out[0].score[t] = static_cast<float>(t);
    out[0].protected_tokens = protected_order(prompt, sinks_, recent_);
    if (file_.empty()) out[0].extra = {retrieval_score(head)};
  }
  std::vector<float> summarise(const LayerGeometry&, const LayerRanking& ranking) const override {
    std::vector<float> scores;
    for (const UnitScores& unit : ranking.scores.units) scores.push_back(unit.extra[0]);
    return scores;
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    const std::vector<float> scores = head_scores(layer, ranking);
    const std::uint64_t prompt = layer.prompt, mean = std::min<std::uint64_t>(budget, prompt);
    const std::uint64_t streaming = std::min<std::uint64_t>(mean, std::uint64_t{sinks_} + recent_);
    const std::uint64_t rest = (mean - streaming) * scores.size(), whole = prompt - streaming;
    const std::size_t first = layer_place(layer) * kept.size();
    for (std::size_t h = 0; h < kept.size(); ++h) {
      const float own = scores[first + h];
      std::uint64_t better = 0;
      for (std::size_t i = 0; i < scores.size(); ++i) better += scores[i] > own || (scores[i] == own && i < first + h) ? 1 : 0;
      const std::uint64_t taken = std::min(rest, better * whole);
      kept[h] = static_cast<std::uint32_t>(streaming + std::min(whole, rest - taken));
    }
  }

 private:
  /// Of all heads of the recorded layers.
  std::vector<float> head_scores(const LayerGeometry& layer, const LayerRanking& ranking) const {
    std::vector<float> scores;
    if (pattern_ == nullptr) {
      for (const std::vector<float>& summary : ranking.summaries) scores.insert(scores.end(), summary.begin(), summary.end());
      return scores;
    }
    for (std::size_t l = 0; l < layer.recorded_layers.size(); ++l) {
      const std::size_t row = pattern_->shape[0] == layer.model_layers ? layer.recorded_layers[l] : l;
      const float* const from = pattern_->data.data() + row * layer.kv_heads;
      for (std::size_t h = 0; h < layer.kv_heads; ++h) scores.push_back(std::clamp(from[h], 0.0f, 1.0f));
    }
    return scores;
  }

  float retrieval_score(const HeadFeatures& head) const {
    const LayerGeometry& layer = head.geometry();
    const Rope rope = head.rope();
    const std::size_t d = layer.key_dim;
    std::vector<double> mean_key(d, 0.0), key(d);
    for (std::size_t t = 0; t < layer.prompt; ++t) {
      std::copy_n(head.keys().row(t), d, key.begin());
      turn(key, rope, -static_cast<double>(t));
      for (std::size_t c = 0; c < d; ++c) mean_key[c] += key[c] / (static_cast<double>(layer.prompt) * rope.attention_scaling);
    }
    double total = 0;
    for (std::size_t h = 0; h < layer.group; ++h) {
      const std::span<const float> query = head.query_stats(h).mean;
      std::vector<double> weight(length_);
      double most = -std::numeric_limits<double>::infinity(), sum = 0, running = 0, area = 0;
      for (std::size_t t = 0; t < length_; ++t) {
        key = mean_key;
        turn(key, rope, static_cast<double>(t) - static_cast<double>(length_ - 1));
        double dot = 0;
        for (std::size_t c = 0; c < d; ++c) dot += static_cast<double>(query[c]) * key[c];
        most = std::max(most, weight[t] = dot / std::sqrt(static_cast<double>(d)));
      }
      for (double& w : weight) sum += w = std::exp(w - most);
      for (const double w : weight) area += running += w / sum;
      total += area / length_;
    }
    return static_cast<float>(total / static_cast<double>(layer.group));
  }
};

const RegisterPolicy<Duo> registered{kTraits};

}  // namespace
}  // namespace kvsim
