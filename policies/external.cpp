// External scores: ranks by a user's own array, so that a new idea can be judged without any C++.
//
// The array has the shape [layers, KV heads, prompt tokens]; larger scores are kept. `layers` is either the
// number of the model's layers (indexed by the layer's own number) or of the recorded ones (in their order).
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/error.h"
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
  const ExternalArray* array_ = nullptr;  // owned by the program's Resources, which outlive the policy

  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor& f) override {
    f.text("file", file_, "the HDF5 file");
    f.text("dataset", dataset_, "path of the array inside it, e.g. /scores");
  }
  void prepare(Resources& resources) override {
    if (file_.empty() || dataset_.empty()) {
      throw UserError("external needs a file and a dataset, e.g. external(file=scores.h5,dataset=/scores)");
    }
    array_ = &resources.array(file_, dataset_);
    const auto bad = std::find_if(array_->data.begin(), array_->data.end(), [](float v) { return std::isnan(v); });
    if (bad != array_->data.end())
      throw UserError("{} in {}: value {} is not a number", dataset_, file_, bad - array_->data.begin());
  }
  Need needs() const override { return Need::none; }

  void check(const LayerGeometry& layer) const override {
    KVSIM_CHECK(array_ != nullptr, "external scores without prepare()");
    const std::size_t recorded = std::max<std::size_t>(1, layer.recorded_layers.size());
    const auto& shape = array_->shape;
    const bool fits = shape.size() == 3 && (shape[0] == layer.model_layers || shape[0] == recorded) &&
                      shape[1] == layer.kv_heads && shape[2] == layer.prompt;
    if (fits) return;
    throw UserError("{} in {} has shape [{}], expected [{}{}, {}, {}] (layers, KV heads, prompt tokens)", dataset_,
                    file_, fmt::join(shape, ", "), layer.model_layers,
                    recorded == layer.model_layers ? "" : fmt::format(" or {}", recorded), layer.kv_heads,
                    layer.prompt);
  }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    const LayerGeometry& layer = head.geometry();
    check(layer);
    const auto& shape = array_->shape;
    std::size_t index = layer.layer;
    if (shape[0] != layer.model_layers) {
      const auto place = std::find(layer.recorded_layers.begin(), layer.recorded_layers.end(), layer.layer);
      index = static_cast<std::size_t>(place - layer.recorded_layers.begin());
    }
    KVSIM_CHECK(index < shape[0], "layer {} of an array of {} layers", index, shape[0]);
    const float* first = array_->data.data() + (index * shape[1] + head.kv_head()) * shape[2];
    out[0].score.assign(first, first + shape[2]);
  }
};

const RegisterPolicy<External> registered{kTraits};

}  // namespace
}  // namespace kvsim
