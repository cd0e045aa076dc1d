// TOVA: the last prompt query decides for the whole layer.
//
// Oren et al., "Transformers are multi-state RNNs", arXiv:2401.06104, once at the end of the prompt:
// attention of the last query, mean over all query heads of the layer, one set for all its KV heads. As in
// kvpress (TOVAPress) the newest token is always kept, which the authors' code does not promise.
#include "policies/recipe.h"
#include "policies/registry.h"

namespace kvsim {
namespace {

constexpr PolicyTraits kTraits{
    .name = "tova",
    .summary = "attention of the last prompt query, one set per layer",
    .reference = "arXiv:2401.06104; kvpress TOVAPress",
    .accounting = "budget tokens per KV head, the same for all of a layer; the newest token counts and stays",
    .windowed = true};

struct Tova final : Policy {
  const PolicyTraits& traits() const override { return kTraits; }
  void fields(FieldVisitor&) override {}
  Need needs() const override { return Need::window_queries; }
  std::uint32_t window() const override { return 1; }
  Unit unit() const override { return Unit::layer; }

  void score(const HeadFeatures& head, std::span<UnitScores> out) const override {
    Recipe recipe;
    recipe.query = QuerySource::window;
    recipe.window = 1;
    recipe.base = Base::attention;
    recipe.reduce = {{.kind = Reducer::Kind::mean}, {.kind = Reducer::Kind::group, .group = Group::mean}};
    recipe.recent = 1;
    recipe.score(head, kTraits.name, out);
  }
  void join(const LayerGeometry&, LayerScores& scores) const override {
    share_over_layer(scores);
    lift_protected(scores);
  }
};

const RegisterPolicy<Tova> registered{kTraits};

}  // namespace
}  // namespace kvsim
