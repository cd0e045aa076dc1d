// A user's array whose first dimension counts layers: scores, filters, statistics made elsewhere.
#include "policies/layer_array.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/error.h"

namespace kvsim {

void LayerArray::load(Resources& resources, const std::string& file, const std::string& dataset) {
  file_ = file;
  dataset_ = dataset;
  array_ = &resources.array(file, dataset);
  const auto bad =
      std::find_if(array_->data.begin(), array_->data.end(), [](float v) { return std::isnan(v); });
  if (bad != array_->data.end())
    throw UserError("{} in {}: value {} is not a number", dataset, file, bad - array_->data.begin());
}

void LayerArray::check(const LayerGeometry& layer, std::initializer_list<std::size_t> rest,
                       std::string_view meaning) const {
  KVSIM_CHECK(loaded(), "an array of layers without prepare()");
  const std::size_t recorded = std::max<std::size_t>(1, layer.recorded_layers.size());
  const auto& shape = array_->shape;
  const bool fits = shape.size() == rest.size() + 1 &&
                    (shape[0] == layer.model_layers || shape[0] == recorded) &&
                    std::equal(rest.begin(), rest.end(), shape.begin() + 1);
  if (fits) return;
  throw UserError("{} in {} has shape [{}], expected [{}{}, {}] ({})", dataset_, file_,
                  fmt::join(shape, ", "), layer.model_layers,
                  recorded == layer.model_layers ? "" : fmt::format(" or {}", recorded),
                  fmt::join(rest, ", "), meaning);
}

std::span<const float> LayerArray::at(const LayerGeometry& layer, std::size_t index) const {
  const auto& shape = array_->shape;
  std::size_t ordinal = layer.layer;
  if (shape[0] != layer.model_layers) {
    const auto place = std::find(layer.recorded_layers.begin(), layer.recorded_layers.end(), layer.layer);
    ordinal = static_cast<std::size_t>(place - layer.recorded_layers.begin());
  }
  KVSIM_CHECK(ordinal < shape[0] && index < shape[1], "layer {}, part {} of an array of {} x {}", ordinal,
              index, shape[0], shape[1]);
  std::size_t size = 1;
  for (std::size_t i = 2; i < shape.size(); ++i) size *= shape[i];
  return std::span(array_->data).subspan((ordinal * shape[1] + index) * size, size);
}

}  // namespace kvsim
