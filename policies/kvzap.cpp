// Learned scorers whose weights are applied elsewhere: KVzap and Fast KVzip, as arrays.
//
// Both predict a token's score from the hidden state before its attention block with small trained networks.
// kvsim runs no networks: apply them where the model runs and hand over the scores as an HDF5 array [layers,
// KV heads, prompt tokens], larger = keep, as for `external`. kvzap (arXiv:2601.07891; kvpress KVzapPress)
// protects nothing; its authors use it with a threshold in place of a budget. fastkvzip (arXiv:2601.17668;
// kvpress FastKVzipPress) keeps four sinks and a window of trunc(0.02 T) newest tokens (4096 from 32,000
// tokens on); its authors let all heads of the model compete for the budget. Deviation: a prompt below 50
// tokens has no window, where kvpress's slice makes all its scores equal.
#include <limits>

#include "kernels/error.h"
#include "policies/layer_array.h"
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kZapTraits{
    .name = "kvzap",
    .summary = "learned scores of KVzap, applied elsewhere, from your own HDF5 file",
    .reference = "arXiv:2601.07891; kvpress KVzapPress",
    .accounting = "budget tokens per KV head; nothing is protected"};
constexpr PolicyTraits kFastTraits{
    .name = "fastkvzip",
    .summary = "learned gates of Fast KVzip, applied elsewhere, from your own HDF5 file",
    .reference = "arXiv:2601.17668; kvpress FastKVzipPress",
    .accounting = "sinks, then a window of newest tokens are kept first; both count"};

template <bool fast>
struct LearnedScores final : Policy {
  std::string file_;
  std::string dataset_ = "/scores";
  std::uint32_t sinks_ = 4;
  double window_share_ = 0.02;
  std::uint32_t window_ = 4096;
  LayerArray scores_;

  const PolicyTraits& traits() const override { return fast ? kFastTraits : kZapTraits; }
  void fields(FieldVisitor& f) override {
    constexpr std::uint32_t kAny = std::numeric_limits<std::uint32_t>::max();
    f.text("file", file_, "the HDF5 file");
    f.text("dataset", dataset_, "path of the array inside it");
    if (!fast) return;
    f.number("sinks", sinks_, 0, kAny, "first tokens that are always kept");
    f.number("window_share", window_share_, 0.0, 1.0,
             "share of the prompt that is kept as its newest tokens");
    f.number("window", window_, 0, kAny, "newest tokens kept of prompts of 32,000 tokens and more");
  }
  void prepare(Resources& resources) override {
    if (file_.empty())
      throw UserError("{} needs a file with its scores, e.g. {}(file=scores.h5)", traits().name,
                      traits().name);
    scores_.load(resources, file_, dataset_);
  }
  Need needs() const override { return Need::none; }
  void check(const LayerGeometry& layer) const override {
    scores_.check(layer, {layer.kv_heads, layer.prompt}, "layers, KV heads, prompt tokens");
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    check(layer);
    const std::span<const float> scores = scores_.at(layer, head.kv_head());
    out[0].score.assign(scores.begin(), scores.end());
    if (!fast) return;
    constexpr std::size_t kLong = 32000;
    const auto share = static_cast<std::uint32_t>(window_share_ * static_cast<double>(layer.prompt));
    out[0].protected_tokens = protected_order(layer.prompt, sinks_, layer.prompt < kLong ? share : window_);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override { lift_protected(scores); }
};

const RegisterPolicy<LearnedScores<false>> registered_zap{kZapTraits};
const RegisterPolicy<LearnedScores<true>> registered_fast{kFastTraits};

}  // namespace
}  // namespace kvsim
