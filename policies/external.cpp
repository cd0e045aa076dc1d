// External scores: ranks by a user's own array, so that a new idea can be judged without any C++.
//
// The array has the shape [layers, KV heads, prompt tokens]; larger scores are kept. `layers` is either the
// number of the model's layers (indexed by the layer's own number) or of the recorded ones (in their order).
#include "kernels/error.h"
#include "policies/layer_array.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{.name = "external",
                               .summary = "ranks by scores from your own HDF5 file",
                               .reference = "your array [layer, kv_head, token], larger = keep",
                               .accounting = "budget tokens per KV head; nothing is protected"};

struct External final : Policy {
  std::string file_;
  std::string dataset_;
  LayerArray scores_;

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.text("file", file_, "the HDF5 file");
    f.text("dataset", dataset_, "path of the array inside it, e.g. /scores");
  }
  void prepare(Resources& resources) override {
    if (file_.empty() || dataset_.empty()) {
      throw UserError("external needs a file and a dataset, e.g. external(file=scores.h5,dataset=/scores)");
    }
    scores_.load(resources, file_, dataset_);
  }
  Need needs() const override { return Need::none; }

  void check(const LayerGeometry& layer) const override {
    scores_.check(layer, {layer.kv_heads, layer.prompt}, "layers, KV heads, prompt tokens");
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    check(head.geometry());
    const std::span<const float> scores = scores_.at(head.geometry(), head.kv_head());
    out[0].score.assign(scores.begin(), scores.end());
  }
};

const RegisterPolicy<External> registered{kTraits};

}  // namespace
}  // namespace kvsim
