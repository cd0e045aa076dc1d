// Skip: leaves some layers whole, around any score.
//
// As published codes do with the first layers: L2 norm in KVCache-Factory and by its authors
// (skip(score=knorm)), Ada-KV
// (`skip`), DBudgetKV. Those layers keep their whole prompt on top of the budget of the others:
// resident_tokens says so.
#include <algorithm>
#include <charconv>
#include <vector>

#include "kernels/error.h"
#include "policies/registry.h"
#include "policies/wrapper.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "skip",
    .summary = "leaves some layers whole, around any score",
    .reference = "KVCache-Factory (l2norm: layers 0 and 1), FFY0/AdaKV (skip)",
    .accounting =
        "the whole prompt in the layers named, the budget of the policy under score in the others: resident "
        "tokens exceed the budget on average"};

SpecValue word(std::uint32_t layer) { return {SpecValue::Kind::word, std::to_string(layer), {}, {}}; }

struct Skip final : ScoreWrapper {
  SpecValue layers_{SpecValue::Kind::list, "", {}, {word(0), word(1)}};

  Skip() : ScoreWrapper(kTraits, "knorm") {}
  void fields(FieldVisitor& f) override {
    score_field(f);
    f.value("layers", layers_, "numbers of the layers that keep everything, e.g. [0,1]");
    if (layers_.kind == SpecValue::Kind::word) layers_ = {SpecValue::Kind::list, "", {}, {layers_}};
  }
  void prepare(Resources& resources) override {
    ScoreWrapper::prepare(resources);
    if (layers_.kind != SpecValue::Kind::list)
      throw UserError("skip: layers is a list of numbers, e.g. layers=[0,1]");
    numbers_.clear();
    for (const SpecValue& item : layers_.items) {
      std::uint32_t number = 0;
      const char* end = item.text.data() + item.text.size();
      const auto [stop, error] = std::from_chars(item.text.data(), end, number);
      if (item.kind != SpecValue::Kind::word || error != std::errc() || stop != end)
        throw UserError("skip: layers is a list of numbers, e.g. layers=[0,1], not {}", to_text(item));
      numbers_.push_back(number);
    }
  }
  void check(const LayerGeometry& layer) const override {
    for (const std::uint32_t number : numbers_)
      if (number >= layer.model_layers)
        throw UserError("skip: there is no layer {}, the model has {}", number, layer.model_layers);
    ScoreWrapper::check(layer);
  }
  void allocate(const LayerGeometry& layer, const LayerRanking& ranking, std::uint32_t budget,
                std::span<std::uint32_t> kept) const override {
    if (std::find(numbers_.begin(), numbers_.end(), layer.layer) == numbers_.end()) {
      score_->allocate(layer, ranking, budget, kept);
    } else {
      std::fill(kept.begin(), kept.end(), static_cast<std::uint32_t>(layer.prompt));
    }
  }

 private:
  std::vector<std::uint32_t> numbers_;
};

const RegisterPolicy<Skip> registered{kTraits};

}  // namespace
}  // namespace kvsim
